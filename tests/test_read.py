"""The Read screen: a report made of a draft sentence by sentence, kept over reloads and restarts, signed, exported, asked."""

import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from emrrg_core import Draft, EmrrgError, Film, Report, Reporter, Sessions, read_film
from emrrg_core.memory.cases import Memory
from emrrg_core.model.finding_tokens import Finding, Presence
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.draft import NOT_REVIEWED, FilmRecord, sections
from emrrg_core.report.session_store import SessionGoneError
from tests.phantom import make_phantom
from tests.test_app import SLOW, Server, browser_page
from ui import draft_panels, editor, exports, messages, viewer
from ui.read.drafting import own_words
from ui.read.progress import followed
from ui.session_state import SessionState

FINDINGS = ("The heart is of normal size.", "There is a small left pleural effusion.", "The lungs are unchanged.")
IMPRESSION = ("No pleural effusion.",)
OWN = "A granuloma <b>on the right</b>, 5 mm & calcified."
READ = {  # name, presence, probability, threshold, side; the patch that its map is
    ("abnormal", Presence.PRESENT, 0.91, 0.5, ""): 0,
    ("opacity", Presence.OPEN, 0.3, 0.6, ""): 5,
    ("effusion", Presence.PRESENT, 0.83, 0.61, "left"): 15,
    ("heart", Presence.ABSENT, 0.02, 0.55, ""): 6,
}


def what_was_read(films: int) -> tuple[Finding, ...]:
    """Four findings, each seen in one patch of 4 × 4, of each film the next one."""
    patches = np.eye(16, dtype=np.float32)
    return tuple(
        Finding(*known, maps=tuple(patches[(patch + film) % 16] for film in range(films)))
        for known, patch in READ.items()
    )


@pytest.fixture(scope="module")
def reporter(checkpoint: Path) -> Reporter:
    return Reporter.load(checkpoint)


@pytest.fixture(scope="module")
def drafted(reporter: Reporter, tokenizer: Any) -> Callable[..., Draft]:
    """A draft of our own words about films, as the tiny model might have written them."""

    def make(
        films: list[Film], findings: tuple[str, ...] = FINDINGS, impression: tuple[str, ...] = IMPRESSION
    ) -> Draft:
        text = f"Findings: {' '.join(findings)}\nImpression: {' '.join(impression)}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rng = np.random.default_rng(0)
        tokens = tuple(
            Token(
                number,
                tokenizer.decode([number]),
                float(np.log(rng.uniform(0.3, 1))),
                tuple(rng.uniform(0.1, 1, 2)),
                rng.dirichlet(np.ones(16), 2).astype(np.float32),
                np.zeros((2, 0), np.float32),
            )
            for number in ids
        )
        assert "".join(token.text for token in tokens) == text
        found, concluded, sentences = sections(Writing(tokens, True, -1.0))
        records = [
            FilmRecord(film.name, film.format, film.sha256, *film.pixels.shape, film.spacing, film.view, film.steps)
            for film in films
        ]
        return Draft(
            found,
            concluded,
            sentences,
            tokens,
            tuple(reporter._model.hybrid.indices()),
            4,
            tuple(records),
            (),
            {"total": 1.0},
            reporter.names,
            {"seed": 0},
            True,
            read=what_was_read(len(films)),
            ratio=0.47,
        )

    return make


@pytest.fixture(scope="module")
def rg1() -> Path:
    return Path(str(get_testdata_file("RG1_UNCR.dcm", download=False)))


