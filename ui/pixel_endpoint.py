"""A film's pixels at full depth and size, for the viewer that asks for them.

Eight bits, as pictures on web pages have, leave 26 tones for a window of a tenth of the scale: steps that look like
edges. So a browser that windows or zooms in gets 16 bits a pixel, from memory and on demand. They are not compressed:
film grain hardly packs (on a 3000 × 3000 film gzip takes seconds to save a fifth).

    GET films/TOKEN  ->  height and width as two 32-bit words, then height · width 16-bit words, all little-endian

A token is random, known only to the page that shows the film, and works as long as somebody holds the film: when a
session goes, so do its tokens.
"""

import re
import secrets
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from emrrg_core import Film

LONGEST = 5000  # pixels on the longer side; detectors have 4300, scanners more than a telephone can hold
_PATH = re.compile(r"/films/([\w-]{20,64})\Z")
_NOT_KEPT = {"Cache-Control": "no-store"}

_lock = threading.Lock()
_films: "WeakValueDictionary[str, Film]" = WeakValueDictionary()
_tokens: "WeakKeyDictionary[Film, str]" = WeakKeyDictionary()


class PixelEndpoint:
    """ASGI middleware: answers for films/TOKEN, passes everything else on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _PATH.search(scope.get("path", "")) if scope["type"] == "http" else None
        if asked is None:
            await self.app(scope, receive, send)
            return
        film = _films.get(asked[1])
        answer: Response
        if film is None or scope["method"] != "GET":
            answer = PlainTextResponse("This film is not held here any more.", status_code=404, headers=_NOT_KEPT)
        else:
            body = await run_in_threadpool(packed, film.pixels)
            answer = Response(body, media_type="application/octet-stream", headers=_NOT_KEPT)
        await answer(scope, receive, send)


def address(film: "Film") -> str:
    """Where the page finds the film's pixels, relative to the page: the same for one film as long as it lives."""
    with _lock:
        token = _tokens.get(film)
        if token is None:
            token = _tokens[film] = secrets.token_urlsafe(24)
            _films[token] = film
    return f"films/{token}"


def packed(pixels: np.ndarray) -> bytes:
    """PixelEndpoint (height, width) in [0, 1] as the module says, the longer side at most LONGEST."""
    scale = LONGEST / max(pixels.shape)
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        whole = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
        pixels = np.asarray(whole.resize(size, Image.Resampling.BOX))
    words = np.rint(np.clip(pixels, 0, 1) * np.float32(65535)).astype("<u2")
    return np.array(words.shape, dtype="<u4").tobytes() + words.tobytes()
