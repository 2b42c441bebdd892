"""Marks and contours over a film: the numbers, the drawn key image, and what a browser draws, tells and takes away."""

import html
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emrrg_core import Draft, EmrrgError, Film
from emrrg_core.explain.marks import POINTS, Mark, draw_marks, in_words, length, ratio
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES
from emrrg_core.report.draft import FilmRecord
from tests.test_draft_panels import READ, draft_of
from ui import draft_panels, keys, viewer
from ui.pixel_endpoint import packed

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = Path("/usr/bin/chromium")
SLOW = 120_000  # milliseconds: the machine may be busy
SITE = "http://127.0.0.1:9/"  # answered in the browser itself: nothing is asked of the network
SHAPE, SPACING = (400, 300), (0.8, 0.5)  # taller than wide; rows lie farther apart than columns


def a_mark(kind: str, *points: tuple[float, float]) -> Mark:
    return Mark(kind, points)


# --- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "mm"),
    [
        ((0.7, 0.2), 0.5 * 300 * 0.5),  # along a row: the spacing between columns
        ((0.2, 0.7), 0.5 * 400 * 0.8),  # down a column: the spacing between rows
        ((0.5, 0.5), math.hypot(0.3 * 300 * 0.5, 0.3 * 400 * 0.8)),
    ],
)
def test_a_length_counts_rows_and_columns_by_their_own_spacing(to: tuple[float, float], mm: float) -> None:
    for points in (((0.2, 0.2), to), (to, (0.2, 0.2))):
        assert length(a_mark("ruler", *points), SHAPE, SPACING) == pytest.approx(mm)


@pytest.mark.parametrize("heart_first", [True, False])
@pytest.mark.parametrize("to_the_left", [True, False])
def test_a_ratio_is_heart_over_chest_however_the_two_are_drawn(heart_first: bool, to_the_left: bool) -> None:
    heart, chest = [(0.4, 0.6), (0.65, 0.6)], [(0.1, 0.8), (0.9, 0.8)]
    if to_the_left:
        heart, chest = heart[::-1], chest[::-1]
    points = heart + chest if heart_first else chest + heart
    assert ratio(a_mark("ratio", *points)) == pytest.approx(0.25 / 0.8)
    assert ratio(a_mark("ratio", *[(0.5, 0.5)] * 4)) == 0, "of no width at all: no division by nothing"


RATIO = a_mark("ratio", (0.3, 0.6), (0.7, 0.6), (0.1, 0.8), (0.9, 0.8))


@pytest.mark.parametrize(
    ("mark", "spacing", "view", "words"),
    [
        (a_mark("ruler", (0, 0), (1, 0)), SPACING, "PA", "150 mm"),
        (a_mark("ruler", (0, 0), (0, 1)), None, "PA", "400 pixels, no scale"),
        (RATIO, SPACING, "PA", "CTR 0.50"),
        (RATIO, None, "PA", "CTR 0.50"),
        (RATIO, SPACING, "AP", "CTR 0.50, AP: overestimates"),
        (RATIO, SPACING, None, "CTR 0.50, view not known"),
        (a_mark("arrow", (0, 0), (1, 1)), None, None, "Arrow"),
    ],
)
def test_the_words_say_what_a_number_lacks(
    mark: Mark, spacing: tuple[float, float] | None, view: str | None, words: str
) -> None:
    assert in_words(mark, SHAPE, spacing, view) == words


@pytest.mark.parametrize("kind", POINTS)
def test_a_mark_comes_back_as_it_was_kept(kind: str) -> None:
    mark = a_mark(kind, *[(n / 7, 1 - n / 9) for n in range(POINTS[kind])])
    assert Mark.of(json.loads(json.dumps(mark.to_dict()))) == mark


LINE = [[0.1, 0.2], [0.3, 0.4]]