@pytest.fixture(scope="module")
def stranger(rg1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM film that the server has no copy of, as it has of the example."""
    header = pydicom.dcmread(rg1)
    pixels = header.pixel_array.copy()
    pixels[:40, :40] = 0
    header.PixelData, header.SOPInstanceUID = pixels.tobytes(), "2.25.7"
    header.file_meta.MediaStorageSOPInstanceUID = "2.25.7"
    path = tmp_path_factory.mktemp("stranger") / "film.dcm"
    header.save_as(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six phantom films as files."""
    folder = tmp_path_factory.mktemp("films")
    for seed in range(6):
        make_phantom(seed, height=200, width=160).save_png(folder / f"{seed}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def state(drafted: Callable[..., Draft], rg1: Path) -> SessionState:
    """A real film and a draft of it, nothing reviewed."""
    made = SessionState()
    assert made.take([rg1], first=None) == []
    made.draft = drafted(made.films)
    made.report = Report.of(made.draft)
    return made


# --- the report's lines ------------------------------------------------------------------------------------------------


def test_every_action_of_the_screen_is_one_of_the_report() -> None:
    report = editor.apply(Report(), {"action": "add", "section": "findings", "text": OWN})
    report = editor.apply(report, {"action": "add", "section": "findings", "text": "Second.", "after": 0})
    report = editor.apply(report, {"action": "edit", "line": 1, "text": "Third."})
    assert report.findings == f"{OWN} Third."
    report = editor.apply(report, {"action": "delete", "line": 0})
    assert report.findings == "Third."
    report = editor.apply(editor.apply(report, {"action": "undo"}), {"action": "redo"})
    report = editor.apply(report, {"action": "restore", "line": 0})
    report = editor.apply(report, {"action": "retype", "section": "impression", "text": "One. Two."})
    assert [line.text for line in report.lines] == [OWN, "Third.", "One.", "Two."]
    report = editor.apply(report, {"action": "field", "name": "indication", "text": "Cough."})
    assert report.fields.indication == "Cough."
    assert editor.apply(report.sign(), {"action": "unsign"}).status == "preliminary"


def test_several_sentences_are_accepted_in_one_step(state: SessionState) -> None:
    report = editor.apply(state.report, {"action": "accept-rest", "lines": [0, 2]})
    assert [line.choice.value for line in report.lines] == ["accepted", "unreviewed", "accepted", "unreviewed"]
    assert editor.apply(report, {"action": "undo"}).lines == state.report.lines


@pytest.mark.parametrize(
    "action",
    [
        {},
        {"action": "to_dict"},
        {"action": "accept"},
        {"action": "accept", "line": None},
        {"action": "accept", "line": "one"},
        {"action": "accept", "line": 99},
        {"action": "add", "section": "history", "text": "x"},
        {"action": "add"},
        {"action": "sign", "confirmed": []},  # who signs has to have decided on the warnings: ui.read.events
        {"action": "accept-rest"},
        {"action": "accept-rest", "lines": ["x"]},
        {"action": "decide"},
        {"action": "decide", "key": "x"},
        {"action": "field", "name": "signed", "text": "x"},
    ],
)
def test_an_action_that_makes_no_sense_is_refused_in_words(action: dict[str, Any]) -> None:
    with pytest.raises(EmrrgError, match=r"\w \w"):
        editor.apply(Report(), action)


def test_what_a_reader_types_is_text_and_never_markup(state: SessionState) -> None:
    report = state.report.edit(0, OWN).add("impression", "<script>1</script>")
    page = editor.html_of(report, state.draft)
    assert "<b>on the right" not in page
    assert "<script" not in page
    assert "&lt;b&gt;on the right&lt;/b&gt;, 5 mm &amp; calcified" in page


def rows_of(page: str) -> list[str]:
    return re.findall(r'<li class="rr-item.*?</li>', page, re.DOTALL)


def test_a_warning_stands_at_its_sentence_with_its_ends_until_it_is_decided(state: SessionState) -> None:
    page = editor.html_of(state.report, state.draft, state.cautions)
    assert [row.count('class="rr-caution"') for row in rows_of(page)] == [0, 1, 1, 2]
    assert "earlier film" in rows_of(page)[2]
    keys = [caution.key for caution in state.cautions if caution.line is not None]
    assert re.findall(r'class="rr-caution" data-key="(\w+)"', "".join(rows_of(page))) == keys
    state.report = editor.apply(state.report, {"action": "decide", "key": keys[1]})
    page = editor.html_of(state.report, state.draft, state.cautions)
    assert [row.count('class="rr-caution"') for row in rows_of(page)] == [0, 1, 0, 2]
    state.report = state.report.edit(2, "The lungs have not changed.")
    assert "earlier film" in rows_of(editor.html_of(state.report, state.draft, state.cautions))[2], (
        "other words, asked anew"
    )


def test_fields_stand_above_the_findings_and_what_is_typed_there_is_no_markup(state: SessionState) -> None:
    state.report = state.report.with_field("indication", '<img src=x onerror="1">')
    page = editor.html_of(state.report, state.draft)
    assert page.index('data-field="indication"') < page.index('data-section="findings"')
    assert "<img" not in page
    assert "&lt;img src=x" in page


def test_a_sentence_of_the_report_shows_its_findings_probability_and_never_its_words(state: SessionState) -> None:
    page = editor.html_of(state.report.edit(2, OWN), state.draft).replace("\N{NO-BREAK SPACE}", " ")
    rows = re.findall(r'<li class="rr-item rr-\w+ (rr-[\w-]+)".*?</li>', page, re.DOTALL)
    shown = re.findall(r'<span class="rr-measure">(.*?)</span>', page)
    assert shown == [
        "enlarged heart 2 %, stated from 55 %",
        "pleural effusion 83 %, stated from 61 %",
        "pleural effusion 83 %, stated from 61 % (read as present, yet denied)",
    ], "none of the reader's own words"
    assert rows == ["rr-sure", "rr-sure", "rr-own-words", "rr-unsure"]
    streaming = re.findall(r'<li class="rr-item (rr-\w+)"', editor.writing(state.draft))
    assert streaming == [draft_panels.band(state.draft, sentence)[0] for sentence in state.draft.sentences]


def test_the_map_of_a_finding_is_its_own_on_the_films_own_pixels(
    drafted: Callable[..., Draft], pictures: list[Path]
) -> None:
    films = [read_film(path) for path in pictures[:2]]
    draft = drafted(films)
    finding = draft.finding("effusion")
    assert finding is not None
    second, first = viewer.maps_of(draft, finding, [1, 0])
    assert first.shape == films[0].pixels.shape == (200, 160)
    assert first.sum() == pytest.approx(1)
    assert first[150:, 120:].sum() == pytest.approx(1), "the last patch"
    assert second[:50, :40].sum() == pytest.approx(1), "the other film has another map"


# --- the session state of a tab ------------------------------------------------------------------------------------------


def test_a_kept_report_tells_which_films_to_drop_and_takes_them_back_by_their_pixels(
    state: SessionState, drafted: Callable[..., Draft], pictures: list[Path], tmp_path: Path
) -> None:
    store = Sessions(tmp_path)
    first = SessionState()
    assert first.take(pictures[:2], first=1) == []
    first.mark(1)
    assert first.take([pictures[2]], first=1) == []
    assert [film.name for film in first.shown] == ["Film 1", "Film 2", "Prior film"]
    assert [film.name for film in first.films] == ["Film 1", "Film 2"]
    first.draft = drafted(first.films)
    first.report = Report.of(first.draft).accept(0)
    assert first.keep(store) is None

    later = SessionState()
    later.open(store.load(first.session.id))
    assert later.report == first.report
    assert later.has_prior
    assert later.missing == [0, 1]
    page = messages.films(later, [])
    assert "Drop Film 1" in page
    assert "prior film" in page
    assert later.take([pictures[2]], first=1) == []  # the second of the draft
    assert (later.missing, later.places, [film.name for film in later.films]) == ([0], [1], ["Film 2"])
    assert later.take([pictures[1], pictures[0]], first=1) == []
    assert (later.missing, later.places, later.priors) == ([], [0, 1], {2})
    assert later.take([pictures[3]], first=1) == []
    assert "two patients" in later.waiting[0].words
    assert later.use_other(0) is None
    assert later.priors == {2, 3}, "a film of another day is shown and not given to the model"


def test_one_bad_file_among_good_ones_is_named_by_its_place_and_the_good_ones_stay(pictures: list[Path]) -> None:
    damaged = pictures[0].with_name("damaged")
    damaged.write_bytes(b"no film at all")
    state = SessionState()
    (said,) = state.take([pictures[0], damaged, pictures[1]], first=1)
    damaged.unlink()
    assert [film.name for film in state.films] == ["Film 1", "Film 2"]
    assert said.startswith("File 2 was not taken. ")
    assert "damaged" not in said


def test_five_films_are_refused_in_a_sentence_that_counts_them(pictures: list[Path]) -> None:
    state = SessionState()
    assert state.take(pictures[:5], first=1) == [
        "A study may have at most 4 films; 5 were given. Leave some out and drop the others again."
    ]
    state.take(pictures[:3], first=1)
    (said,) = state.take(pictures[3:5], first=1)
    assert "3 here and 2 more were given" in said
    assert len(state.films) == 3


def test_the_same_image_is_not_taken_twice(pictures: list[Path]) -> None:
    state = SessionState()
    said = state.take([pictures[0], pictures[0]], first=1)
    assert said == ["File 2 was not taken. This is the same image as file 1. (Rule: same-image.)"]
    assert state.take([pictures[0]], first=1) == ["File 1 was not taken, because it is the same image as Film 1."]
    assert len(state.films) == 1


def test_a_rule_that_a_person_may_know_better_is_overridden_on_their_word_and_recorded(
    rg1: Path, tmp_path: Path
) -> None:
    header = pydicom.dcmread(rg1)
    header.BodyPartExamined = "HAND"
    header.save_as(tmp_path / "hand.dcm")
    state = SessionState()
    assert state.take([tmp_path / "hand.dcm"], first=1) == []
    assert state.films == []
    assert "HAND" in state.waiting[0].words
    assert 'data-action="use"' in messages.films(state, [])
    assert state.use(0) is None
    (film,) = state.films
    assert film.overridden == ("body-part",)
    assert any("overridden by the reader" in step for step in film.steps)
    assert state.waiting == ()


def test_a_file_that_cannot_be_read_at_all_offers_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"words")
    state = SessionState()
    assert len(state.take([tmp_path / "x"], first=1)) == 1
    assert state.waiting == ()


def test_two_tabs_with_one_report_are_told_and_neither_loses_a_word(state: SessionState, tmp_path: Path) -> None:
    store = Sessions(tmp_path)
    state.keep(store)
    copy = SessionState()
    copy.open(store.load(state.session.id))
    state.report = state.report.accept(0)
    assert state.keep(store) is None
    copy.report = copy.report.edit(1, OWN)
    said = copy.keep(store)
    assert said is not None
    assert "another tab" in said
    assert copy.session.id != state.session.id
    assert store.load(copy.session.id).report.lines[1].text == OWN
    assert store.load(state.session.id).report == state.report


def test_a_report_that_was_closed_elsewhere_may_be_kept_anew(state: SessionState, tmp_path: Path) -> None:
    store = Sessions(tmp_path)
    state.keep(store)
    store.close(state.session.id)
    state.report = state.report.accept(0)
    said = state.keep(store)
    assert said is not None
    assert 'data-action="keep"' in messages.films(state, [said])
    state.session = None
    assert state.keep(store) is None
    assert store.load(state.session.id).report == state.report


def test_a_full_disk_is_told_and_the_next_change_is_kept(state: SessionState, tmp_path: Path) -> None:
    store = Sessions(tmp_path / "store")
    state.keep(store)
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("in the way")
    said = state.keep(store)
    assert said is not None
    assert "still on this page" in said
    (tmp_path / "store").unlink()
    (tmp_path / "away").rename(tmp_path / "store")
    state.report = state.report.accept(0)
    assert state.keep(store) is None
    assert store.load(state.session.id).report == state.report


def test_closing_deletes_the_report_from_the_disk(state: SessionState, tmp_path: Path) -> None:
    store = Sessions(tmp_path)
    state.keep(store)
    id = state.session.id
    state.close(store)
    assert state.report is None
    with pytest.raises(SessionGoneError):
        store.load(id)


def test_only_what_a_reader_wrote_or_edited_is_kept_when_a_report_is_drafted_anew(state: SessionState) -> None:
    assert own_words(state) == ""
    state.report = state.report.accept(0)
    assert own_words(state) == ""
    state.report = state.report.edit(0, OWN)
    assert own_words(state).startswith(f"Findings: {OWN}")
    assert own_words(SessionState()) == ""


def test_followed_tells_every_step_and_raises_what_the_work_raises() -> None:
    def work(progress: Callable[[int, int], None]) -> str:
        progress(1, 2)
        progress(2, 2)
        return "done"

    assert list(followed(work)) == [(1, 2, None), (2, 2, None), (2, 2, "done")]
    with pytest.raises(EmrrgError, match="no"):
        list(followed(lambda progress: (_ for _ in ()).throw(EmrrgError("no"))))


# --- exports -------------------------------------------------------------------------------------------------------------


def unpacked(download: str) -> bytes:
    import base64

    return base64.b64decode(json.loads(download)["body"])


@pytest.mark.parametrize("kind", exports.KINDS, ids=lambda kind: kind.name)
def test_every_export_says_that_nobody_has_reviewed_it(state: SessionState, kind: exports.Kind) -> None:
    body = unpacked(exports.make(kind.name, state))
    check_export(kind.name, body, mark=NOT_REVIEWED)


def check_export(name: str, body: bytes, *, mark: str | None) -> None:
    """Opens the file with another program's eyes; mark: what must be seen in it, None where it is signed."""
    if name == "capture":
        made = pydicom.dcmread(io.BytesIO(body))
        assert made.pixel_array.shape[2] == 3
        assert made.Modality == "OT"
        return
    if name in ("sr", "findings-sr", "dicom-pdf"):
        made = pydicom.dcmread(io.BytesIO(body))
        if name != "dicom-pdf":
            assert made.PreliminaryFlag == ("PRELIMINARY" if mark else "FINAL")
        text = made.DocumentTitle if name == "dicom-pdf" else body.decode("utf-8", "replace")
    elif name == "docx":
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            text = archive.read("word/document.xml").decode()
            assert any(each.startswith("word/media/") for each in archive.namelist())
    elif name == "pdf":
        assert body.startswith(b"%PDF-")
        assert b"/Image" in body, "the key image"
        return
    else:
        text = body.decode()
        if name != "text":
            json.loads(text)
    assert (mark in text) if mark else (NOT_REVIEWED not in text)


def test_dicom_exports_refer_to_the_film_and_its_patient(state: SessionState, rg1: Path) -> None:
    source = pydicom.dcmread(rg1)
    for kind in ("sr", "findings-sr", "dicom-pdf", "capture"):
        made = pydicom.dcmread(io.BytesIO(unpacked(exports.make(kind, state))))
        assert made.StudyInstanceUID == source.StudyInstanceUID
        assert source.SOPInstanceUID in str(made)


def test_an_export_that_needs_the_film_says_so_once_it_is_gone(state: SessionState) -> None:
    state.held = ()
    assert "drop Film 1 again" in exports.menu(state)
    with pytest.raises(EmrrgError, match="drop Film 1 again"):
        exports.make("sr", state)
    with pytest.raises(EmrrgError, match="drop"):
        exports.make("capture", state)
    assert unpacked(exports.make("pdf", state)).startswith(b"%PDF-")
    assert json.loads(unpacked(exports.make("fhir-r5", state)))["resourceType"] == "DiagnosticReport"


def test_a_report_without_a_draft_can_be_taken_as_text_alone() -> None:
    state = SessionState()
    state.report = Report().add("findings", OWN)
    assert OWN in unpacked(exports.make("text", state)).decode()
    assert "needs a draft" in exports.menu(state)
    with pytest.raises(EmrrgError, match="needs a draft"):
        exports.make("pdf", state)
    with pytest.raises(EmrrgError, match="nothing to export"):
        exports.make("text", SessionState())


def test_a_signed_structured_report_is_verified_only_by_a_reader_with_name_and_organization(
    state: SessionState,
) -> None:
    state.report = state.report.sign([line.id for line in state.report.unreviewed])
    reader = exports.reader_of("Roe^Jana", "Clinic")
    named = pydicom.dcmread(io.BytesIO(unpacked(exports.make("sr", state, reader=reader))))
    assert named.VerificationFlag == "VERIFIED"
    unnamed = pydicom.dcmread(io.BytesIO(unpacked(exports.make("sr", state))))
    assert unnamed.VerificationFlag == "UNVERIFIED"
    assert exports.reader_of(" ", "") is None
    assert exports.reader_of(None, None) is None, "a text box that was never unfolded"
    with pytest.raises(EmrrgError, match="both"):
        exports.reader_of("Roe^Jana", "")


# --- in a browser ----------------------------------------------------------------------------------------------------------


@dataclass
class RunningApp:
    """A running app and the store that it keeps reports in."""

    server: Server
    home: Path

    @property
    def store(self) -> Sessions:
        return Sessions(self.home / "sessions")

    def open(self, page: Any, expect: Any, id: str) -> None:
        """Load the page as a tab that had this report before."""
        page.goto(self.server.address)
        page.evaluate("id => sessionStorage.setItem('emrrg-session', id)", id)
        page.reload()
        expect(page.locator("#status")).to_contain_text("as you left it")

    def shows(self, page: Any, expected: list[tuple[str, str]]) -> None:
        """Waits until this is what the screen says of each sentence: its parts are not drawn at the same moment."""
        script = """() => [...document.querySelectorAll('#report .rr-item[data-line]')].map((row) => [
            row.querySelector('.rr-item-text').innerText, row.querySelector('.rr-choice').innerText])"""
        deadline = time.monotonic() + 60
        while (found := [tuple(row) for row in page.evaluate(script)]) != expected:
            assert time.monotonic() < deadline, found
            page.wait_for_timeout(200)


@pytest.fixture(scope="module")
def running(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    home = tmp_path_factory.mktemp("home")
    running = RunningApp(Server(tmp_path_factory.mktemp("server"), checkpoint, home=home), home)
    try:
        yield running
    finally:
        running.server.stop()
    assert "Traceback" not in running.server.output()


@pytest.fixture
def kept(running: RunningApp, drafted: Callable[..., Draft], stranger: Path) -> str:
    """The id of a report that nobody has reviewed, in its store; its film is no example."""
    return running.store.begin(drafted([read_film(stranger, name="Film 1")])).id


def said(page: Any, expect: Any, words: str) -> None:
    expect(page.locator("#status")).to_contain_text(words)


def item(page: Any, line: int) -> Any:
    return page.locator(f'#report .rr-item[data-line="{line}"]')


def do(page: Any, line: int, action: str) -> None:
    item(page, line).hover()
    item(page, line).locator(f'.rr-item-tools [data-action="{action}"]').click()


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def choose(page: Any, expect: Any, line: int) -> Any:
    """Choose a sentence; its evidence, once it stands there."""
    item(page, line).locator(".rr-item-text").click()
    laid = item(page, line).locator(".rr-laid")
    expect(laid).to_be_visible()
    return laid


def keep_all(page: Any, expect: Any) -> None:
    """Decide on every warning."""
    ends = page.locator(".rr-caution [data-action=decide]")
    while left := ends.count():
        ends.first.click()
        expect(ends).to_have_count(left - 1)


def test_edits_survive_a_reload_and_a_restart_until_the_report_is_closed(
    running: RunningApp, kept: str, checkpoint: Path
) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        running.open(page, expect, kept)
        expect(page.locator("#notice")).to_contain_text("Films are not stored. Drop Film 1")
        expect(page.locator("#was-read")).to_contain_text("Not assessed: ")
        expect(page.locator("#was-read .rr-finds-rest summary").first).to_contain_text("1 left open, 1 ruled out")
        expect(page.locator(".rr-stand")).to_contain_text(NOT_REVIEWED)
        do(page, 0, "accept")
        said(page, expect, "Accepted. 3 sentences not reviewed.")
        do(page, 1, "edit")
        box = page.locator("#report textarea")
        expect(box).to_have_value(FINDINGS[1])
        box.fill(OWN)
        box.press("Enter")
        said(page, expect, "Edited.")
        do(page, 2, "delete")
        said(page, expect, "Deleted")
        do(page, 3, "add")
        page.locator("#report textarea").fill("Follow-up in 3 months.")
        page.locator("#report .rr-box button", has_text="Keep").click()
        said(page, expect, "Added.")
        page.locator("#report [data-action=undo]").click()
        said(page, expect, "Undone.")
        expect(page.locator("#report .rr-item[data-line]")).to_have_count(4)
        page.locator("#report [data-action=redo]").click()
        said(page, expect, "Done again.")
        expected = [
            (FINDINGS[0], "accepted"),
            (OWN, "edited"),
            (FINDINGS[2], "deleted"),
            (IMPRESSION[0], "not reviewed"),
            ("Follow-up in 3 months.", "yours"),
        ]
        running.shows(page, expected)
        page.locator("#report [data-action=changes]").click()
        expect(item(page, 1).locator("del").first).to_be_visible()
        expect(item(page, 1).locator("ins").first).to_be_visible()

        page.reload()
        expect(page.locator("#status")).to_contain_text("as you left it")
        running.shows(page, expected)
        assert running.server.stop() == 0
        running.server = Server(running.server.folder, checkpoint, home=running.home, port=running.server.port)
        page.reload()
        expect(page.locator("#status")).to_contain_text("as you left it")
        running.shows(page, expected)
        do(page, 2, "restore")
        said(page, expect, "Restored.")
        wrong.clear()  # the server was away for a while

        page.click("#close")
        expect(page.locator("#notice")).to_contain_text("deletes the report from the server")
        page.locator("#notice [data-action=leave-open]").click()
        expect(page.locator("#notice")).not_to_contain_text("deletes the report")
        page.click("#close")
        page.locator("#notice [data-action=close]").click()
        expect(page.locator("#report")).to_contain_text("The draft appears here")
        assert page.evaluate("sessionStorage.getItem('emrrg-session')") is None
        with pytest.raises(SessionGoneError):
            running.store.load(kept)
        assert wrong == []


def test_two_readers_never_see_each_others_work_and_a_duplicated_tab_is_told(running: RunningApp, kept: str) -> None:
    with browser_page(1200, 800) as (page, wrong, expect):
        running.open(page, expect, kept)
        stranger = page.context.browser.new_page()
        stranger.set_default_timeout(SLOW)
        stranger.goto(running.server.address)
        expect(stranger.locator("#status")).to_contain_text("Ready")
        assert FINDINGS[1] not in stranger.locator("#read").inner_text()
        with page.context.expect_page() as opened:  # of the same browser: no report is opened in all its tabs
            page.evaluate("() => { window.open(location.href, '_blank', 'noopener') }")
        fresh = opened.value
        fresh.set_default_timeout(SLOW)
        expect(fresh.locator("#status")).to_contain_text("Ready")
        assert FINDINGS[1] not in fresh.locator("#read").inner_text()

        with (
            page.context.expect_page() as opened
        ):  # as a tab is duplicated: with a copy of what the first one remembers
            page.evaluate("() => { window.open(location.href) }")
        tab = opened.value
        tab.set_default_timeout(SLOW)
        expect(tab.locator("#status")).to_contain_text("as you left it")
        do(page, 0, "accept")
        said(page, expect, "Accepted.")
        do(tab, 1, "delete")
        expect(tab.locator("#notice [role=alert]")).to_contain_text("changed in another tab")
        assert tab.evaluate("sessionStorage.getItem('emrrg-session')") != kept
        for each in (page, tab):
            each.reload()
            expect(each.locator("#status")).to_contain_text("as you left it")
        texts = (*FINDINGS, *IMPRESSION)
        running.shows(page, list(zip(texts, ["accepted", *["not reviewed"] * 3], strict=True)))
        running.shows(tab, list(zip(texts, ["not reviewed", "deleted", *["not reviewed"] * 2], strict=True)))
        assert wrong == []


def test_sign_off_asks_for_every_sentence_and_warning_and_for_the_readers_name(running: RunningApp, kept: str) -> None:
    with browser_page(1200, 800) as (page, wrong, expect):
        running.open(page, expect, kept)
        do(page, 0, "accept")
        said(page, expect, "Accepted.")
        dialog, ask = page.locator("dialog[data-dialog=sign]"), page.locator("#report [data-action=ask-sign]")
        ticks, sign = dialog.locator("input[type=checkbox]"), dialog.locator("[data-action=sign]")
        ask.click()
        expect(dialog.get_by_role("alert")).to_contain_text("warnings are not decided: keep or delete each first")
        expect(ticks).to_have_count(0)
        expect(sign).to_be_disabled()
        page.keyboard.press("Escape")
        keep_all(page, expect)
        ask.click()
        expect(ticks).to_have_count(3)
        expect(sign).to_be_disabled()
        ticks.nth(0).check()
        ticks.nth(1).check()
        expect(sign).to_be_disabled()
        page.keyboard.press("Escape")
        do(page, 1, "accept")
        said(page, expect, "2 sentences not reviewed")
        do(page, 2, "edit")
        page.locator("#report textarea").fill("The lungs have not changed.")
        page.keyboard.press("Enter")
        expect(item(page, 2).locator(".rr-caution")).to_be_visible()
        ask.click()
        expect(sign).to_be_disabled()
        page.keyboard.press("Escape")
        keep_all(page, expect)
        ask.click()
        expect(ticks).to_have_count(1)
        assert not ticks.first.is_checked(), "no yes is carried to another sentence"
        ticks.first.check()
        dialog.locator("[data-signer=name]").fill(READER)
        dialog.locator("[data-signer=organization]").fill("Quillhospital")
        sign.click()
        expect(page.locator(".rr-stand")).to_contain_text("Signed off")
        expect(page.locator("#report [data-action=edit]")).to_have_count(0)
        tab(page, "Export")
        expect(page.locator("#menu")).not_to_contain_text("DRAFT")
        with page.expect_download() as saved:
            page.locator("[data-kind=text]").click()
        text = Path(saved.value.path()).read_text()
        assert NOT_REVIEWED not in text
        assert "Signed off" in text
        assert "Quillfeather" in text
        assert "Quillhospital" in text
        tab(page, "Report")
        page.locator("#report [data-action=unsign]").click()
        said(page, expect, "taken back")
        expect(item(page, 0).locator("[data-action=edit]")).to_be_attached()
        page.reload()
        expect(page.locator("#status")).to_contain_text("as you left it")
        ask.click()
        expect(dialog.locator("[data-signer=name]")).to_have_value(READER)
        report = running.store.load(kept).report
        assert [edit.action for edit in report.edits if edit.action != "keep"] == [
            "accept",
            "accept",
            "edit",
            "accept",
            "sign",
            "unsign",
        ]
        assert wrong == []
    for path in (*running.home.rglob("*"), *running.server.folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            assert b"Quill" not in path.read_bytes(), "the reader's name is kept by the browser alone"
    assert "Quill" not in running.server.output()


READER = "Quillfeather^Jana"


def test_every_export_is_downloaded_and_can_be_opened(running: RunningApp, kept: str, stranger: Path) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        running.open(page, expect, kept)
        tab(page, "Export")
        for name in ("sr", "findings-sr", "dicom-pdf", "capture"):
            expect(page.locator(f"[data-kind={name}]")).to_be_disabled()
        page.set_input_files("#drop input[type=file]", str(stranger))
        expect(page.locator(".film-0")).to_contain_text("PA view")
        expect(page.locator("#notice")).not_to_contain_text("not stored")
        for kind in exports.KINDS:
            with page.expect_download() as saved:
                page.locator(f"[data-kind={kind.name}]").click()
            assert saved.value.suggested_filename == kind.file
            check_export(kind.name, Path(saved.value.path()).read_bytes(), mark=NOT_REVIEWED)
            expect(page.locator("#packing")).to_contain_text("saved")
        assert wrong == []
    assert not any(path.endswith((".pdf", ".dcm", ".docx")) for path in running.server.paths())


SHOWN_MAP = "() => getComputedStyle(document.querySelector('.film-0 .rr-map')).backgroundImage"


def test_a_sentence_and_a_word_show_map_gates_and_tokens_and_why_at_their_own_place(
    running: RunningApp, kept: str, stranger: Path
) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        running.open(page, expect, kept)
        expect(choose(page, expect, 1)).to_contain_text("not stored")
        page.set_input_files("#drop input[type=file]", str(stranger))
        expect(page.locator(".film-0")).to_be_visible()
        choose(page, expect, 0)
        laid = choose(page, expect, 1)
        every = page.locator("#report .rr-laid")
        expect(every).to_have_count(1)
        page.wait_for_function(f"({SHOWN_MAP})() != 'none'")
        laid.locator("summary", has_text="Words").click()
        expect(laid.locator(".rr-tokens li").first).to_be_visible()
        expect(laid.locator(".rr-gates tbody tr")).to_have_count(2)
        of_sentence = page.evaluate(SHOWN_MAP)

        tab(page, "Evidence")
        there = page.locator("#words .rr-laid")
        expect(there).to_have_count(1)
        word = page.locator("#words .rr-sentence").nth(1).locator(".rr-word").nth(3)
        word.click()
        expect(there).to_contain_text(f"“{word.inner_text()}”")
        page.wait_for_function(f"old => ({SHOWN_MAP})() != old", arg=of_sentence)
        there.locator("[data-action=why]").click()
        expect(there).to_contain_text("with other places hidden")
        assert page.locator("#words .rr-sentence").nth(1).locator(".rr-laid").count() == 1
        there.locator(".rr-why summary, summary").first.click()
        expect(there.locator("svg").first).to_be_visible()
        of_word = page.evaluate(SHOWN_MAP)

        tab(page, "Report")
        expect(laid).to_contain_text("with other places hidden")
        page.locator("#was-read [data-finding=effusion]").click()
        of = page.locator("#was-read li .rr-laid")
        expect(of).to_contain_text("pleural effusion, left")
        expect(of).to_contain_text(re.compile(r"83.%, stated from 61.%: stated"))
        expect(every).to_have_count(0)
        page.wait_for_function(f"old => ({SHOWN_MAP})() != old && ({SHOWN_MAP})() != 'none'", arg=of_word)
        expect(page.locator("#was-read .rr-find[aria-pressed=true]")).to_have_count(1)
        of_finding = page.evaluate(SHOWN_MAP)
        page.locator("#was-read .rr-finds-rest summary").first.click()
        page.locator("#was-read [data-finding=opacity]").click()
        expect(of).to_contain_text("left open, neither stated nor denied")
        page.wait_for_function(f"old => ({SHOWN_MAP})() != old", arg=of_finding)
        choose(page, expect, 0)
        expect(page.locator("#was-read .rr-find[aria-pressed=true]")).to_have_count(0)
        expect(of).to_have_count(0)
        assert wrong == []


def test_evidence_never_stands_at_another_sentence(running: RunningApp, kept: str, stranger: Path) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        running.open(page, expect, kept)
        page.set_input_files("#drop input[type=file]", str(stranger))
        expect(page.locator(".film-0")).to_be_visible()
        page.evaluate(WATCHING)
        choose(page, expect, 1).locator("[data-action=why]").click()
        choose(page, expect, 3)  # before the answer is there
        expect(item(page, 1).locator(".rr-laid")).to_have_count(0)
        page.wait_for_timeout(1500)  # the answer would have come by now
        expect(page.locator("#report .rr-laid")).to_have_count(1)
        expect(item(page, 3).locator(".rr-laid")).not_to_contain_text("places hidden")

        do(page, 3, "edit")
        page.locator("#report textarea").fill("No effusion is seen.")
        page.keyboard.press("Enter")
        said(page, expect, "Edited.")
        expect(choose(page, expect, 3)).to_contain_text(f"The drafted words, “{IMPRESSION[0]}”")
        do(page, 3, "delete")
        said(page, expect, "Deleted")
        expect(page.locator("#report .rr-laid")).to_have_count(1)
        do(page, 2, "add")
        page.locator("#report textarea").fill(OWN)
        page.keyboard.press("Enter")
        said(page, expect, "Added.")
        expect(item(page, 4)).to_contain_text("5 mm & calcified")
        expect(choose(page, expect, 4)).to_contain_text("Your own words: they have no map.")
        assert page.evaluate(SHOWN_MAP) == "none"
        misplaced = page.evaluate("() => window.misplaced")
        assert misplaced == []
        assert wrong == []


# notes every moment in which evidence stands at another sentence than the one that it names
WATCHING = """() => {
    window.misplaced = [];
    new MutationObserver(() => {
        for (const laid of document.querySelectorAll('#report .rr-laid')) {
            const of = document.querySelector('#evidence .rr-evidence'), row = laid.closest('.rr-item');
            const mine = of && laid.innerHTML === of.innerHTML;
            if (mine && of.dataset.line !== row.dataset.line) window.misplaced.push([of.dataset.line, row.dataset.line]);
        }
    }).observe(document.getElementById('report'), {childList: true, subtree: true});
}"""


def test_remembered_cases_open_under_the_findings_and_an_impression_is_asked_of_the_findings(
    running: RunningApp, kept: str, stranger: Path
) -> None:
    memory = Memory(running.home / "memory")
    memory.add([(None, "There is a left pleural effusion.", "Effusion of May.", None), (None, "A nodule.", "", None)])
    try:
        with browser_page(1440, 900) as (page, wrong, expect):
            running.open(page, expect, kept)
            tab(page, "Evidence")
            near = page.locator("#near")
            expect(near.locator("summary")).to_contain_text("Remembered cases like this film (2)")
            near.locator("summary").click()
            expect(near.locator("li").first).to_contain_text("Effusion of May.")
            expect(near.locator("li").first).to_contain_text("Pleural Effusion")
            tab(page, "Report")
            page.locator("[data-action=summarise]").click()
            said(page, expect, "Drop the films of this report again")
            page.set_input_files("#drop input[type=file]", str(stranger))
            expect(page.locator(".film-0")).to_be_visible()
            page.locator("[data-action=summarise]").click()
            expect(page.locator("#status")).to_contain_text(
                re.compile("from these Findings")
            )  # the tiny model may find no words
            assert wrong == []
    finally:
        for case in list(memory.cases()):
            memory.remove(case.id)


def test_what_the_report_states_and_contradicts_follows_the_readers_own_text(running: RunningApp, kept: str) -> None:
    with browser_page(1200, 800) as (page, wrong, expect):
        running.open(page, expect, kept)
        effusion = page.locator("#table tr", has=page.locator("th", has_text=re.compile("^Pleural Effusion$")))
        warned = item(page, 3).locator(".rr-caution")
        expect(warned).to_have_count(2)
        expect(warned.first).to_contain_text("but the Findings state pleural effusion")
        tab(page, "Evidence")
        expect(effusion).to_contain_text("positive")
        expect(page.locator("#flags")).to_contain_text("stated and denied")
        expect(page.locator("#flags")).to_contain_text("earlier film")
        tab(page, "Report")
        do(page, 1, "delete")
        said(page, expect, "Deleted")
        expect(warned).to_have_count(1)
        expect(warned).to_contain_text("which was not ruled out in the film")
        tab(page, "Evidence")
        expect(effusion).to_contain_text("negative")
        expect(page.locator("#flags")).not_to_contain_text("stated and denied")
        tab(page, "Report")
        do(page, 2, "edit")
        page.locator("#report textarea").fill("The lungs are clear.")
        page.locator("#report textarea").press("Enter")
        said(page, expect, "Edited.")
        tab(page, "Evidence")
        expect(page.locator("#flags")).to_contain_text("No contradiction was found")
        assert wrong == []


def test_the_keys_work_and_rest_while_a_reader_types(running: RunningApp, kept: str) -> None:
    with browser_page(1200, 800) as (page, wrong, expect):
        running.open(page, expect, kept)
        press = page.keyboard.press
        press("j")
        press("n")
        press("k")
        expect(page.locator("#report [data-current]")).to_have_attribute("data-line", "0")
        press("a")
        said(page, expect, "Accepted.")
        press("n")
        press("x")
        said(page, expect, "Deleted")
        press("u")
        said(page, expect, "Undone.")
        press("y")
        said(page, expect, "Done again.")
        press("Control+z")
        said(page, expect, "Undone.")
        press("Control+Shift+z")
        said(page, expect, "Done again.")
        press("Control+z")
        said(page, expect, "Undone.")
        press("e")
        page.keyboard.type(" aejkxus?")
        press("Enter")
        said(page, expect, "Edited.")
        expected = [
            (FINDINGS[0], "accepted"),
            (f"{FINDINGS[1]} aejkxus?", "edited"),
            (FINDINGS[2], "not reviewed"),
            (IMPRESSION[0], "not reviewed"),
        ]
        running.shows(page, expected)
        press("e")
        page.keyboard.type("never kept")
        press("Escape")
        expect(page.locator("#report textarea")).to_have_count(0)
        running.shows(page, expected)
        press("d")
        expect(page.locator("#status")).to_contain_text("drop Film 1 again")
        press("?")
        keys = page.locator("dialog[data-dialog=keys]")
        expect(keys).to_contain_text("next sentence")
        page.locator("[data-keys-on]").uncheck()  # for who speaks to the computer
        press("Escape")
        expect(keys).to_be_hidden()
        press("u")
        press("?")
        expect(keys).to_be_hidden()
        running.shows(page, expected)
        assert wrong == []


def test_a_refused_film_states_its_rule_and_may_be_used_anyway(running: RunningApp, rg1: Path, tmp_path: Path) -> None:
    header = pydicom.dcmread(rg1)
    header.BodyPartExamined = "HAND"
    header.save_as(tmp_path / "hand.dcm")
    with browser_page(1200, 800) as (page, wrong, expect):
        page.goto(running.server.address)
        expect(page.locator("#status")).to_contain_text("Ready")
        page.set_input_files("#drop input[type=file]", str(tmp_path / "hand.dcm"))
        expect(page.locator("#notice [role=alert]")).to_contain_text("shows a HAND, not a chest")
        expect(page.locator("#films")).to_contain_text("No film yet")
        page.locator("#notice [data-action=use]").click()
        expect(page.locator(".film-0")).to_contain_text("overridden by the reader")
        expect(page.locator("#notice [role=alert]")).to_have_count(0)

        page.set_input_files("#drop input[type=file]", str(rg1))
        expect(page.locator("#notice [role=alert]")).to_contain_text("the same image as Film 1")
        assert wrong == []


def test_a_prior_film_is_shown_and_not_given_to_the_model(running: RunningApp, pictures: list[Path]) -> None:
    with browser_page(1440, 900) as (page, wrong, expect):
        page.goto(running.server.address)
        expect(page.locator("#status")).to_contain_text("Ready")
        page.set_input_files("#drop input[type=file]", [str(path) for path in pictures[:2]])
        expect(page.locator(".film-1")).to_contain_text("Film 2")
        page.click("#mark-1")
        expect(page.locator(".film-1")).to_contain_text("Prior film")
        page.click("#write")
        expect(page.locator("#write")).to_be_enabled()
        tab(page, "Evidence")
        expect(page.locator("#looked")).to_contain_text("film")
        id = page.evaluate("sessionStorage.getItem('emrrg-session')")
        session = running.store.load(id)
        assert session.draft is not None
        assert len(session.draft.films) == 1
        assert session.films == (read_film(pictures[1]).sha256,)
        assert session.settings["priors"] == [read_film(pictures[0]).sha256]
        assert session.settings["looking"]
        assert wrong == []
