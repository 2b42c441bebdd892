"""Uploads without their names: a patient's name often stands in a file's name, and a path outlives the moment.

Gradio stores an upload under the name that the browser sends. `Nameless` sits before Gradio and replaces that name
while the upload streams through, so neither the disk nor a log ever sees it. It also shuts the one address of Gradio
that would write a reader's whole session to the disk.
"""

import secrets

from python_multipart.multipart import parse_options_header
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.gradio_internals import is_deep_link, is_upload

_LONGEST_HEADER = 64 * 1024  # bytes of one part's header; browsers send a few hundred


class Nameless:
    """ASGI middleware: every file of a multipart upload gets a random name of its own, whatever it was called."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_deep_link(scope):
            await PlainTextResponse("Sessions are not stored here.", status_code=404)(scope, receive, send)
            return
        if not is_upload(scope):
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        _, options = parse_options_header(headers.get("content-type"))
        del headers["content-length"]  # names of another length make it untrue
        renamer = Renamer(options.get(b"boundary", b""))

        async def renamed() -> Message:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body = renamer.feed(message.get("body", b""))
            if not message.get("more_body", False):
                body += renamer.end()
            return {**message, "body": body}

        await self.app(scope, renamed, send)


class Renamer:
    """A multipart body (RFC 7578) piece by piece, the same but for the header of each file, which is written anew.

    Pieces may be cut anywhere, inside a boundary or a name too: what cannot be judged yet is held back.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._held = b""
        self._in_header = True  # the first delimiter has no line end before it and is taken as part of the first header

    def feed(self, piece: bytes) -> bytes:
        """The next bytes that may be passed on."""
        self._held += piece
        done = []
        while True:
            mark = b"\r\n\r\n" if self._in_header else self._delimiter
            at = self._held.find(mark)
            if at < 0:
                break
            end = at + len(mark)
            done.append(_neutral(self._held[:end]) if self._in_header else self._held[:end])
            self._held, self._in_header = self._held[end:], not self._in_header
        if self._in_header:
            if len(self._held) > _LONGEST_HEADER:  # no browser sends this; what follows will be refused as malformed
                self._held = self._held[-3:]
        else:
            safe = max(0, len(self._held) - len(self._delimiter) + 1)
            done.append(self._held[:safe])
            self._held = self._held[safe:]
        return b"".join(done)

    def end(self) -> bytes:
        """The rest, once the body is over."""
        rest, self._held = self._held, b""
        return _neutral(rest) if self._in_header else rest


def _neutral(header: bytes) -> bytes:
    """A part's header with its boundary line; a file's is written anew, so that no spelling of a name slips through."""
    line, _, fields = header.partition(b"\r\n")
    if b"filename" not in fields.lower():
        return header
    name = (
        b"upload-" + secrets.token_hex(8).encode()
    )  # no two alike: equal films of two readers must not share one path
    disposition = b'Content-Disposition: form-data; name="files"; filename="' + name + b'"'
    return line + b"\r\n" + disposition + b"\r\nContent-Type: application/octet-stream\r\n\r\n"