@pytest.mark.parametrize(
    "given",
    [
        None,
        "ruler",
        [],
        {},
        {"kind": "ruler"},
        {"points": LINE},
        {"kind": "circle", "points": LINE},
        {"kind": ["ruler"], "points": LINE},
        {"kind": "ruler", "points": LINE[:1]},
        {"kind": "ruler", "points": LINE * 2},
        {"kind": "ratio", "points": LINE},
        {"kind": "ruler", "points": [[0.1, 0.2, 0.3], [0.3, 0.4]]},
        {"kind": "ruler", "points": [[0.1, 1.01], [0.3, 0.4]]},
        {"kind": "ruler", "points": [[-0.01, 0.2], [0.3, 0.4]]},
        {"kind": "ruler", "points": [[math.nan, 0.2], [0.3, 0.4]]},
        {"kind": "ruler", "points": [["here", "there"], [0.3, 0.4]]},
        {"kind": "ruler", "points": 7},
    ],
)
def test_what_is_no_mark_is_refused_with_what_to_do(given: Any) -> None:
    with pytest.raises(EmrrgError, match="draw it again"):
        Mark.of(given)


# --- drawn for a key image ----------------------------------------------------------------------------------------------


def from_line(shape: tuple[int, int], start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """How far each pixel lies from a line, in pixels."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width].astype(float)
    a, b, c, d = start[0] * width, start[1] * height, end[0] * width, end[1] * height
    share = np.clip(
        ((columns - a) * (c - a) + (rows - b) * (d - b)) / max((c - a) ** 2 + (d - b) ** 2, 1e-9),
        0,
        1,
    )
    return np.hypot(columns - a - share * (c - a), rows - b - share * (d - b))


def grey(value: int = 90) -> np.ndarray:
    return np.full((*SHAPE, 3), value, np.uint8)


def test_an_arrow_changes_the_pixels_along_its_line_and_no_others() -> None:
    start, end = (0.2, 0.3), (0.7, 0.6)
    picture = grey()
    drawn = draw_marks(picture, [a_mark("arrow", start, end)], SHAPE, SPACING, "PA")
    changed, away = (drawn != picture).any(axis=2), from_line(SHAPE, start, end)
    assert changed[away < 1].all()
    assert not changed[away > 12].any()
    assert (picture == 90).all(), "the film itself is left as it is"
    tip, tail = (
        from_line(SHAPE, place, place) < 15  # the head is at the end: more is drawn there
        for place in (end, start)
    )
    assert changed[tip].sum() > 1.5 * changed[tail].sum()


def test_a_ruler_has_its_words_at_its_end_and_nothing_elsewhere() -> None:
    start, end = (0.1, 0.5), (0.5, 0.5)
    picture = grey()
    drawn = draw_marks(picture, [a_mark("ruler", start, end)], SHAPE, SPACING, "PA")
    changed, away = (drawn != picture).any(axis=2), from_line(SHAPE, start, end)
    assert changed[away < 1].all()
    elsewhere = away > 12
    elsewhere[150:210, 145:230] = False  # the words: above, at the right of the end
    assert not (changed & elsewhere).any()
    assert (changed & ~elsewhere & (away > 12)).any(), "the words are there"
    without = draw_marks(picture, [a_mark("ruler", start, end)], SHAPE, None, "PA")
    assert (without != drawn).any(), "a length without a scale says so"


def test_words_at_the_edge_stay_in_the_picture_and_a_small_picture_has_room_for_marks() -> None:
    mark = a_mark("ruler", (0.2, 0.01), (1.0, 0.0))
    drawn = draw_marks(grey(), [mark], SHAPE, None, None)
    ink = (drawn == (255, 222, 89)).all(axis=2)
    assert ink[:, :-8].any()
    assert drawn.shape == (*SHAPE, 3)
    small = draw_marks(np.zeros((40, 30, 3), np.uint8), [mark, RATIO], SHAPE, None, None)
    assert small.shape == (40, 30, 3)


def test_without_marks_the_picture_is_the_film() -> None:
    picture = grey()
    assert draw_marks(picture, (), SHAPE, SPACING, "PA") is picture


# --- contours -----------------------------------------------------------------------------------------------------------

SIDE = 14


def spot(row: int, column: int) -> np.ndarray:
    """A map (g²,) of one warm place."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    heat = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)
    return (heat / heat.sum()).ravel()


EVEN = np.full(SIDE * SIDE, 1 / SIDE**2)
MAPS = {"abnormal": spot(7, 7), "opacity": spot(10, 3), "nodule": EVEN, "effusion": spot(11, 11), "heart": spot(9, 6)}


def a_film(name: str = "Film 1", *, spacing: tuple[float, float] | None = SPACING, view: str | None = "PA") -> Film:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    pixels = (0.2 + 0.5 * rows / SHAPE[0] + 0.2 * columns / SHAPE[1]).astype(np.float32)
    return Film(name, pixels, spacing, view, ("a step",), f"{name}{view}", "PNG")


def read_of(films: Sequence[Film]) -> Draft:
    """A draft that has read READ in these films, each finding with its own map."""
    read = tuple(replace(finding, maps=tuple(MAPS[finding.name] for _ in films)) for finding in READ)
    records = tuple(
        FilmRecord(film.name, film.format, film.sha256, *film.pixels.shape, film.spacing, film.view, film.steps)
        for film in films
    )
    return replace(draft_of(["Clear."]), read=read, films=records)


def given(body: str) -> dict[str, Any]:
    found = re.fullmatch(r'<div class="rr-outlines" data-outlines="([^"]*)"></div>', body)
    assert found
    return dict(json.loads(html.unescape(found[1])))


def test_every_finding_has_one_path_over_every_film_and_an_even_map_has_none() -> None:
    films = [a_film(), a_film("Film 2")]
    told = given(viewer.outlines(read_of(films), (0, 1), films, {}))
    assert list(told["films"]) == [film.sha256 for film in films]
    for paths in told["films"].values():
        assert list(paths) == ["opacity", "nodule", "effusion", "heart"], "any abnormality is no finding with a place"
        assert paths["nodule"] == "", "a map that points nowhere has no contour"
        for name in ("opacity", "effusion", "heart"):
            assert paths[name].count("M") == 1
            points = np.array([float(each) for each in re.findall(r"[\d.]+", paths[name])]).reshape(-1, 2)
            row, column = divmod(int(MAPS[name].argmax()), SIDE)
            assert np.allclose(points.mean(axis=0), [(column + 0.5) / SIDE * 1000, (row + 0.5) / SIDE * 1000], atol=30)
    assert told["colours"] == draft_panels.COLOURS


@pytest.mark.parametrize(
    ("says", "on"),
    [
        ({}, ["effusion", "heart"]),
        ({"effusion": "absent"}, ["heart"]),
        ({"effusion": "silent", "heart": "absent"}, []),
        ({"effusion": "left"}, ["effusion", "heart"]),
    ],
)
def test_contours_of_what_is_stated_are_on_at_first_but_not_what_the_reader_says_is_not_there(
    says: Mapping[str, str], on: list[str]
) -> None:
    film = a_film()
    assert given(viewer.outlines(read_of([film]), (0,), [film], {}, says))["on"] == on


def test_marks_stand_beside_the_contours_and_without_a_draft_too() -> None:
    film, mark = a_film(), a_mark("ruler", (0.1, 0.2), (0.3, 0.4))
    assert viewer.outlines(None, (), [film], {}) == ""
    told = given(viewer.outlines(None, (), [film], {film.sha256: [mark]}))
    assert told["films"] == {}
    assert [Mark.of(each) for each in told["marks"][film.sha256]] == [mark]
    silent = replace(read_of([film]), read=None)
    assert given(viewer.outlines(silent, (0,), [film], {}))["films"] == {film.sha256: {}}


def test_a_contour_of_a_stitched_film_lies_where_the_film_lay() -> None:
    film = a_film()
    draft = read_of([film])
    left_half = replace(draft.films[0], place=(0.0, 0.0, 1.0, 0.5))
    whole = given(viewer.outlines(draft, (0,), [film], {}))["films"][film.sha256]["opacity"]
    laid = given(viewer.outlines(replace(draft, films=(left_half,)), (0,), [film], {}))["films"][film.sha256]["opacity"]
    assert laid
    assert laid != whole


# --- in a real browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-background-networking"], timeout=SLOW
        )
        yield started
        started.close()


