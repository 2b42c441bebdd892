"""The screen: uploads without names, films and maps as pictures, and the whole job in a real browser."""

import ast
import base64
import gc
import importlib
import inspect
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from python_multipart.multipart import MultipartParser, parse_options_header

import app
import emrrg_core
from emrrg_core import DISCLAIMER, DecodeConfig, Draft, Film, Reporter, Sessions, heat_map, overlay, read_film
from emrrg_core.config import MOST_FILMS as CORE_MOST_FILMS
from emrrg_core.explain.heat_map import patch_weights
from emrrg_core.films.synthetic_findings import Sign, draw
from emrrg_core.model.language_model import cache_home
from emrrg_core.report.session_store import Session
from emrrg_core.report.told import spoken
from emrrg_core.reporter import DEFAULT_CHECKPOINT
from tests.phantom import make_phantom
from ui import read, viewer
from ui.gradio_internals import without_stubs
from ui.session_state import MOST_FILMS, core
from ui.uploads import Renamer

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = Path("/usr/bin/chromium")
SLOW = 300_000  # milliseconds: two cores, shared, with an untrained model that does not stop by itself
TELLING = "DOE^JANE_1960.dcm"


# --- uploads ----------------------------------------------------------------------------------------------------------


def multipart(parts: list[tuple[bytes, bytes]], boundary: bytes = b"----geckoform7") -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + header + b"\r\n\r\n" + data + b"\r\n" for header, data in parts)
    return body + b"--" + boundary + b"--\r\n"


def parsed(body: bytes, boundary: bytes = b"----geckoform7") -> list[tuple[str, bytes]]:
    """File name and content of every part, as the parser that Gradio uses reads them."""
    found: list[tuple[bytearray, bytearray, bytearray]] = []
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": lambda: found.append((bytearray(), bytearray(), bytearray())),
            "on_header_field": lambda data, a, b: found[-1][0].extend(data[a:b]),
            "on_header_value": lambda data, a, b: found[-1][1].extend(data[a:b]),
            "on_header_end": lambda: found[-1][1].extend(b"; "),
            "on_part_data": lambda data, a, b: found[-1][2].extend(data[a:b]),
        },
    )
    parser.write(body)
    parser.finalize()
    return [(parse_options_header(bytes(v))[1].get(b"filename", b"").decode(), bytes(data)) for _, v, data in found]


