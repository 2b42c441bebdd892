"""The viewer: what window, zoom and the rest make of a film, in numbers and on the screen of a real browser."""

import asyncio
import base64
import gc
import io
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

import app
from emrrg_core import Film, overlay
from ui import keys, viewer
from ui.pixel_endpoint import LONGEST, PixelEndpoint, address, packed
from ui.window_level import AS_READ, PRESETS, Window, windowed, windows

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = Path("/usr/bin/chromium")
SLOW = 60_000  # milliseconds: the machine may be busy


def a_film(name: str, height: int, width: int, seed: int = 0) -> Film:
    """A film of 12 bits in which no two neighbouring pixels are alike, darker on the left and at the top, with a bright
    square, a thirtieth of the width, in the middle of the left upper quarter."""
    rows, columns = np.mgrid[:height, :width]
    grain = ((rows * 7 + columns * 13 + seed) % 97) / 97
    pixels = 0.05 + 0.5 * columns / width + 0.2 * rows / height + 0.1 * grain
    half = width // 60
    pixels[height // 4 - half : height // 4 + half, width // 4 - half : width // 4 + half] = 1
    pixels = (np.rint(pixels * 4095) / 4095).astype(np.float32)
    return Film(name, pixels, None, "PA", ("a step",), f"{name}{height}{width}{seed}", "PNG")


def heat_of(film: Film) -> np.ndarray:
    """Looked at: the bright square."""
    heat = np.zeros(film.pixels.shape, np.float32)
    height, width = heat.shape
    heat[height // 4 - width // 20 : height // 4 + width // 20, width // 4 - width // 20 : width // 4 + width // 20] = 1
    return heat


# --- window and level, in numbers ---------------------------------------------------------------------------------------


def test_as_read_changes_nothing_and_inversion_turns_black_to_white() -> None:
    pixels = np.linspace(0, 1, 256, dtype=np.float32)
    assert windowed(pixels, AS_READ).tolist() == list(range(256))
    assert windowed(pixels, AS_READ, inverted=True).tolist() == list(range(255, -1, -1))


@pytest.mark.parametrize(
    ("value", "tone"), [(0.3, 0), (0.4, 0), (0.45, 64), (0.5, 128), (0.55, 191), (0.6, 255), (0.9, 255)]
)
def test_a_window_spreads_its_part_from_black_to_white_and_cuts_the_rest(value: float, tone: int) -> None:
    assert abs(int(windowed(np.array(value), Window(0.5, 0.2))) - tone) <= 1


def test_sixteen_bits_fill_a_narrow_window_where_eight_leave_steps() -> None:
    pixels = np.linspace(0, 1, 100_000)
    eight, narrow = np.rint(pixels * 255) / 255, Window(0.5, 0.1)
    assert np.unique(windowed(np.rint(pixels * 65535) / 65535, narrow)).size == 256
    assert np.unique(windowed(eight, narrow)).size <= 28


def test_a_preset_cuts_the_share_of_the_films_tones_that_it_states() -> None:
    film = a_film("Film 1", 600, 500)
    spread = windows(film.pixels)
    assert spread[0] == AS_READ
    for preset, window in list(zip(PRESETS, spread, strict=True))[1:]:
        assert preset.percentiles
        low, high = preset.percentiles
        tones = film.pixels[film.pixels < 1]
        assert abs(100 * (tones < window.level - window.width / 2).mean() - low) < 1.5
        assert abs(100 * (tones <= window.level + window.width / 2).mean() - high) < 1.5


def test_black_and_white_borders_do_not_move_a_preset() -> None:
    pixels = a_film("Film 1", 600, 500).pixels
    framed = np.pad(np.pad(pixels, 200), 100, constant_values=1)
    for plain, in_frame in zip(windows(pixels), windows(framed), strict=True):
        assert math.isclose(plain.level, in_frame.level, abs_tol=0.01)
        assert math.isclose(plain.width, in_frame.width, abs_tol=0.01)


@pytest.mark.parametrize("tone", [0.0, 0.4, 1.0])
def test_a_film_of_one_tone_has_presets_too(tone: float) -> None:
    for window in windows(np.full((200, 200), tone, np.float32)):
        assert window.width > 0
        assert math.isfinite(window.level)


# --- the full film ------------------------------------------------------------------------------------------------------


def unpacked(body: bytes) -> np.ndarray:
    height, width = np.frombuffer(body, "<u4", 2)
    return np.frombuffer(body, "<u2", offset=8).reshape(height, width) / 65535


def test_the_browser_gets_every_pixel_of_the_film_with_sixteen_bits() -> None:
    pixels = a_film("Film 1", 300, 200).pixels
    assert np.abs(unpacked(packed(pixels)) - pixels).max() <= 0.51 / 65535


def test_a_film_too_large_for_a_browser_is_sent_smaller() -> None:
    pixels = np.tile(np.linspace(0, 1, 160, dtype=np.float32), (2 * LONGEST, 1))
    sent = unpacked(packed(pixels))
    assert sent.shape == (LONGEST, 80)
    assert np.abs(sent[7] - pixels[7].reshape(80, 2).mean(axis=1)).max() < 0.01


def asked(path: str, method: str = "GET") -> tuple[int | None, dict[bytes, bytes], bytes]:
    """Status (None: not for us, passed on), headers and body that the middleware answers with."""
    sent: list[dict] = []

    async def inner(*_: object) -> None:
        sent.append({"status": None, "headers": []})

    async def collect(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request"}

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(PixelEndpoint(inner)(scope, receive, collect))  # type: ignore[arg-type]
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent)


def test_a_film_is_served_only_at_its_own_address_and_only_as_long_as_it_is_held() -> None:
    film, other = a_film("Film 1", 200, 200), a_film("Film 2", 200, 200)
    path = f"/{address(film)}"
    assert address(film) == path[1:], "the same film, the same address: the page does not fetch it twice"
    assert address(other) != path[1:]
    assert len(path.rpartition("/")[2]) >= 32
    status, headers, body = asked(path)
    assert status == 200
    assert headers[b"cache-control"] == b"no-store"
    assert np.allclose(unpacked(body), film.pixels, atol=1e-5)
    assert asked(f"/behind/a/proxy{path}")[0] == 200
    assert asked(path, "POST")[0] == 404
    assert asked(f"{path}x")[0] == 404
    assert asked("/gradio_api/info")[0] is None
    del film
    gc.collect()
    assert asked(path)[0] == 404


# --- the page -----------------------------------------------------------------------------------------------------------


def test_a_prior_film_is_labelled_and_said_to_be_unread() -> None:
    pair = [a_film("Film 1", 200, 200), a_film("Film 2", 200, 200)]
    plain, marked = viewer.figures(pair), viewer.figures(pair, prior={1})
    assert "prior" not in plain
    assert 'data-linked="0"' in plain
    assert 'data-linked="1"' in marked, "two films of one view are compared place by place"
    first, second = marked.split("<figure ")[1:]
    assert "prior" not in first
    assert "film-1 rr-prior" in second
    assert "Film 2 · prior" in second
    assert second.count("prior film · ") == 2, "for eyes, and in the picture's description"
    named = viewer.figures([a_film("Prior film", 200, 200)], prior={0})
    assert "Prior film · prior<" not in named, "a name that says so is not said twice"


def test_one_film_has_no_controls_for_several() -> None:
    one, two = a_film("Film 1", 200, 200), a_film("Film 2", 200, 200)
    assert "Side by side" not in viewer.figures([one])
    assert "Side by side" in viewer.figures([one, two])


def test_a_films_name_cannot_write_into_the_page() -> None:
    film = a_film('<b>"x"', 200, 200)
    page = viewer.figures([film, a_film("Film 2", 200, 200)], prior={0})
    assert "<b>&quot;" not in page.replace("<b>&lt;b&gt;&quot;", "")
    assert '<b>"x' not in page


def test_every_control_has_a_name_and_every_preset_says_what_it_does() -> None:
    page = viewer.figures([a_film("Film 1", 200, 200)])
    for attributes, text in re.findall(r"<button([^>]*)>(.*?)</button>", page):
        assert re.search("[A-Za-z0-9]", text) or "aria-label=" in attributes
    assert len(re.findall("<label", page)) == len(re.findall("<input", page))
    for preset in PRESETS:
        assert preset.words.replace("'", "&#x27;") in page


def test_maps_of_one_part_of_the_page_leave_the_others_alone() -> None:
    sheet = viewer.layers([np.eye(8, dtype=np.float32)], overlay, within="#teach")
    rules = re.findall(r"([^{}>]+)\{", sheet)
    assert rules
    assert all(rule.strip().startswith("#teach ") for rule in rules)


def test_the_legend_shows_the_colours_of_the_map() -> None:
    sheet = viewer.layers([np.eye(8, dtype=np.float32)], overlay)
    stops = [tuple(map(float, stop)) for stop in re.findall(r"rgb\((\d+) (\d+) (\d+)/([\d.]+)\)", sheet)]
    assert stops[0][3] == 0
    white = np.full((1, 2), 1.0)
    painted = overlay(white, np.array([[0.5, 1.0]], np.float32), 1.0)[0]
    for stop, pixel in zip((stops[len(stops) // 2], stops[-1]), painted, strict=True):
        red, green, blue, alpha = stop
        assert np.abs(255 * (1 - alpha) + alpha * np.array([red, green, blue]) - pixel).max() < 3


def test_the_script_can_stand_in_a_page() -> None:
    for head, scripts in ((viewer.HEAD, 2), (keys.HEAD, 2)):
        assert head.count("<script>") == head.count("</script") == scripts
        assert head.endswith("</script>")
        assert "http" not in head.replace('"http://www.w3.org/2000/svg"', "")


def test_the_caption_is_one_line_and_the_rest_stands_behind_its_button() -> None:
    film = replace(a_film("Film 1", 300, 200), spacing=(0.2, 0.14), steps=("inverted", "<b>cropped"))
    (caption,) = re.findall(r"<figcaption>(.*)</figcaption>", viewer.figures([film]))
    line, _, behind = caption.partition("<button")
    assert re.sub("<[^>]*>", "", line) == "Film 1 · PA view · as read"
    assert 'data-do="about"' in behind
    assert 'aria-expanded="false"' in behind
    assert '<div class="rr-inspect" hidden>' in behind
    for words in ("200 × 300 pixels", "0.2 × 0.14 mm per pixel", "<li>inverted</li>", "<li>&lt;b&gt;cropped</li>"):
        assert words in behind
        assert words not in line
    assert "bit" not in re.sub("<[^>]*>", " ", viewer.figures([film])), "depth is no word for readers"


def test_without_a_film_the_page_offers_examples_and_says_what_may_be_dropped() -> None:
    page = viewer.figures(())
    offered = re.findall(
        r'<button type="button" data-action="example" data-name="(\w+)"( id=example)?>(.*?)</button>', page
    )
    assert [(name, words) for name, _, words in offered] == list(viewer.EXAMPLES.items())
    assert [name for name, mark, _ in offered if mark] == ["real"], "the film that is no drawing"
    for kind in ("DICOM", "PNG", "JPEG", "TIFF", "zip", "folder"):
        assert kind in page


def test_a_scale_is_given_to_the_browser_only_where_it_is_known() -> None:
    film = a_film("Film 1", 300, 200)
    assert "data-mm" not in viewer.figures([film])
    assert 'data-mm="0.2 0.14"' in viewer.figures([replace(film, spacing=(0.2, 0.14))])
    assert 'data-view="PA"' in viewer.figures([film])
    assert 'data-view=""' in viewer.figures([replace(film, view=None)])


# --- in a real browser --------------------------------------------------------------------------------------------------

SIZES = ((2400, 2000, 0), (1000, 1200, 5))


def serve() -> None:
    """A page with two films and buttons that render them anew, as the Read screen does; run in a process of its own."""
    held = [a_film(f"Film {n}", *size) for n, size in enumerate(SIZES, start=1)]
    heat = heat_of(held[0])

    def forget() -> None:
        held.clear()
        gc.collect()

    with gr.Blocks() as demo:
        figures = gr.HTML("", elem_id="pictures")
        layers = gr.HTML("", elem_id="layers")
        gr.HTML(
            '<p id="report" tabindex="0">The heart is enlarged.</p><textarea id="typed" aria-label="Report"></textarea>'
        )
        gr.HTML(keys.dialog())
        for name, fn, out in (
            ("one", lambda: viewer.figures(held[:1]), figures),
            ("two", lambda: viewer.figures(held), figures),
            ("prior", lambda: viewer.figures(held, prior={1}), figures),
            ("second", lambda: viewer.figures(held[1:]), figures),
            ("none", lambda: viewer.figures(()), figures),
            ("map", lambda: viewer.layers([heat, None], overlay), layers),
            ("forget", forget, None),
        ):
            gr.Button(name, elem_id=f"do-{name}").click(fn, None, out, api_visibility="private")
    print(app.launch(demo), flush=True)
    sys.stdin.read()
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", "from tests.test_viewer import serve; serve()"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        base = process.stdout.readline().strip()
        assert base.startswith("http"), base
        yield base
        process.stdin.close()


@contextmanager
def open_page(
    site: str, *, width: int = 1000, height: int = 900, touch: bool = False, known: str = "no error"
) -> Iterator:
    """A page of a real browser that shows the first film; what it complains of, but for `known`, fails the test."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM) if CHROMIUM.exists() else None,
            args=["--no-sandbox", "--disable-background-networking"],
        )
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch)
            page.set_default_timeout(SLOW)
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            page.goto(site)
            press(page, "one")
            yield page
            assert [each for each in wrong if known not in each] == []
        finally:
            browser.close()


def press(page, name: str) -> None:
    """Have the server render something, and wait until the viewer has taken it up."""
    page.click(f"#do-{name}")
    shown = {"one": "Film 1", "two": "Film 2", "prior": "prior film ·", "second": "Film 2"}.get(name, "")
    page.wait_for_function(
        """([name, shown]) => {
            const text = document.querySelector('#pictures').textContent, viewer = document.querySelector('.rr-viewer');
            if (name === 'none') return text.includes('No film yet');
            const right = name !== 'second' && name !== 'one' || document.querySelectorAll('.rr-film').length === 1;
            return viewer && text.includes(shown) && right && 'adopted' in viewer.dataset;
        }""",
        arg=[name, shown],
    )
    if name == "map":
        page.wait_for_function("getComputedStyle(document.querySelector('.film-0 .rr-map')).backgroundImage != 'none'")
    rest(page)


def rest(page) -> None:
    """Until what was drawn coarsely in a movement has been drawn finely."""
    page.wait_for_timeout(400)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def does(page, action: str, value: int | str | None = None) -> None:
    page.click(f'[data-do="{action}"]' + ("" if value is None else f'[data-value="{value}"]'))


def now(page, film: int = 0) -> str:
    return page.locator(f".film-{film} .rr-now").text_content().replace("\N{NO-BREAK SPACE}", " ")


def wait_full(page, film: int = 0) -> None:
    page.wait_for_function(
        "film => document.querySelector(`.film-${film} .rr-now`).textContent.endsWith('· full film')", arg=film
    )
    rest(page)


def slide(page, name: str, per_cent: float) -> None:
    page.locator(f'[data-set="{name}"]').evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        per_cent,
    )
    rest(page)


def canvas(page, film: int = 0) -> np.ndarray:
    """The canvas' grey tones (height, width)."""
    address = page.locator(f".film-{film} canvas").evaluate(
        "canvas => canvas.hidden ? '' : canvas.toDataURL('image/png')"
    )
    assert address, "the canvas is not shown"
    return picture(address)[..., 0]


def picture(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def place(page, film: int = 0) -> tuple[float, float, float, float]:
    """Left, top, width and height of the film in its stage: where the map's box lies, which follows the film."""
    return tuple(
        page.locator(f".film-{film} .rr-stage").evaluate(
            """stage => {
                const moved = new DOMMatrix(getComputedStyle(stage.querySelector('.rr-map')).transform);
                const ratio = Number(stage.style.getPropertyValue('--ratio'));
                const width = Math.min(stage.clientWidth, stage.clientHeight * ratio), height = width / ratio;
                return [(stage.clientWidth - width) / 2 + moved.e, (stage.clientHeight - height) / 2 + moved.f,
                    width * moved.a, height * moved.d];
            }"""
        )
    )


def expected(pixels: np.ndarray, at: tuple[float, float, float, float], shape: tuple[int, ...]) -> np.ndarray:
    """The film's values (shape) where it lies at `at`, NaN around it: halved until it is hardly larger than it is
    shown, then linear between the four nearest pixels."""
    left, top, width, height = at
    ratio, step = min(pixels.shape[1] / width, pixels.shape[0] / height), 1
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    small = pixels.astype(np.float64)
    while step * 2 <= ratio:
        rows, columns = small.shape[0] // 2 * 2, small.shape[1] // 2 * 2
        small = small[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
        step *= 2
    x = (np.arange(shape[1]) + 0.5 - left) * across / step - 0.5
    y = (np.arange(shape[0]) + 0.5 - top) * down / step - 0.5
    inside = np.ix_((y > -0.49) & (y < small.shape[0] - 0.51), (x > -0.49) & (x < small.shape[1] - 0.51))
    x, y = x.clip(0, small.shape[1] - 1), y.clip(0, small.shape[0] - 1)
    a, b = x.astype(int), y.astype(int)
    c, d = np.minimum(a + 1, small.shape[1] - 1), np.minimum(b + 1, small.shape[0] - 1)
    fx, fy = x - a, (y - b)[:, None]
    values = (1 - fy) * (small[np.ix_(b, a)] * (1 - fx) + small[np.ix_(b, c)] * fx)
    values += fy * (small[np.ix_(d, a)] * (1 - fx) + small[np.ix_(d, c)] * fx)
    out = np.full(shape, np.nan)
    out[inside] = values[inside]
    return out


def check(page, film: Film, window: Window, *, inverted: bool = False, number: int = 0) -> None:
    """What the canvas shows is what numpy makes of the film, black around it."""
    shown = canvas(page, number).astype(int)
    values = expected(film.pixels, place(page, number), shown.shape)
    inside = ~np.isnan(values)
    assert inside.mean() > 0.4
    wanted = windowed(values[inside], window, inverted=inverted).astype(int)
    off = np.abs(shown[inside] - wanted)
    # the viewer's shares between two neighbours are 256ths, and neighbours differ by up to a tenth of the scale
    allowed = 1 + 255 * 0.1 / window.width * 0.03
    assert np.quantile(off, 0.5) <= 1
    assert np.quantile(off, 0.999) <= allowed, f"{np.quantile(off, [0.5, 0.9, 0.99, 0.999])} off"


def test_window_presets_and_inversion_show_what_numpy_makes_of_the_film(site: str) -> None:
    film = a_film("Film 1", *SIZES[0])
    spread = windows(film.pixels)
    with open_page(site) as page:
        assert re.fullmatch(r"as read · zoom \d+ %", now(page)), "no full film is fetched before anybody asks"
        assert page.locator(".film-0 canvas").is_hidden(), "nor is anything drawn"
        for number in range(1, len(PRESETS)):
            does(page, "preset", number)
            wait_full(page)
            check(page, film, spread[number])
            assert page.locator(".rr-words").text_content() == f"{PRESETS[number].name}: {PRESETS[number].words}"
        does(page, "invert")
        rest(page)
        check(page, film, spread[-1], inverted=True)
        assert "inverted" in now(page)

        slide(page, "width", 10)
        slide(page, "level", 40)
        check(page, film, Window(0.4, 0.1), inverted=True)
        assert "window 10 %, level 40 %, inverted" in now(page)
        assert page.locator(".rr-words").text_content() == "Set by hand."

        does(page, "reset")
        rest(page)
        check(page, film, AS_READ)
        assert now(page).startswith("as read · zoom")
        screen = np.asarray(Image.open(io.BytesIO(page.locator(".film-0 .rr-stage").screenshot())).convert("L")).astype(
            int
        )
        height, width = np.minimum(screen.shape, canvas(page).shape)
        assert np.abs(screen[:height, :width] - canvas(page)[:height, :width]).mean() < 8, "the canvas is on the screen"


def test_the_preview_gives_way_to_the_full_film_once_the_window_narrows(site: str) -> None:
    with open_page(site) as page:
        does(page, "invert")
        page.wait_for_function("!document.querySelector('.film-0 canvas').hidden")
        assert "full film" not in now(page), "to invert, eight bits are enough"
        does(page, "invert")
        slide(page, "width", 6)
        wait_full(page)
        does(page, "actual")
        rest(page)
        assert "zoom 100 %" in now(page)
        assert np.unique(canvas(page)).size > 200, "eight bits would leave some 17 tones"


def drag(page, start: tuple[float, float], by: tuple[float, float], button: str = "left") -> None:
    page.mouse.move(*start)
    page.mouse.down(button=button)
    page.mouse.move(start[0] + by[0], start[1] + by[1], steps=4)
    page.mouse.up(button=button)
    rest(page)


def test_the_wheel_zooms_where_the_pointer_is(site: str) -> None:
    film = a_film("Film 1", *SIZES[0])
    with open_page(site) as page:
        stage = page.locator(".film-0 .rr-stage").bounding_box()
        left, top, width, height = place(page)
        x, y = left + width / 4, top + height / 4  # the bright square
        page.mouse.move(stage["x"] + x, stage["y"] + y)
        scrolled = page.evaluate("scrollY")
        for _ in range(6):
            page.mouse.wheel(0, -200)
            page.wait_for_timeout(50)
        wait_full(page)
        assert page.evaluate("scrollY") == scrolled, "zooming does not scroll the page"
        at = place(page)
        assert at[2] > 3 * width
        assert abs(at[0] + at[2] / 4 - x) < 6, "eleven times closer: half a pixel of the pointer's place"
        assert abs(at[1] + at[3] / 4 - y) < 6
        assert canvas(page)[round(y), round(x)] > 250
        check(page, film, AS_READ)

        page.mouse.dblclick(stage["x"] + x, stage["y"] + y)
        rest(page)
        assert abs(place(page)[2] - width) < 1
        page.mouse.dblclick(stage["x"] + x, stage["y"] + y)
        rest(page)
        assert "zoom 100 %" in now(page)
        does(page, "fit")
        rest(page)
        assert abs(place(page)[2] - width) < 1


def test_a_drag_windows_and_only_space_shift_or_the_middle_button_moves_the_film(site: str) -> None:
    film = a_film("Film 1", *SIZES[0])
    with open_page(site) as page:
        box = page.locator(".film-0 .rr-stage").bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        whole = place(page)
        drag(page, middle, (-0.3 * box["width"], 0))
        wait_full(page)
        assert "window 70 %, level 50 %" in now(page)
        assert place(page) == whole
        drag(page, middle, (0, 0.1 * box["height"]))
        assert "window 70 %, level 60 %" in now(page), "down is darker"
        check(page, film, Window(0.6, 0.7))

        does(page, "in")
        does(page, "in")
        rest(page)
        before = place(page)
        drag(page, middle, (0.1 * box["width"], 0))
        assert "window 80 %, level 60 %" in now(page), "of a film that is zoomed too"
        assert place(page) == before
        told = now(page)
        for held, button in ((" ", "left"), ("Shift", "left"), ("", "middle")):
            before = place(page)
            if held:
                page.keyboard.down(held)
            drag(page, middle, (40, 25), button)
            if held:
                page.keyboard.up(held)
            after = place(page)
            assert abs(after[0] - before[0] - 40) < 1.5, held or button
            assert abs(after[1] - before[1] - 25) < 1.5
            assert now(page) == told
            does(page, "fit")
            does(page, "in")
            does(page, "in")
            rest(page)
            told = now(page)
        check(page, film, Window(0.6, 0.8))
        assert not page.evaluate("document.documentElement.classList.contains('rr-space')")

        before = place(page)
        drag(page, middle, (0, -100), "right")
        after = place(page)
        assert abs(after[2] / before[2] - math.exp(0.6)) < 0.02, "the right button zooms"
        assert now(page).partition(" · zoom")[0] == told.partition(" · zoom")[0]


def test_a_chosen_tool_says_what_a_drag_means_until_another_is_chosen(site: str) -> None:
    with open_page(site) as page:
        box = page.locator(".film-0 .rr-stage").bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

        def chosen() -> list[str]:
            return page.locator('[data-do=tool][aria-pressed="true"]').evaluate_all(
                "buttons => buttons.map((button) => button.dataset.value)"
            )

        whole = place(page)
        assert chosen() == ["window"]
        page.keyboard.press("z")
        assert chosen() == ["zoom"]
        drag(page, middle, (0, -100))
        assert abs(place(page)[2] / whole[2] - math.exp(0.6)) < 0.02
        assert now(page).startswith("as read")
        page.keyboard.press("z")
        assert chosen() == ["window"], "pressed again it is put away"
        does(page, "tool", "ruler")
        assert chosen() == ["ruler"]
        before = place(page)
        drag(page, middle, (60, 40))
        assert place(page) == before
        assert now(page).startswith("as read")
        assert page.locator(".film-0 [data-unmark]").count() == 1
        page.locator(".film-0 [data-unmark]").click()
        page.keyboard.press("w")
        assert chosen() == ["window"]
        drag(page, middle, (-50, 0))
        assert "window" in now(page)


def test_a_whole_film_lets_the_page_scroll_under_the_wheel(site: str) -> None:
    with open_page(site, height=500) as page:
        stage = page.locator(".film-0 .rr-stage").bounding_box()
        page.mouse.move(stage["x"] + 300, stage["y"] + 100)
        page.mouse.wheel(0, 120)
        page.wait_for_function("scrollY > 0")


def test_keys_of_the_film_work_wherever_the_focus_is_but_rest_while_a_reader_types(site: str) -> None:
    film = a_film("Film 1", *SIZES[0])
    spread = windows(film.pixels)
    with open_page(site) as page:
        whole = place(page)
        assert page.evaluate("document.activeElement.id") in ("", "do-one")
        page.keyboard.press("3")
        wait_full(page)
        check(page, film, spread[2])
        page.focus("#report")
        page.keyboard.press("i")
        rest(page)
        check(page, film, spread[2], inverted=True)
        page.focus("#typed")
        for key in ("i", "2", "r", "m", "z", "+", "?"):
            page.keyboard.press(key)
        rest(page)
        assert page.input_value("#typed") == "i2rmz+?", "a letter is a letter"
        assert page.locator("dialog[open]").count() == 0
        check(page, film, spread[2], inverted=True)
        assert abs(place(page)[2] - whole[2]) < 1

        page.locator(".film-0 .rr-stage").focus()
        page.keyboard.press("Shift+ArrowLeft")
        page.keyboard.press("Shift+ArrowUp")
        rest(page)
        check(page, film, Window(spread[2].level - 0.02, spread[2].width - 0.02), inverted=True)
        page.keyboard.press("+")
        page.keyboard.press("+")
        rest(page)
        assert abs(place(page)[2] - whole[2] * 1.25**2) < 1
        before = place(page)
        page.keyboard.press("ArrowDown")
        rest(page)
        assert abs(before[1] - place(page)[1] - 60) < 1.5
        page.keyboard.press("-")
        page.keyboard.press("o")
        rest(page)
        assert "zoom 100 %" in now(page)
        page.keyboard.press("0")
        page.keyboard.press("r")
        rest(page)
        assert abs(place(page)[2] - whole[2]) < 1
        check(page, film, AS_READ)
        for number, window in enumerate(spread):
            page.keyboard.press(str(number + 1))
            rest(page)
            check(page, film, window)
        page.keyboard.press("Control+i")
        rest(page)
        assert "inverted" not in now(page), "with Ctrl a key is the browser's"


def test_f_shows_the_film_on_the_whole_screen(site: str) -> None:
    with open_page(site) as page:
        if not page.evaluate("document.fullscreenEnabled"):
            pytest.skip("this browser has no full screen")
        page.keyboard.press("f")
        page.wait_for_function("document.fullscreenElement?.matches('.rr-viewer')")
        page.wait_for_function("document.querySelector('[data-do=screen]').getAttribute('aria-pressed') === 'true'")
        assert page.locator(".film-0 .rr-stage").bounding_box()["width"] > 990
        page.keyboard.press("f")
        page.wait_for_function("!document.fullscreenElement")


def test_the_inspector_and_the_levels_open_and_close(site: str) -> None:
    with open_page(site) as page:
        for action, behind in (("about", ".film-0 .rr-inspect"), ("window", ".rr-window")):
            button, panel = page.locator(f"[data-do={action}]"), page.locator(behind)
            assert panel.is_hidden(), "closed at first"
            for is_open in (True, False):
                button.click()
                assert button.get_attribute("aria-expanded") == str(is_open).lower()
                assert panel.is_visible() == is_open
        does(page, "about")
        assert "2000 × 2400 pixels" in page.locator(".film-0 .rr-inspect").inner_text()
        assert "a step" in page.locator(".film-0 .rr-inspect").inner_text()


def test_the_map_lies_on_the_film_follows_it_fades_and_goes(site: str) -> None:
    film = a_film("Film 1", *SIZES[0])
    heat = heat_of(film)
    with open_page(site) as page:
        tools = page.locator(".rr-maptools")
        assert tools.is_hidden(), "without a map there is nothing to fade"
        press(page, "map")
        assert tools.is_visible()

        def tone() -> np.ndarray:
            """Colour on the screen beside the bright square, inside the map."""
            left, top, width, height = place(page)
            stage = page.locator(".film-0 .rr-stage")
            shot = np.asarray(Image.open(io.BytesIO(stage.screenshot(animations="disabled"))).convert("RGB")).astype(
                float
            )
            x, y = round(left + width * 0.215), round(top + height * 0.25)
            return shot[y - 3 : y + 4, x - 3 : x + 4].mean(axis=(0, 1))

        row, column = round(film.pixels.shape[0] * 0.25), round(film.pixels.shape[1] * 0.215)
        around = (slice(row - 15, row + 16), slice(column - 15, column + 16))
        for opacity in (0.5, 1.0, 0.0):
            slide(page, "opacity", 100 * opacity)
            painted = overlay(film.pixels[around], heat[around], opacity).mean(axis=(0, 1))
            assert np.abs(tone() - painted).max() < 6
        slide(page, "opacity", 50)
        coloured = tone()
        assert np.ptp(coloured) > 30
        does(page, "in")
        does(page, "in")
        does(page, "in")
        rest(page)
        assert np.abs(tone() - coloured).max() < 10, "the map moves with the film"
        does(page, "map")
        rest(page)
        assert np.ptp(tone()) < 3
        page.keyboard.press("m")
        rest(page)
        assert np.ptp(tone()) > 30
        page.locator(".film-0 .rr-stage").focus()
        page.keyboard.press("m")
        rest(page)
        assert np.ptp(tone()) < 3


def test_what_was_chosen_for_a_film_stays_with_it_when_the_films_are_rendered_anew(site: str) -> None:
    first, second = (a_film(f"Film {n}", *size) for n, size in enumerate(SIZES, start=1))
    lungs = windows(first.pixels)[2]
    with open_page(site) as page:
        does(page, "preset", 2)
        does(page, "in")
        wait_full(page)
        for state in ("two", "prior", "two"):
            press(page, state)
            check(page, first, lungs)
        page.locator(".film-1 .rr-stage").click()
        does(page, "invert")
        page.wait_for_function("document.querySelector('.film-1 .rr-now').textContent.includes('inverted')")
        does(page, "actual")
        does(page, "in")  # beyond one to one: the preview's compression would show
        wait_full(page, 1)
        check(page, second, AS_READ, inverted=True, number=1)
        check(page, first, lungs)
        press(page, "second")  # Gradio now makes the first film's elements show the second film
        check(page, second, AS_READ, inverted=True)
        press(page, "none")
        press(page, "one")
        wait_full(page)
        check(page, first, lungs)


def test_side_by_side_films_are_moved_together_when_linked_and_alone_when_not(site: str) -> None:
    with open_page(site, width=1400) as page:
        press(page, "two")
        boxes = [page.locator(f".film-{n} .rr-stage").bounding_box() for n in range(2)]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["width"] == boxes[1]["width"]
        whole = [place(page, n) for n in range(2)]
        page.locator(".film-0 .rr-stage").focus()
        page.keyboard.press("+")
        rest(page)
        assert place(page, 0)[2] > 1.2 * whole[0][2]
        assert place(page, 1) == whole[1], "two views are not linked by themselves"

        press(page, "prior")
        assert page.locator("[data-do=link]").get_attribute("aria-pressed") == "true", "a prior is"
        assert page.locator(".film-1 .rr-badge").text_content() == "Film 2 · prior"
        page.locator(".film-0 .rr-stage").focus()
        page.keyboard.press("+")
        page.keyboard.press("+")
        rest(page)
        page.keyboard.press("ArrowDown")
        rest(page)
        zoomed = [place(page, n) for n in range(2)]
        for before, after in zip(whole, zoomed, strict=True):
            assert abs(after[2] / before[2] - 1.25**3) < 0.01
        page.keyboard.press("l")
        page.keyboard.press("0")
        rest(page)
        assert abs(place(page, 0)[2] - whole[0][2]) < 1
        assert place(page, 1) == zoomed[1]

        does(page, "show", 1)
        rest(page)
        assert page.locator(".film-0").is_hidden()
        assert page.locator(".film-1 .rr-stage").bounding_box()["width"] > 1.8 * boxes[1]["width"]
        does(page, "show", "all")
        assert page.locator(".film-0").is_visible()


def test_on_a_telephone_fingers_zoom_the_film_and_nothing_is_cut_off(site: str) -> None:
    with open_page(site, width=390, height=844, touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        press(page, "two")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".film-1").is_hidden(), "two films side by side would be too small: one at a time"
        does(page, "show", 1)
        does(page, "show", 0)
        rest(page)
        for button in page.locator(".rr-tools button:visible").all():
            assert button.bounding_box()["height"] >= 40
        page.locator(".film-0 .rr-stage").scroll_into_view_if_needed()
        stage = page.locator(".film-0 .rr-stage")
        whole = place(page)
        box = stage.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        assert stage.evaluate("stage => getComputedStyle(stage).touchAction") == "pan-y", "one finger scrolls the page"
        touch = page.context.new_cdp_session(page)

        def fingers(kind: str, spread: float | None) -> None:
            points = [] if spread is None else [{"x": x - spread, "y": y, "id": 0}, {"x": x + spread, "y": y, "id": 1}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        fingers("touchStart", 40)
        for spread in range(45, 121, 5):
            fingers("touchMove", spread)
        fingers("touchEnd", None)
        rest(page)
        assert abs(place(page)[2] / whole[2] - 3) < 0.3
        assert stage.evaluate("stage => getComputedStyle(stage).touchAction") == "none", "now it moves the film"
        assert page.evaluate("visualViewport.scale") == 1


def test_a_film_that_the_server_no_longer_holds_is_told_and_the_preview_stays(site: str) -> None:
    """The last test of this server: it forgets its films."""
    with open_page(site, known="404") as page:
        page.click("#do-forget")
        page.wait_for_timeout(2000)
        does(page, "preset", 2)
        page.wait_for_function("document.querySelector('.rr-now').textContent.includes('could not be loaded')")
        rest(page)
        film = a_film("Film 1", *SIZES[0])
        shown = canvas(page)
        values = expected(film.pixels, place(page), shown.shape)
        inside = ~np.isnan(values)
        wanted = windowed(values[inside], windows(film.pixels)[2]).astype(int)
        assert np.abs(shown[inside].astype(int) - wanted).mean() < 12, "windowed from eight bits"