def page_of(films: Sequence[Film], *more: str) -> str:
    """A page as the app makes it, of the viewer, its keys and more of the Read screen."""
    styles = "".join((ROOT / "ui" / name).read_text("utf-8") for name in ("viewer.css", "draft_panels.css"))
    return (
        f"<!doctype html><meta charset=utf-8><style>{styles}</style>{keys.HEAD}{viewer.HEAD}"
        f'<body><div id="read"></div><template><div id="films">{viewer.figures(films)}</div>{"".join(more)}{keys.dialog()}</template>'
        "<script>document.getElementById('read').append(document.querySelector('template').content)</script>"  # at once, as Gradio does
    )


@pytest.fixture
def shown(browser: Any) -> Iterator[Callable[..., Any]]:
    """shown(films, …): these films in a page; what it complains of fails the test."""
    pages: list[tuple[Any, list[str]]] = []

    def show(films: Sequence[Film], *more: str) -> Any:
        page = browser.new_page(viewport={"width": 900, "height": 800})
        page.set_default_timeout(SLOW)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        whole = {film.sha256: packed(film.pixels) for film in films}
        body = page_of(films, *more)

        def answer(route: Any) -> None:
            if route.request.url == SITE:
                route.fulfill(body=body, content_type="text/html;charset=utf-8")
            else:
                route.fulfill(body=next(iter(whole.values())), content_type="application/octet-stream")

        page.route("**/*", answer)
        page.goto(SITE)
        page.wait_for_selector(".rr-viewer[data-adopted]")
        page.evaluate(
            "() => { window.told = []; document.addEventListener('rr-marks', (event) => told.push(event.detail)); }"
        )
        rest(page)
        pages.append((page, wrong))
        return page

    yield show
    for page, wrong in pages:
        page.close()
        assert wrong == []