HEADERS = [
    b'Content-Disposition: form-data; name="files"; filename="DOE^JANE.dcm"\r\nContent-Type: application/dicom',
    b"content-disposition: form-data; name=files; FileName=DOE",
    b"Content-Disposition: form-data; name=\"files\"; filename*=UTF-8''D%4FE%20DOE.png",
    b'Content-Disposition: form-data; name="files"; filename="a\\"; DOE.png"; filename*=utf-8\'\'DOE',
    b'Content-Disposition: form-data; name="files"; filename="DOE;\r\n DOE.dcm"',
]
CONTENTS = [
    b"",
    b'Content-Disposition: form-data; filename="kept as it is"\r\n\r\nwords that look like a header',
    b"\r\n----geckoform\r\n--\r\n\r\n----geckoform",
    bytes(range(256)) * 9,
    b"\r\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_an_upload_loses_its_name_and_keeps_its_content_however_it_is_cut(size: int) -> None:
    body = multipart(list(zip(HEADERS, CONTENTS, strict=True)))
    renamer = Renamer(b"----geckoform7")
    renamed = b"".join(renamer.feed(body[at : at + size]) for at in range(0, len(body), size)) + renamer.end()
    assert b"DOE" not in renamed
    names, contents = zip(*parsed(renamed), strict=True)
    assert list(contents) == CONTENTS
    assert all(re.fullmatch(r"upload-[0-9a-f]{16}", name) for name in names)
    assert len(set(names)) == len(names), "equal films of two readers must not share a path"


def test_a_form_field_that_is_no_file_passes_unchanged() -> None:
    body = multipart([(b'Content-Disposition: form-data; name="note"', b"on_load")])
    renamer = Renamer(b"----geckoform7")
    assert renamer.feed(body) + renamer.end() == body


def test_a_header_without_end_is_neither_kept_nor_passed_on() -> None:
    renamer = Renamer(b"----geckoform7")
    start = b'------geckoform7\r\nContent-Disposition: form-data; name="files"; filename="DOE'
    passed = renamer.feed(start) + b"".join(renamer.feed(b"E" * 60_000) for _ in range(9)) + renamer.end()
    assert len(passed) < 70_000
    assert b"DOE" not in passed


# --- films and maps as pictures ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five phantom films as files."""
    folder = tmp_path_factory.mktemp("films")
    for seed in range(5):
        make_phantom(seed, height=200, width=160).save_png(folder / f"{seed}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def reporter(checkpoint: Path) -> Reporter:
    return Reporter.load(checkpoint)


@pytest.fixture(scope="module")
def draft(reporter: Reporter, films: list[Path]) -> Draft:
    pair = [read_film(path, name=f"Film {n}") for n, path in enumerate(films[:2], start=1)]
    return reporter.draft(pair, DecodeConfig(max_new_tokens=24))


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def a_film(height: int, width: int, **known: object) -> Film:
    pixels = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    return replace(Film("Film 1", pixels, None, None, ("a step", "<another>"), "0", "PNG"), **known)


def test_a_large_film_is_shown_at_most_1600_pixels_long_and_in_its_own_shape() -> None:
    shown = decoded(viewer.picture(a_film(3200, 2000).pixels))
    assert shown.shape == (1600, 1000)
    assert shown[:, :20].mean() < 5
    assert shown[:, -20:].mean() > 250
    assert decoded(viewer.picture(a_film(300, 200).pixels)).shape == (300, 200)


@pytest.mark.parametrize("opacity", [0.25, 0.5, 1.0])
def test_a_layer_over_the_film_looks_as_overlay_paints_it(opacity: float) -> None:
    rng = np.random.default_rng(0)
    heat = rng.random((20, 12)).astype(np.float32) ** 3
    heat[3] = 0
    film = rng.random((20, 12)).astype(np.float32)
    rgba = decoded(viewer.layer(heat, overlay)).astype(float)
    alpha = opacity * rgba[..., 3:] / 255
    blended = (1 - alpha) * film[..., None] * 255 + alpha * rgba[..., :3]  # as the browser does it
    assert np.abs(blended - overlay(film, heat, opacity)).max() <= 3


def test_a_layer_of_a_large_film_is_small_and_keeps_places() -> None:
    heat = np.zeros((1400, 2800), np.float32)
    heat[700:800, 2000:2200] = 1  # a patch of a grid of 14
    rgba = decoded(viewer.layer(heat, overlay))
    assert rgba.shape == (224, 448, 4)
    assert rgba[112:128, 320:352, 3].min() == 255
    assert not rgba[:111, :, 3].any()
    assert not rgba[:, :319, 3].any()


def test_a_film_is_shown_with_its_name_view_size_spacing_and_steps_in_words() -> None:
    page = viewer.figures([a_film(256, 128, view="LATERAL", spacing=(0.2, 0.1))])
    assert "Film 1" in page
    assert "lateral view · 128 × 256 pixels · 0.2 × 0.1 mm per pixel" in page
    assert "<li>a step</li><li>&lt;another&gt;</li>" in page
    assert "--ratio:0.25000" in page, "pixels twice as high as wide: the patient is four times as tall as wide"
    assert "view not stated · 128 × 256 pixels · spacing not known" in viewer.figures([a_film(256, 128)])


def test_without_films_the_screen_says_what_to_drop() -> None:
    assert "DICOM, PNG, JPEG or TIFF" in viewer.figures(())


def test_a_film_without_map_gets_no_layer() -> None:
    heat = np.eye(8, dtype=np.float32)
    sheet = viewer.layers([None, heat], overlay)
    assert ".film-0 " not in sheet
    assert ".film-1 " in sheet
    assert viewer.layers([None, None], overlay) == ""


def test_the_screen_says_what_the_core_says() -> None:
    assert DISCLAIMER.startswith(read.NOTICE)
    assert MOST_FILMS == CORE_MOST_FILMS
    assert core().DISCLAIMER is emrrg_core.DISCLAIMER


# --- the app ----------------------------------------------------------------------------------------------------------


def test_the_page_is_built_without_torch_so_that_it_answers_at_once() -> None:
    code = "import sys, app; from concurrent.futures import Future; app.build_demo(Future()); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_film_can_be_shown_before_torch_is_there(films: list[Path]) -> None:
    code = """
import sys
from pathlib import Path
from ui import viewer
from ui.gradio_internals import without_stubs
from ui.session_state import SessionState
state = SessionState()
words = state.take([Path(sys.argv[1])], first=1)
print(len(state.films), words, "film-0" in viewer.figures(state.shown), "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(films[0])], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1 [] True False"


def test_every_public_name_is_at_home_where_type_checkers_are_told() -> None:
    tree = ast.parse(Path(emrrg_core.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert told.keys() == set(emrrg_core.__all__)
    assert all(getattr(emrrg_core, name) is thing for name, thing in told.items())
    assert set(emrrg_core.__all__) <= set(dir(emrrg_core))
    with pytest.raises(ImportError, match="nothing_like_it"):
        exec("from emrrg_core import nothing_like_it")


def test_gradio_is_imported_without_touching_its_stubs() -> None:
    code = """
import sys
touched = []
sys.addaudithook(lambda event, args: touched.append(args[0]) if event == "open" and str(args[0]).endswith(".pyi") else None)
import app
print(touched, app.gr.Button.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] Button"


def test_files_of_classes_are_found_again_once_gradio_is_imported() -> None:
    with without_stubs():
        assert inspect.getfile(Renamer).endswith("uploads.py")
        with pytest.raises(OSError, match="stub"):
            inspect.getfile(app.gr.Button)
    assert inspect.getfile(app.gr.Button).endswith("button.py")


@pytest.mark.parametrize("exists", [True, False])
def test_once_the_model_is_loaded_or_cannot_be_garbage_is_collected_again(
    checkpoint: Path, tmp_path: Path, exists: bool
) -> None:
    soon: Future[Reporter] = Future()
    gc.disable()
    try:
        app.load_behind(soon, checkpoint if exists else tmp_path)
        wait([soon])
        for thread in threading.enumerate():
            if thread.name == "load":
                thread.join()
        assert (soon.exception() is None) == exists
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0, "what came to stay is not searched again"
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_port_in_use_is_told_in_one_line_and_exits_with_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "app.py", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | {"GRADIO_TEMP_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == f"emrrg: Port {port} is in use. Stop what runs there, or choose another with --port.\n"


def a_home(folder: Path) -> Path:
    """A folder for what a server keeps, with the language models of the real one but none of its reports."""
    folder.mkdir(exist_ok=True)
    for part in cache_home().glob("[!s]*"):
        if not (folder / part.name).exists():
            (folder / part.name).symlink_to(part)
    return folder


class Server:
    """The real app in a process of its own."""

    def __init__(self, folder: Path, checkpoint: Path, *, home: Path | None = None, port: int | None = None) -> None:
        self.folder, self.lines = folder, []
        self.home = home = home or a_home(folder.parent / f"{folder.name}-home")
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        self.port = port
        self.address = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-u", "app.py", "--port", str(port), "--checkpoint", str(checkpoint)],
            cwd=ROOT,
            env=os.environ
            | {"GRADIO_TEMP_DIR": str(folder), "GRADIO_HEARTBEAT_INTERVAL": "0.5", "EMRRG_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._answered, self._loaded = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._answered.wait(SLOW / 1000), self.output()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)
            if line.startswith("EMRRG is at"):
                self._answered.set()
        self._answered.set()

    def output(self) -> str:
        return "".join(self.lines)

    def draft(self, session: str) -> Draft:
        """The draft that a tab has, by the id that it remembers."""
        kept = self.session(session).draft
        assert kept is not None
        return kept

    def session(self, id: str) -> Session:
        return Sessions(self.home / "sessions").load(id)

    def paths(self) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(60)
        self._reader.join(60)
        if self.process.stdout:
            self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def checkpoint_to_serve(request: pytest.FixtureRequest) -> Path:
    """EMRRG_TEST_CHECKPOINT, or the one that comes with EMRRG, or a tiny untrained one."""
    if chosen := os.environ.get("EMRRG_TEST_CHECKPOINT"):
        return Path(chosen)
    if (DEFAULT_CHECKPOINT / "config.json").is_file():
        return DEFAULT_CHECKPOINT
    return request.getfixturevalue("checkpoint")


@pytest.fixture(scope="module")
def server(checkpoint_to_serve: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), checkpoint_to_serve)
    try:
        yield running
    finally:
        code = running.stop()
    # threads that have drafted are still there: none may bring the process down
    assert code == 0, running.output()
    assert "terminate called" not in running.output()


def test_the_server_stores_an_upload_under_a_name_of_its_own(server: Server) -> None:
    boundary, content = uuid.uuid4().hex, b"not a film " + uuid.uuid4().bytes
    header = f'Content-Disposition: form-data; name="files"; filename="{TELLING}"'.encode()
    request = urllib.request.Request(
        f"{server.address}/gradio_api/upload",
        data=multipart([(header, content)], boundary.encode()),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (path,) = json.load(answer)
    assert Path(path).read_bytes() == content
    assert "DOE" not in path
    assert not any("DOE" in each for each in server.paths())
    assert server.folder in Path(path).parents


def test_a_session_cannot_be_written_to_the_disk(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(f"{server.address}/gradio_api/deep_link?session_hash=any", timeout=60)
    refused.value.close()


@contextmanager
def browser_page(width: int, height: int) -> Iterator[tuple]:
    """A page of a real browser and what went wrong in it so far."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM) if CHROMIUM.exists() else None,
            args=["--no-sandbox", "--disable-background-networking"],
            headless=True,
        )
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(SLOW)
            sync_api.expect.set_options(timeout=SLOW)
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.on("request", lambda sent: wrong.append(sent.url) if is_foreign(sent.url) else None)
            yield page, wrong, sync_api.expect
        finally:
            browser.close()


def is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def shown_map(page, film: int = 0) -> str:
    return page.evaluate(f"getComputedStyle(document.querySelector('.film-{film} .rr-map')).backgroundImage")


def test_the_whole_job_in_a_browser(server: Server, tmp_path: Path) -> None:
    """Upload, draft, edit, select a sentence, see its map and gates, fade the map, download; then a CT is refused."""
    rg1 = Path(str(get_testdata_file("RG1_UNCR.dcm", download=False)))
    with browser_page(1440, 900) as (page, wrong, expect):
        page.goto(server.address)
        expect(page.locator("#bar")).to_contain_text("Research and teaching only, not a medical device")
        expect(page.locator("#status")).to_contain_text("Ready")

        page.click("#write")  # with no film
        expect(page.locator("#status [role=alert]")).to_contain_text("Choose a chest film first")

        page.set_input_files(
            "#drop input[type=file]",
            [{"name": TELLING, "mimeType": "application/dicom", "buffer": rg1.read_bytes()}],
        )
        film = page.locator(".film-0")
        expect(film).to_contain_text("PA view")
        expect(film).to_contain_text("1841 × 1955 pixels")
        expect(film).to_contain_text("inverted (MONOCHROME1)")
        assert film.locator("img").evaluate("image => image.naturalHeight") == 1600
        assert "DOE" not in page.content()

        page.click("#write")
        expect(page.locator("#stop")).to_be_enabled()
        expect(page.locator("#status")).to_contain_text("Draft done")
        expect(page.locator("#write")).to_be_enabled()
        rows = page.locator("#report .rr-item")
        drafted = rows.first.locator(".rr-item-text").inner_text()
        expect(page.locator("#report")).to_contain_text("DRAFT, NOT REVIEWED")

        assert shown_map(page) == "none"
        rows.first.locator(".rr-item-text").click()
        laid = rows.first.locator(".rr-laid")
        expect(laid.locator("p").first).not_to_contain_text("confidence")
        laid.locator("summary", has_text="Words").click()
        expect(laid.locator(".rr-tokens")).to_contain_text("Word confidence")
        laid.locator("summary", has_text="Gates").click()
        expect(laid.locator(".rr-gates")).to_be_visible()
        page.wait_for_function("getComputedStyle(document.querySelector('.film-0 .rr-map')).backgroundImage != 'none'")
        page.get_by_role("tab", name="Evidence", exact=True).click()
        expect(page.locator("#looked")).to_contain_text("depends on its film")
        expect(page.locator("#words .rr-head[aria-pressed=true]")).to_have_count(1)
        page.get_by_role("tab", name="Report", exact=True).click()
        if rows.count() > 1:
            before = shown_map(page)
            page.keyboard.press("j")
            expect(rows.nth(1)).to_have_attribute("data-current", "")
            page.wait_for_function(
                "old => getComputedStyle(document.querySelector('.film-0 .rr-map')).backgroundImage != old", arg=before
            )

        rows.first.hover()
        rows.first.locator("[data-action=edit]").click()
        page.locator("#report textarea").fill(f"{drafted} Edited by the reader.")
        page.keyboard.press("Enter")
        expect(rows.first).to_contain_text("Edited by the reader.")
        page.get_by_role("tab", name="Export", exact=True).click()
        with page.expect_download() as text:
            page.click("[data-kind=text]")
        saved = Path(text.value.path()).read_text()
        assert "Edited by the reader." in saved
        assert "Research and teaching" in saved or "research and teaching" in saved
        with page.expect_download() as whole:
            page.click("[data-kind=json]")
        made = json.loads(Path(whole.value.path()).read_text())
        assert made["schema"] == "emrrg.export/1"
        assert made["report"]["lines"][0]["text"] == f"{drafted} Edited by the reader."
        assert made["draft"]["sentences"][0]["text"] == drafted
        assert made["draft"]["films"][0]["view"] == "PA"
        assert "DOE" not in json.dumps(made)

        page.get_by_role("tab", name="Report", exact=True).click()
        ct = Path(str(get_testdata_file("CT_small.dcm", download=False)))
        page.set_input_files("#drop input[type=file]", str(ct))
        expect(page.locator("#notice [role=alert]")).to_contain_text("File 1 was not taken. This file holds a CT image")
        expect(rows.first).to_contain_text("Edited by the reader.")

        page.click("#close")
        page.click("#notice [data-action=close]")
        expect(page.locator("#films")).to_contain_text("No film yet")
        expect(rows).to_have_count(0)
        assert wrong == []
    assert not any("DOE" in path for path in server.paths())
    assert "DOE" not in server.output()
    assert "Traceback" not in server.output()


@pytest.mark.parametrize("chosen", ["Side by side", "Averaged"])
def test_a_sentence_of_a_study_of_four_films_has_its_map_on_the_third(
    chosen: str, server: Server, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, (path, size) in enumerate(zip(paths, [(240, 200), (200, 240), (260, 200), (220, 220)], strict=True)):
        make_phantom(number, height=size[0], width=size[1]).save_png(path)
    with browser_page(1440, 900) as (page, wrong, expect):
        page.goto(server.address)
        expect(page.locator("#status")).to_contain_text("Ready")
        page.set_input_files("#drop input[type=file]", [str(path) for path in paths])
        third = page.locator(".film-2")
        expect(third).to_contain_text("Film 3 · view not stated")
        expect(third).to_contain_text("200 × 260 pixels")
        page.get_by_role("button", name="Options").click()
        expect(page.get_by_role("radio", name="As trained")).to_be_checked()
        page.get_by_role("radio", name=chosen).check()
        page.click("#write")
        expect(page.locator("#status")).to_contain_text("Draft done")

        draft = server.draft(page.evaluate("sessionStorage.getItem('emrrg-session')"))
        assert [film.place is not None for film in draft.films] == [chosen == "Side by side"] * 4
        heats = [heat_map(draft, number, draft.sentences[0]) for number in range(4)]
        assert heats[2].shape == (260, 200)
        expected = [decoded(viewer.layer(heat, overlay)) for heat in heats]
        assert expected[2][..., 3].max() == 255, "the map is not empty"
        if chosen == "Averaged":
            weights = [patch_weights(draft, draft.sentences[0], number) for number in range(4)]
            assert draft.read is None or np.abs(weights[2] - weights[0]).max() > 0, "the map is the third film's own"

        page.locator("#report .rr-item .rr-item-text").first.click()
        page.wait_for_function("getComputedStyle(document.querySelector('.film-2 .rr-map')).backgroundImage != 'none'")
        for number, layer in enumerate(expected):
            found = decoded(shown_map(page, number).removeprefix('url("').removesuffix('")'))
            assert found.shape == layer.shape
            assert np.abs(found[..., 3].astype(int) - layer[..., 3]).max() <= 2, "what is kept is rounded"
        shown = third.locator(".rr-map")
        assert float(shown.evaluate("map => getComputedStyle(map).opacity")) > 0
        assert shown.evaluate("map => getComputedStyle(map).backgroundSize") == "100% 100%"
        assert shown.bounding_box() == third.locator("img").bounding_box(), "it covers its film"
        assert wrong == []


@pytest.mark.parametrize("compare", [True, False])
def test_what_is_new_since_a_prior_film_is_said_where_it_is_compared(
    compare: bool, server: Server, tmp_path: Path
) -> None:
    phantom = make_phantom(2, height=512, width=512, lesion=None)
    before = phantom.pixels.astype(np.float32) / phantom.pixels.max() * 255
    now, _ = draw(before, phantom.lungs > 0, Sign.OPACITY, np.random.default_rng(2), 1.5)
    for name, film in (("a", before), ("b", now)):
        Image.fromarray(film.round().clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    with browser_page(1440, 900) as (page, wrong, expect):
        page.goto(server.address)
        expect(page.locator("#status")).to_contain_text("Ready")
        page.set_input_files("#drop input[type=file]", [str(tmp_path / "a.png"), str(tmp_path / "b.png")])
        expect(page.locator(".film-1")).to_contain_text("Film 2")
        page.click("#mark-1")
        expect(page.locator(".film-1")).to_contain_text("Prior film")
        expect(page.locator("#study li", has_text="Prior film")).to_contain_text("earlier")
        if not compare:
            page.get_by_role("button", name="Options").click()
            page.get_by_role("checkbox", name="Compare with the prior film").uncheck()
        page.click("#write")
        expect(page.locator("#status")).to_contain_text("Draft done")
        report = page.locator("#report")
        draft = server.draft(page.evaluate("sessionStorage.getItem('emrrg-session')"))
        opacity = draft.finding("opacity")
        assert opacity is not None
        if compare:
            expect(report).to_contain_text("new since the prior film")
            assert opacity.change == "new"
            assert [film.read for film in draft.prior] == [True]
            page.locator("#report .rr-item .rr-item-text").first.click()
            expect(page.locator("#report .rr-item").first).to_contain_text("new since the prior film")
            page.locator("#was-read [data-finding=opacity]").click()
            expect(page.locator("#was-read .rr-laid")).to_contain_text("new since the prior film")
        else:
            expect(report).to_contain_text("opacity")
            expect(report).not_to_contain_text("prior film")
            assert draft.prior == ()
            check_switching_off(page, server, expect)
        assert wrong == []


def check_switching_off(page: Any, server: Server, expect: Any) -> None:
    """The reader says that the opacity is not there: what rests on it changes in both sections, and nothing else."""
    id = page.evaluate("sessionStorage.getItem('emrrg-session')")
    before = server.session(id).report
    page.select_option("select[data-says=opacity]", "absent")
    expect(page.locator("#status")).to_contain_text("written anew")
    after = server.session(id).report
    for section in ("findings", "impression"):
        was = [line for line in before.lines if line.section == section]
        now = {line.id: line for line in after.lines if line.section == section}
        changed = [line for line in was if now[line.id] != line]
        assert any(states_opacity(line.text) for line in changed), section
        assert all(spoken(line.text).keys() & {"Lung Opacity", "Pneumonia", "No Finding"} for line in changed)
    assert not any(states_opacity(line.text) for line in after.lines if line.choice.value != "deleted")
    page.keyboard.press("u")
    expect(page.locator("#status")).to_contain_text("Undone.")
    assert server.session(id).report.lines == before.lines


def states_opacity(text: str) -> bool:
    return (said := spoken(text).get("Lung Opacity")) is not None and bool(said.states)


def test_a_draft_can_be_stopped_and_what_was_written_is_kept(server: Server) -> None:
    with browser_page(390, 844) as (page, wrong, expect):
        page.goto(server.address)
        expect(page.locator("#status")).to_contain_text("Ready")
        page.click("#example")
        expect(page.locator(".film-0")).to_contain_text("PA view")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a telephone must not scroll sideways"
        page.click("#write")
        expect(page.locator("#stop")).to_be_enabled()
        expect(page.locator("#new")).to_be_disabled()
        page.click("#stop")
        expect(page.locator("#status")).to_contain_text(re.compile("Stopped|Draft done"))  # done: it was quicker
        expect(page.locator("#write")).to_be_enabled()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []


def test_a_film_can_be_taken_out_and_a_readers_words_outlive_a_new_draft(server: Server, films: list[Path]) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        page.goto(server.address)
        expect(page.locator("#status")).to_contain_text("Ready")
        expect(page.locator("#remove-1")).to_be_hidden()
        page.set_input_files("#drop input[type=file]", [str(path) for path in films[:3]])
        expect(page.locator(".film-2")).to_contain_text("Film 3")
        pictures = [page.locator(f".film-{n} img").get_attribute("src") for n in range(3)]
        page.click("#remove-2")
        expect(page.locator(".film-2")).to_have_count(0)
        assert [page.locator(f".film-{n} img").get_attribute("src") for n in range(2)] == [pictures[0], pictures[2]]
        expect(page.locator(".film-1")).to_contain_text("Film 2")
        expect(page.locator("#remove-3")).to_be_hidden()
        page.click("#remove-1")
        expect(page.locator(".film-1")).to_have_count(0)

        earlier = page.locator("#earlier textarea")

        def write(words: str) -> None:
            page.locator("#report [data-section=findings] [data-action=add]").last.click()
            page.locator("#report textarea").fill(words)
            page.keyboard.press("Enter")
            expect(page.locator("#report .rr-item", has_text=words)).to_be_visible()

        write("Written by hand.")
        expect(earlier).to_be_hidden()
        page.click("#write")
        expect(earlier).to_have_value("Findings: Written by hand.")
        expect(page.locator("#remove-1")).to_be_hidden()
        expect(page.locator("#write")).to_be_enabled()

        for again in ("By hand again.", None):  # the second draft is not edited: nothing is added
            if again:
                write(again)
            page.click("#write")
            expect(page.locator("#stop")).to_be_enabled()
            expect(earlier).to_have_value(re.compile(r"By hand again\.[\s\S]*\n\nFindings: Written by hand\.$"))
            kept = earlier.input_value()
            expect(page.locator("#write")).to_be_enabled()
        assert kept.count("Written by hand.") == 1

        page.click("#close")
        page.click("#notice [data-action=close]")
        expect(page.locator("#films")).to_contain_text("No film yet")
        expect(earlier).to_be_hidden()
        expect(page.locator("#remove-1")).to_be_hidden()
        assert wrong == []


COUNTING = """
import json, sys, app
from emrrg_core import Reporter

def holds_film(session):
    kept = any(getattr(value, "held", ()) for value in session.state_data.values())
    return kept or "data:image" in json.dumps(session.config_values, default=str)

demo = app.build_demo(Reporter.load(sys.argv[1]))
print(app.launch(demo), flush=True)
for line in sys.stdin:
    print(sum(holds_film(session) for session in list(demo.state_holder.session_data.values())), flush=True)
demo.close(verbose=False)
"""


def test_two_tabs_never_see_each_others_films_and_a_closed_one_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "GRADIO_HEARTBEAT_INTERVAL": "0.5"}
    environment["EMRRG_HOME"] = str(a_home(tmp_path / "home"))
    with subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(checkpoint)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def sessions_with_film() -> int:
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        address = process.stdout.readline().strip()
        with browser_page(1200, 800) as (page, wrong, expect):
            other = page.context.browser.new_page()
            for tab in (page, other):
                tab.set_default_timeout(SLOW)
                tab.goto(address)
                expect(tab.locator("#status")).to_contain_text("Ready")
            page.click("#example")
            expect(page.locator(".film-0")).to_contain_text("PA view")
            other.click("#write")
            expect(other.locator("#status [role=alert]")).to_contain_text("Choose a chest film first")
            assert sessions_with_film() == 1
            page.close()
            deadline = time.monotonic() + SLOW / 1000
            while sessions_with_film():
                assert time.monotonic() < deadline, "a closed tab left its film on the server"
                other.wait_for_timeout(100)
            expect(other.locator("#films")).to_contain_text("No film yet")
            assert wrong == []
        process.stdin.close()


def test_a_stopped_server_leaves_no_upload_behind(checkpoint: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, checkpoint)
    request = urllib.request.Request(
        f"{server.address}/gradio_api/upload",
        data=multipart([(b'Content-Disposition: form-data; name="files"; filename="x"', b"1")], b"b"),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (path,) = json.load(answer)
    assert Path(path).exists()
    assert server.stop() == 0
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_a_missing_checkpoint_is_told_in_a_sentence_on_the_screen(tmp_path: Path) -> None:
    server = Server(tmp_path, tmp_path / "nowhere")
    try:
        with browser_page(800, 600) as (page, _, expect):
            page.goto(server.address)
            expect(page.locator("#status [role=alert]")).to_contain_text("checkpoint")
    finally:
        server.stop()
    assert "Traceback" not in server.output()


def test_a_map_of_the_draft_lies_on_the_films_own_pixels(draft: Draft) -> None:
    heat = heat_map(draft, 0, draft.sentences[0].tokens)
    assert heat is not None
    assert heat.shape == (200, 160)
    assert decoded(viewer.layer(heat, overlay)).shape == (200, 160, 4)