def rest(page: Any) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_timeout(50)


def at(page: Any, film: int = 0) -> dict[str, float]:
    """Where a film lies in the window."""
    return dict(
        page.locator(f".film-{film} .rr-stage").evaluate(
            "stage => { const box = stage.getBoundingClientRect(), place = emrrgViewer.place(stage);"
            " return {left: box.left + place.left, top: box.top + place.top, width: place.width, height: place.height}; }"
        )
    )


def drag(page: Any, start: tuple[float, float], end: tuple[float, float], film: int = 0, *, up: bool = True) -> None:
    """From one place of a film to another, in shares of it."""
    place = at(page, film)
    (a, b), (c, d) = ((place["left"] + x * place["width"], place["top"] + y * place["height"]) for x, y in (start, end))
    page.mouse.move(a, b)
    page.mouse.down()
    page.mouse.move((a + c) / 2, (b + d) / 2)
    page.mouse.move(c, d)
    if up:
        page.mouse.up()
    rest(page)


def told(page: Any) -> list[dict[str, Any]]:
    """The events that tell the screen of marks."""
    return list(page.evaluate("told"))


def listed(page: Any, film: int = 0) -> list[str]:
    """What stands below a film of its marks."""
    return [text.removesuffix(" ✕") for text in page.locator(f".film-{film} .rr-ink-list button").all_text_contents()]


def lines(page: Any, film: int = 0) -> list[tuple[float, ...]]:
    """The long lines drawn over a film, as shares of it."""
    place = at(page, film)
    box = page.locator(f".film-{film} .rr-stage").bounding_box()
    drawn = page.locator(f".film-{film} .rr-inks line.rr-ink").evaluate_all(
        "lines => lines.map((line) => ['x1', 'y1', 'x2', 'y2'].map((name) => Number(line.getAttribute(name))))"
    )
    long = [each for each in drawn if math.dist(each[:2], each[2:]) > 20]
    offsets = (box["x"] - place["left"], box["y"] - place["top"]) * 2
    sizes = (place["width"], place["height"]) * 2
    return [
        tuple((value + offset) / size for value, offset, size in zip(each, offsets, sizes, strict=True))
        for each in long
    ]


@pytest.mark.parametrize(("spacing", "ends"), [(SPACING, "mm"), (None, "pixels, no scale")])
def test_a_ruler_shows_the_length_that_python_computes_and_survives_zoom(
    shown: Callable[..., Any], spacing: tuple[float, float] | None, ends: str
) -> None:
    page = shown([film := a_film(spacing=spacing)])
    page.keyboard.press("t")
    drag(page, (0.2, 0.3), (0.7, 0.8))
    (event,) = told(page)
    assert event["film"] == film.sha256
    (mark,) = (Mark.of(each) for each in event["marks"])
    assert np.allclose(mark.points, [(0.2, 0.3), (0.7, 0.8)], atol=0.005)
    words = in_words(mark, SHAPE, spacing, "PA")
    assert words.endswith(ends)
    assert listed(page) == [words]
    assert page.locator(".rr-over text").text_content() == words
    before = lines(page)
    assert np.allclose(before, [sum(mark.points, ())], atol=0.003)

    wide = at(page)["width"]
    for _ in range(3):
        page.keyboard.press("+")
    page.wait_for_timeout(300)
    assert at(page)["width"] > 1.5 * wide
    assert listed(page) == [words]
    assert np.allclose(lines(page), before, atol=0.003), "the line stays on its place of the film"
    assert len(told(page)) == 1, "to zoom is no new mark"


@pytest.mark.parametrize("view", ["PA", "AP", None])
def test_a_ratio_is_drawn_in_two_drags_and_warns_as_python_does(shown: Callable[..., Any], view: str | None) -> None:
    page = shown([a_film(view=view)])
    page.keyboard.press("b")
    drag(page, (0.35, 0.6), (0.65, 0.7))
    assert told(page) == [], "half a ratio is no ratio"
    assert len(lines(page)) == 1
    assert listed(page) == []
    drag(page, (0.1, 0.8), (0.9, 0.75))
    (event,) = told(page)
    (mark,) = (Mark.of(each) for each in event["marks"])
    assert mark.kind == "ratio"
    assert mark.points[0][1] == mark.points[1][1], "both lines are level: widths are measured"
    assert ratio(mark) == pytest.approx(0.3 / 0.8, abs=0.01)
    assert listed(page) == [in_words(mark, SHAPE, SPACING, view)]


def test_escape_forgets_the_half_of_a_ratio(shown: Callable[..., Any]) -> None:
    page = shown([a_film()])
    page.keyboard.press("b")
    drag(page, (0.1, 0.5), (0.2, 0.5))
    page.keyboard.press("Escape")
    rest(page)
    assert lines(page) == []
    drag(page, (0.4, 0.5), (0.6, 0.5))
    assert told(page) == [], "this is the first half of a new one"
    drag(page, (0.1, 0.7), (0.9, 0.7))
    (mark,) = (Mark.of(each) for each in told(page)[0]["marks"])
    assert ratio(mark) == pytest.approx(0.25, abs=0.01)


def test_a_click_draws_nothing_and_a_cross_takes_a_mark_away(shown: Callable[..., Any]) -> None:
    first, second = a_film(), a_film("Film 2", spacing=None)
    page = shown([first, second])
    page.keyboard.press("t")
    drag(page, (0.5, 0.5), (0.501, 0.5))
    assert told(page) == []
    drag(page, (0.1, 0.2), (0.6, 0.2))
    page.keyboard.press("g")
    drag(page, (0.1, 0.6), (0.6, 0.9))
    drag(page, (0.3, 0.3), (0.8, 0.3), film=1)
    assert listed(page) == ["75 mm", "Arrow"]
    assert listed(page, 1) == ["Arrow"], "each film has its own"
    page.locator(".film-0 [data-unmark]").first.click()
    rest(page)
    assert listed(page) == ["Arrow"]
    last = told(page)[-1]
    assert (last["film"], [each["kind"] for each in last["marks"]]) == (first.sha256, ["arrow"])
    page.locator(".film-0 [data-unmark]").click()
    rest(page)
    assert told(page)[-1] == {"film": first.sha256, "marks": []}
    assert listed(page) == lines(page) == []
    assert listed(page, 1) == ["Arrow"]


def test_marks_that_the_server_kept_are_drawn_again(shown: Callable[..., Any]) -> None:
    film, mark = a_film(), a_mark("ruler", (0.25, 0.5), (0.75, 0.5))
    page = shown([film], viewer.outlines(None, (), [film], {film.sha256: [mark]}))
    assert listed(page) == ["75 mm"]
    assert np.allclose(lines(page), [(0.25, 0.5, 0.75, 0.5)], atol=0.003)
    assert told(page) == [], "the server knows them"


def paths(page: Any) -> dict[str, str]:
    """Contours that are seen, by finding: their colour."""
    return dict(
        page.locator(".rr-lines path").evaluate_all(
            "paths => paths.filter((path) => path.getClientRects().length).map((path) => [path.dataset.finding, getComputedStyle(path).stroke])"
        )
    )


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[n : n + 2], 16)) for n in (1, 3, 5))})"


def test_the_swatch_of_a_finding_draws_and_removes_its_contour_and_m_hides_all(shown: Callable[..., Any]) -> None:
    film = a_film()
    draft = read_of([film])
    says = {"heart": "absent"}
    page = shown([film], viewer.outlines(draft, (0,), [film], {}, says), draft_panels.findings_html(draft, says=says))
    page.wait_for_selector(".rr-lines path")
    colours = {name: rgb(colour) for name, colour in draft_panels.COLOURS.items()}

    def on(*names: str) -> dict[str, str]:
        return {name: colours[name] for name in names}

    assert paths(page) == on("effusion"), "what the reader says is not there is not drawn at first"
    eyes = {name: page.locator(f'[data-eye="{name}"]') for name in ("effusion", "heart", "opacity", "nodule")}
    page.locator(".rr-finds-rest summary").first.click()
    assert eyes["effusion"].get_attribute("aria-pressed") == "true"
    assert eyes["heart"].get_attribute("aria-pressed") == "false"
    eyes["opacity"].click()
    rest(page)
    assert paths(page) == on("effusion", "opacity")
    assert eyes["opacity"].get_attribute("aria-pressed") == "true"
    eyes["heart"].click()
    eyes["effusion"].click()
    eyes["nodule"].click()
    rest(page)
    assert paths(page) == on("opacity", "heart"), "an even map has no contour to draw"

    box = page.locator('.rr-lines path[data-finding="opacity"]').bounding_box()
    place = at(page)
    middle = (
        (box["x"] + box["width"] / 2 - place["left"]) / place["width"],
        (box["y"] + box["height"] / 2 - place["top"]) / place["height"],
    )
    assert middle == pytest.approx((3.5 / SIDE, 10.5 / SIDE), abs=0.04)

    page.keyboard.press("m")
    rest(page)
    assert paths(page) == {}
    page.keyboard.press("m")
    rest(page)
    assert paths(page) == on("opacity", "heart")


def test_contours_belong_to_the_films_of_the_read_screen_alone() -> None:
    """Teach shows a case's film before its answer: no contour may give it away."""
    script = (ROOT / "ui" / "overlay.js").read_text("utf-8")
    assert 'stage.closest("#read") ? outlines.films[mine]' in script


def test_every_finding_has_a_colour_of_its_own() -> None:
    assert set(NAMES) - {ABNORMAL} == draft_panels.COLOURS.keys()
    assert len(set(draft_panels.COLOURS.values())) == len(draft_panels.COLOURS)
