"""Drafts: sections and sentences are found again in the text, each sentence with the tokens that wrote it; and they can be kept.
Reports: every edit is a new report and is logged, undone, signed, laid beside the draft and kept.
"""

import dataclasses
import io
import json
import math
import re
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
import pytest

from emrrg_core.errors import EmrrgError
from emrrg_core.explain.heat_map import heat_map
from emrrg_core.model.finding_tokens import Finding, Presence
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.draft import (
    DISCLAIMER,
    SCHEMA,
    Draft,
    FilmRecord,
    as_text,
    compose,
    findings_of,
    sections,
    split,
)
from emrrg_core.report.report import Choice, Fields, Line, Report
from emrrg_core.text.sections import first_repeat

MAP = np.array([0.5, 0.25, 0.25, 0], np.float32)
READ = (
    Finding("nodule", Presence.PRESENT, 0.9, 0.5, "right", "upper", maps=(MAP,)),
    Finding("effusion", Presence.ABSENT, 0.02, 0.4, maps=(MAP[::-1],)),
)
FINDINGS = "The heart is of normal size. There is a nodule of 1.5 cm in the right upper zone, café."
IMPRESSION = "1. Nodule on the right. 2. No effusion."


def cut(text: str, *pieces: int) -> list[str]:
    """Text in pieces of the given lengths, again and again."""
    parts, at = [], 0
    while at < len(text):
        size = pieces[len(parts) % len(pieces)]
        parts.append(text[at : at + size])
        at += size
    return parts


def writing(parts: list[str], finished: bool = True) -> Writing:
    """A text as tokens, each with its own log-probability and gates of two layers."""
    tokens = tuple(
        Token(
            i,
            part,
            -0.1 * (i % 7) - 0.01,
            (0.1 * i, -0.2),
            np.full((2, 4), 0.2, np.float32),
            np.full((2, 3), 0.05, np.float32),
        )
        for i, part in enumerate(parts)
    )
    return Writing(tokens, finished, sum(t.log_prob for t in tokens))


def draft(parts: list[str]) -> Draft:
    text = writing(parts)
    findings, impression, found = sections(text)
    return Draft(
        findings=findings,
        impression=impression,
        sentences=found,
        tokens=text.tokens,
        layers=(0, 5),
        grid=2,
        films=(FilmRecord("Film 1", "PNG", "ab" * 32, 300, 200, (0.14, 0.14), "PA", ("read", "scaled")),),
        warnings=("a warning",),
        timings={"encode": 0.1, "write": 0.2, "total": 0.3},
        model={"checkpoint": "small"},
        decoding={"beams": 1, "seed": 7},
        finished=True,
        closed=("findings",),
        read=READ,
        ratio=0.47,
    )


def bodies(text: str, **kwargs) -> dict[str, str]:
    return {name: text[slice(*span)] for name, span in split(text, **kwargs).items()}


# ------------------------------------------------------------------------------------------------------- two sections


@pytest.mark.parametrize(
    ("findings", "impression"), [(FINDINGS, IMPRESSION), (FINDINGS, ""), ("", IMPRESSION), ("", ""), ("a\nb", "c\nd")]
)
def test_what_is_composed_is_split_again(findings, impression):
    text = compose(findings, impression)
    assert bodies(text) == {"findings": findings, "impression": impression}
    assert bodies(text, partial=True) == {"findings": findings, "impression": impression}


def test_a_composed_report_has_its_headings_once_and_no_space_around_it():
    text = compose(f"  {FINDINGS}\n", f" {IMPRESSION} ")
    assert text == f"Findings: {FINDINGS}\nImpression: {IMPRESSION}"


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("The lungs are clear.", "The lungs are clear.", ""),
        ("The lungs are clear.\nImpression: Normal.", "The lungs are clear.", "Normal."),
        ("The lungs are clear. Impression: Normal.", "The lungs are clear.", "Normal."),
        (" Findings:\nClear.\n\nImpression:\nNormal.\n", "Clear.", "Normal."),
        ("Findings: Impression: Normal.", "", "Normal."),
        ("Findings:", "", ""),
        ("Findings: Clear.\nImpression:", "Clear.", ""),
        ("Findings: See Impression: a.\nImpression: b.", "See", "a.\nImpression: b."),
    ],
)
def test_headings_may_be_missing_or_oddly_set(text, findings, impression):
    assert bodies(text) == {"findings": findings, "impression": impression}


@pytest.mark.parametrize(
    "text",
    [
        compose(FINDINGS, IMPRESSION),
        compose("", IMPRESSION),
        compose(FINDINGS, ""),
        f" Findings: {FINDINGS} Impression: {IMPRESSION}",
    ],
)
def test_a_text_still_being_written_never_shows_a_broken_heading(text):
    whole = bodies(text)
    for end in range(len(text) + 1):
        shown = bodies(text[:end], partial=True)
        for name, body in shown.items():
            assert whole[name].startswith(body), f"after {text[:end]!r}"
            assert not re.search(r"(Findings|Impression):?$", body)


def test_a_partial_text_loses_no_more_than_its_last_word():
    text = compose(FINDINGS, IMPRESSION)
    for end in range(len(text) + 1):
        shown = bodies(text[:end], partial=True)["findings"]
        so_far = bodies(text[:end])["findings"]
        assert len(so_far.split()) - len(shown.split()) <= 1


# --------------------------------------------------------------------------------------------------- no sentence twice


@pytest.mark.parametrize(
    ("text", "again", "before"),
    [
        ("Findings: The lungs are clear. No effusion. The lungs are clear.", "The lungs", "No effusion."),
        ("Findings: The lungs are clear. the  LUNGS are\nclear. No effusion.", "the  LUNGS", "are clear."),
        ("Findings: Clear!\nClear.", "Clear.", "Clear!"),
        ("Findings: Clear. No.\nImpression: a. b. A.", "A.", "b."),
        ("Findings: 1. Clear. 2. Clear. 3.", "2. Clear", "1. Clear."),
        ("Findings: Clear. Clear\nImpression: Normal", "Clear\n", "Clear."),
        ("Clear. Clear.", "Clear.", "Clear."),
        ("Impression: Clear. Clear.", "Clear.", "Clear."),
    ],
)
def test_the_first_sentence_said_again_is_found(text, again, before):
    repeat = first_repeat(text, over=False)
    assert text[repeat.start :].startswith(again)
    assert text[: repeat.end].endswith(before)
    assert not text[repeat.end : repeat.start].strip()
    assert repeat == first_repeat(text, over=True)
    assert repeat.section == ("impression" if repeat.start > text.find("Impression") >= 0 else "findings")
    assert first_repeat(text[: repeat.end], over=True) is None


@pytest.mark.parametrize(
    "text",
    [
        compose(FINDINGS, IMPRESSION),
        compose("No effusion. The lungs are clear.", "No effusion. The lungs are clear."),  # once in each section
        "Findings: No effusion. No effusion on the left. No effusions. No. Effusion.",
        "Findings: A nodule of 1.5 cm. A nodule of 15 cm. A nodule of 1 5 mm.",
        "Findings: 1. Clear. 2. Normal. 3. 4.",
        "",
        "Findings: . . .",
    ],
)
def test_sentences_that_are_only_alike_and_those_of_the_other_section_are_no_repetition(text):
    for end in range(len(text) + 1):
        assert first_repeat(text[:end], over=False) is None, text[:end]
    assert first_repeat(text, over=True) is None


@pytest.mark.parametrize(
    "text",
    [
        "Findings: Clear. Clear",
        "Findings: A nodule of 2 cm. A nodule of 2 cm.",
        "Findings: No. No. 5 is",
        "Clear\nClear\n",
    ],
)
def test_a_sentence_that_may_go_on_is_not_yet_a_repetition(text):
    """ "2 cm." may be followed by "in the left lung", and "Clear" by anything; where the text is over, they are sentences."""
    assert first_repeat(text[:-1] if text.endswith("is") else text, over=False) is None


# ---------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize("pieces", [(1,), (3,), (7, 2), (5, 1, 11), (1000,)])
def test_the_tokens_of_a_sentence_cover_it_and_no_more(pieces):
    text = compose(FINDINGS, IMPRESSION)
    made = writing(cut(text, *pieces))
    findings, impression, found = sections(made)
    assert [s.section for s in found] == ["findings"] * 2 + ["impression"] * 2
    assert [s.text for s in found] == [
        "The heart is of normal size.",
        "There is a nodule of 1.5 cm in the right upper zone, café.",
        "1. Nodule on the right.",
        "2. No effusion.",
    ]
    for s in found:
        assert {"findings": findings, "impression": impression}[s.section][s.start : s.end] == s.text
        first, last = s.tokens
        tokens = made.tokens[first:last]
        assert s.text in "".join(t.text for t in tokens)
        assert s.text not in "".join(t.text for t in tokens[1:])
        assert s.text not in "".join(t.text for t in tokens[:-1])


def test_confidence_is_the_geometric_mean_of_the_tokens_probabilities():
    made = writing(cut(compose(FINDINGS, IMPRESSION), 4))
    for s in sections(made)[2]:
        tokens = made.tokens[slice(*s.tokens)]
        assert s.confidence == pytest.approx(math.prod(math.exp(t.log_prob) for t in tokens) ** (1 / len(tokens)))
        assert 0 < s.confidence <= 1


def test_gates_of_a_sentence_are_the_means_over_its_tokens():
    made = writing(cut(compose(FINDINGS, IMPRESSION), 4))
    for s in sections(made)[2]:
        tokens = made.tokens[slice(*s.tokens)]
        assert s.gates == pytest.approx([np.mean([t.gates[0] for t in tokens]), -0.2])


def test_tokens_without_letters_belong_to_no_sentence_by_themselves():
    """Bytes of an unfinished character are tokens without text."""
    made = writing(["Findings: ", "A", "", "", "心", " ok.", "", " B."])
    found = sections(made)[2]
    assert [s.text for s in found] == ["A心 ok.", "B."]
    assert [s.tokens for s in found] == [(1, 6), (7, 8)]


@pytest.mark.parametrize("parts", [[], [""], [" "], ["Findings:"], ["\n"]])
def test_a_text_without_a_sentence_gives_none(parts):
    assert sections(writing(parts)) == ("", "", ())


def test_a_partial_draft_has_sentences_of_what_is_shown_only():
    findings, impression, found = sections(writing(["Findings: ", "Clear.", "\nImpr"]), partial=True)
    assert (findings, impression, [s.text for s in found]) == ("Clear.", "", ["Clear."])


# --------------------------------------------------------------------------------------------------------------- JSON


def test_a_draft_as_json_has_the_documented_keys():
    made = draft(cut(compose(FINDINGS, IMPRESSION), 4))
    data = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert set(data) == {
        "schema",
        "notice",
        "films",
        "prior",
        "findings",
        "impression",
        "sentences",
        "tokens",
        "finished",
        "closed",
        "read",
        "not_assessed",
        "cardiothoracic_ratio",
        "warnings",
        "timings",
        "model",
        "decoding",
        "seed",
    }
    assert (data["schema"], data["schema"], data["notice"]) == ("emrrg.draft/2", SCHEMA, DISCLAIMER)
    keys = {"name", "format", "sha256", "height", "width", "spacing", "view", "steps", "overridden", "read", "place"}
    assert set(data["films"][0]) == keys | {"source_sha256"}
    assert data["films"][0]["steps"] == ["read", "scaled"]
    keys = {"text", "section", "start", "end", "confidence", "gates", "findings", "map", "maps"}
    assert set(data["sentences"][0]) == keys
    assert data["sentences"][0]["gates"].keys() == {"0", "5"}
    assert set(data["tokens"][0]) == {"text", "log_prob", "gates", "forced"}
    assert "".join(token["text"] for token in data["tokens"]) == compose(FINDINGS, IMPRESSION)
    assert (data["finished"], data["closed"], data["tokens"][0]["forced"]) == (True, ["findings"], False)
    assert (data["findings"], data["impression"], data["seed"]) == (FINDINGS, IMPRESSION, 7)
    assert data["cardiothoracic_ratio"] == 0.47


def test_a_draft_as_json_says_of_every_finding_what_was_read_and_where():
    data = json.loads(json.dumps(draft([compose(FINDINGS, IMPRESSION)]).to_dict(), allow_nan=False))
    nodule, effusion = data["read"]
    assert nodule == {
        "name": "nodule",
        "label": "Lung Lesion",
        "presence": "present",
        "probability": 0.9,
        "threshold": 0.5,
        "side": "right",
        "zone": "upper",
        "severity": "",
        "pneumonia": False,
        "earlier": None,
        "maps": [[[0.5, 0.25], [0.25, 0.0]]],
    }
    assert (effusion["presence"], effusion["maps"]) == ("absent", [[[0.0, 0.25], [0.25, 0.5]]])
    heart, nodule, *_, none = data["sentences"]
    assert nodule["findings"] == [{"name": "nodule", "probability": 0.9, "threshold": 0.5}]
    assert none["findings"] == [{"name": "effusion", "probability": 0.02, "threshold": 0.4}]
    assert heart["findings"] == []  # spoken of, but not assessed
    assert {"Cardiomegaly", "Fracture", "Support Devices"} <= set(data["not_assessed"])
    assert not {"Lung Lesion", "Pleural Effusion", "No Finding", "Pneumonia"} & set(data["not_assessed"])


def test_a_draft_of_a_checkpoint_that_reads_nothing_says_so():
    made = dataclasses.replace(draft([compose(FINDINGS, IMPRESSION)]), read=None, ratio=None)
    data = made.to_dict()
    assert (data["read"], data["cardiothoracic_ratio"]) == (None, None)
    assert all(sentence["findings"] == [] for sentence in data["sentences"])
    assert made.finding("nodule") is None
    assert Draft.load(*made.dump()).read is None


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("There is a nodule in the left lung.", ("nodule",)),
        ("No pleural effusion or pneumothorax.", ("effusion", "pneumothorax")),
        ("Pneumonia is possible.", ("opacity",)),
        ("No acute disease.", ("abnormal",)),
        ("Comparison is not available.", ()),
    ],
)
def test_a_sentence_knows_the_findings_that_it_states_or_denies(sentence, names):
    assert findings_of(sentence) == names
    assert sections(writing([compose(sentence, "")]))[2][0].findings == names


def test_maps_stand_with_their_sentences_the_first_film_first():
    data = draft([compose("A is b. C is d.", "")]).to_dict({1: ["one.npy", "two.npy"]})
    assert [(s["map"], s["maps"]) for s in data["sentences"]] == [(None, []), ("one.npy", ["one.npy", "two.npy"])]


def test_the_text_carries_both_sections_and_the_notice():
    text = draft([compose(FINDINGS, IMPRESSION)]).text()
    assert text == as_text(FINDINGS, IMPRESSION)
    assert text.index("FINDINGS:") < text.index(FINDINGS) < text.index("IMPRESSION:") < text.index(IMPRESSION)
    assert text.rstrip().endswith(DISCLAIMER)
    assert "not a medical device" in DISCLAIMER


# ------------------------------------------------------------------------------------------------------ a draft, kept


def test_a_kept_draft_comes_back_with_everything_behind_it():
    """After a reload a sentence must still show its tokens, gates and map."""
    made = draft(cut(compose(FINDINGS, IMPRESSION), 4))
    record, numbers = made.dump()
    back = Draft.load(json.loads(json.dumps(record, allow_nan=False)), numbers)
    for field in dataclasses.fields(Draft):
        if field.name != "tokens":
            assert getattr(back, field.name) == getattr(made, field.name), field.name
    assert back.to_dict() == made.to_dict()  # these maps are exact in float16
    assert [f.maps[0].dtype for f in back.read] == [np.float32] * 2
    for ours, theirs in zip(back.tokens, made.tokens, strict=True):
        weights = ("attention", "on_findings")
        assert {n: v for n, v in vars(ours).items() if n not in weights} == {
            n: v for n, v in vars(theirs).items() if n not in weights
        }
        for name in weights:
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-3)


def test_a_draft_that_was_kept_with_attention_in_one_array_opens():
    made = draft(["word "] * 3)
    record, numbers = made.dump()
    with np.load(io.BytesIO(numbers)) as arrays:
        kept = dict(arrays)
    kept["attention"] = np.concatenate([kept["attention"], kept.pop("on_findings")], -1)
    joined = io.BytesIO()
    np.savez(joined, **kept)
    back = Draft.load(record | {"schema": "emrrg.kept-draft/2"}, joined.getvalue())
    for ours, theirs in zip(back.tokens, made.tokens, strict=True):
        np.testing.assert_allclose(ours.attention, theirs.attention, rtol=1e-3)
        np.testing.assert_allclose(ours.on_findings, theirs.on_findings, rtol=1e-3)


def test_the_maps_of_a_kept_draft_are_the_same_to_the_eye():
    """float16 has 11 bits: no weight on 14 × 14 patches moves by more than a thousandth of itself."""
    random = np.random.default_rng(3)
    weights = random.dirichlet(np.full(197, 0.5), size=(12, 2))[..., :196].astype(np.float32)
    made = draft(["word "] * 12)
    tokens = tuple(dataclasses.replace(t, attention=w) for t, w in zip(made.tokens, weights, strict=True))
    made = dataclasses.replace(made, tokens=tokens, grid=14, read=())
    back = Draft.load(*made.dump())
    assert back.tokens[0].attention.dtype == np.float32
    for ours, theirs in zip(back.tokens, made.tokens, strict=True):
        np.testing.assert_allclose(ours.attention, theirs.attention, rtol=1e-3, atol=1e-7)
    ours, theirs = heat_map(back, 0, (0, 12)), heat_map(made, 0, (0, 12))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * theirs.max())


def test_the_findings_maps_of_a_kept_draft_are_the_same_to_the_eye_in_every_film():
    maps = tuple(np.random.default_rng(1).dirichlet(np.full(196, 0.2), 3).astype(np.float32))
    read = tuple(dataclasses.replace(finding, maps=maps[i:] + maps[:i]) for i, finding in enumerate(READ))
    back = Draft.load(*dataclasses.replace(draft(["A."]), read=read, grid=14).dump())
    for ours, theirs in zip(back.read, read, strict=True):
        np.testing.assert_allclose(ours.maps, theirs.maps, rtol=1e-3, atol=1e-7)


def test_a_draft_that_an_earlier_version_kept_is_refused_in_words():
    """It had facts, and no findings with probabilities and maps."""
    record, numbers = draft(["Findings: Clear."]).dump()
    with pytest.raises(
        EmrrgError, match=r"its form is emrrg\.kept-draft/1, not emrrg\.kept-draft/3.*draft the report anew"
    ):
        Draft.load(record | {"schema": "emrrg.kept-draft/1"}, numbers)


@pytest.mark.parametrize("parts", [[], ["Findings:"]])
def test_a_draft_without_words_can_be_kept(parts):
    made = draft(parts)
    back = Draft.load(*made.dump())
    assert back.to_dict() == made.to_dict()
    assert len(back.tokens) == len(parts)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record, numbers: (record | {"schema": "emrrg.kept-draft/9"}, numbers),
        lambda record, numbers: ({k: v for k, v in record.items() if k != "films"}, numbers),
        lambda record, numbers: (record | {"tokens": record["tokens"][1:]}, numbers),
        lambda record, numbers: (record | {"colour": 1}, numbers),
        lambda record, numbers: (record | {"read": record["read"][1:]}, numbers),
        lambda record, numbers: (record | {"read": [row | {"presence": "maybe"} for row in record["read"]]}, numbers),
        lambda record, numbers: (record, numbers[:-40]),
        lambda record, numbers: (record, b"no npz"),
        lambda record, numbers: (record, b""),
        lambda record, numbers: (None, numbers),
    ],
)
def test_a_damaged_kept_draft_is_refused_in_words(spoil):
    with pytest.raises(EmrrgError, match=r"kept draft cannot be read .*draft the report anew"):
        Draft.load(*spoil(*draft(["Findings: Clear."]).dump()))


# --------------------------------------------------------------------------------------------------------- the report

DRAFTED = ("The heart is normal.", "No effusion is seen.", "The lungs are clear.", "No acute disease.")


@pytest.fixture
def study() -> Draft:
    """Three sentences of Findings (lines 0 to 2), one of Impression (line 3)."""
    return draft(cut(compose(" ".join(DRAFTED[:3]), DRAFTED[3]), 5))


@pytest.fixture
def report(study) -> Report:
    return Report.of(study)


def choices(report: Report) -> dict[int, str]:
    return {line.id: line.choice.value for line in report.lines}


def done(report: Report) -> list[tuple[str, int | None, str | None, str | None]]:
    return [(e.action, e.line, e.before, e.after) for e in report.edits]


def test_a_new_report_says_what_was_drafted_and_nobody_has_read_it(study, report):
    assert [(x.id, x.section, x.text, x.drafted) for x in report.lines] == [
        (0, "findings", DRAFTED[0], 0),
        (1, "findings", DRAFTED[1], 1),
        (2, "findings", DRAFTED[2], 2),
        (3, "impression", DRAFTED[3], 3),
    ]
    assert set(choices(report).values()) == {"unreviewed"}
    assert (report.findings, report.impression) == (study.findings, study.impression)
    assert report.unreviewed == report.lines
    assert (report.edits, report.signed, report.status) == ((), None, "preliminary")


def test_every_operation_leaves_the_report_it_was_asked_of_as_it_was(report):
    before = report.to_dict()
    later = report.accept(0).edit(1, "An effusion.").delete(2).add("impression", "Follow up.").restore(2)
    later.undo().redo().retype("findings", "All new.").sign([3]).unsign()
    assert report.to_dict() == before


def test_accepting_editing_deleting_and_adding_are_kept_and_logged(report):
    after = report.accept(0).edit(1, " A small effusion is seen. ").delete(2).add("impression", "Follow up.", after=3)
    assert choices(after) == {0: "accepted", 1: "edited", 2: "deleted", 3: "unreviewed", 4: "added"}
    assert after.findings == "The heart is normal. A small effusion is seen."
    assert after.impression == "No acute disease. Follow up."
    assert after.line(4).drafted is None
    assert after.line(1).drafted == 1
    assert done(after) == [
        ("accept", 0, DRAFTED[0], DRAFTED[0]),
        ("edit", 1, DRAFTED[1], "A small effusion is seen."),
        ("delete", 2, DRAFTED[2], None),
        ("add", 4, None, "Follow up."),
    ]


def test_every_edit_has_its_time_in_utc(report):
    before = datetime.now(UTC)
    (edit,) = report.accept(0).edits
    assert edit.time.endswith("Z")
    # the log keeps milliseconds
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(edit.time) <= datetime.now(UTC)


def test_an_edit_back_to_the_drafted_words_is_an_acceptance(report):
    there = report.edit(1, "An effusion.").edit(1, "A large effusion.")
    back = there.edit(1, DRAFTED[1])
    assert (there.line(1).choice, back.line(1).choice) == (Choice.EDITED, Choice.ACCEPTED)
    assert there.drafted(1) == back.drafted(1) == DRAFTED[1]


def test_leaving_the_words_as_they_are_is_no_edit_and_no_review(report):
    assert report.edit(1, f"  {DRAFTED[1]}\n") is report
    edited = report.edit(1, "An effusion.")
    assert edited.edit(1, "An effusion.") is edited


@pytest.mark.parametrize("text", ["", " \n "])
def test_an_edit_to_nothing_is_a_deletion(report, text):
    assert done(report.edit(1, text)) == [("delete", 1, DRAFTED[1], None)]
    assert report.edit(1, text).line(1).text == DRAFTED[1]


def test_what_would_change_nothing_is_not_logged(report):
    settled = report.accept(0).delete(1).edit(2, "Clear.")
    assert settled.accept(0) is settled
    assert settled.accept(2) is settled
    assert settled.delete(1) is settled
    assert settled.restore(0) is settled
    assert settled.redo() is settled
    assert report.undo() is report
    assert report.unsign() is report


@pytest.mark.parametrize(
    ("before", "choice"),
    [
        (lambda r: r, "unreviewed"),
        (lambda r: r.accept(1), "unreviewed"),
        (lambda r: r.edit(1, "An effusion."), "edited"),
    ],
)
def test_a_restored_sentence_has_its_words_but_no_review(report, before, choice):
    was = before(report)
    again = was.delete(1).restore(1)
    assert choices(again)[1] == choice
    assert again.findings == was.findings


def test_a_readers_own_sentence_stays_their_own(report):
    own = report.add("findings", "A pacemaker.", after=1).edit(4, "A pacemaker on the left.")
    assert own.line(4) == Line(4, "findings", "A pacemaker on the left.", Choice.ADDED, None)
    assert own.delete(4).restore(4).line(4) == own.line(4)
    assert own.drafted(4) is None


@pytest.mark.parametrize(
    ("section", "after", "order"),
    [
        ("findings", None, [4, 0, 1, 2, 3]),
        ("findings", 0, [0, 4, 1, 2, 3]),
        ("findings", 2, [0, 1, 2, 4, 3]),
        ("impression", None, [0, 1, 2, 4, 3]),
        ("impression", 3, [0, 1, 2, 3, 4]),
    ],
)
def test_a_sentence_is_added_where_it_is_wanted(report, section, after, order):
    assert [line.id for line in report.add(section, "New.", after=after).lines] == order


def test_a_report_can_be_written_without_a_draft():
    own = Report().add("impression", "Normal.").add("findings", "Clear.")
    assert (own.findings, own.impression, own.unreviewed) == ("Clear.", "Normal.", ())
    assert own.sign().status == "final"


def test_lists_stand_line_by_line_and_unfinished_sentences_do_not_run_together():
    own = Report().retype("impression", "1. Nodule. 2. No effusion.\n- heart normal\n- lungs clear\nNothing else.")
    assert own.impression == "1. Nodule.\n2. No effusion.\n- heart normal\n- lungs clear\nNothing else."


@pytest.mark.parametrize(
    "operation",
    [
        lambda r: r.accept(9),
        lambda r: r.edit(9, "a"),
        lambda r: r.delete(9),
        lambda r: r.restore(9),
        lambda r: r.add("findings", "a", after=9),
        lambda r: r.add("findings", "a", after=3),
        lambda r: r.add("findings", " "),
        lambda r: r.delete(0).accept(0),
        lambda r: r.delete(0).edit(0, "a"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(report, operation):
    with pytest.raises(EmrrgError, match=r"^[A-Z].*\.$"):
        operation(report)


def test_an_unknown_section_is_a_programming_mistake(report):
    with pytest.raises(ValueError, match="not a section"):
        report.retype("history", "a")
    with pytest.raises(ValueError, match="not a section"):
        report.add("history", "a")


# ------------------------------------------------------------------------------------------------------ undo and redo


def test_undo_and_redo_walk_through_every_state_and_log_each_step(report):
    states = [report]
    for step in (
        lambda r: r.accept(0),
        lambda r: r.edit(1, "An effusion."),
        lambda r: r.add("findings", "A pacemaker.", after=0),
        lambda r: r.delete(1),
        lambda r: r.restore(1),
        lambda r: r.retype("findings", "The heart is large. The lungs are clear."),
    ):
        states.append(step(states[-1]))
    now = states[-1]
    for state in states[-2::-1]:
        now = now.undo()
        assert now.lines == state.lines
    assert now.undo() is now
    for state in states[1:]:
        now = now.redo()
        assert now.lines == state.lines
    assert now.redo() is now
    assert now.edits[: len(states[-1].edits)] == states[-1].edits
    assert {e.action for e in now.edits[len(states[-1].edits) :]} == {"undo", "redo"}
    assert len(now.edits) > len(states[-1].edits) + 2 * 6  # the retyping touched several lines


def test_an_undo_says_what_it_put_back(report):
    assert done(report.edit(1, "An effusion.").undo())[-1] == ("undo", 1, "An effusion.", DRAFTED[1])
    assert done(report.delete(1).undo())[-1] == ("undo", 1, None, DRAFTED[1])
    assert done(report.add("findings", "A.").undo())[-1] == ("undo", 4, "A.", None)


def test_a_new_step_ends_what_could_be_redone(report):
    after = report.accept(0).accept(1).undo().accept(2)
    assert after.redo() is after
    assert choices(after) == {0: "accepted", 1: "unreviewed", 2: "accepted", 3: "unreviewed"}


def test_no_number_is_given_to_two_sentences_even_after_an_undo(report):
    after = report.add("findings", "One.").undo().add("findings", "Two.")
    assert [(e.line, e.after) for e in after.edits if e.action == "add"] == [(4, "One."), (5, "Two.")]


def test_the_log_outlives_what_can_be_undone(report):
    now = report
    for turn in range(230):
        now = now.edit(0, f"Heart {turn}.")
    for _ in range(230):
        now = now.undo()
    assert now.line(0).text == "Heart 29."  # 200 steps back
    assert sum(e.action == "edit" for e in now.edits) == 230
    assert now.drafted(0) == DRAFTED[0]


# ------------------------------------------------------------------------------------------------------------- signing


def test_a_signature_needs_a_yes_to_every_sentence_and_names_those_without(report):
    with pytest.raises(EmrrgError, match="Not signed") as caught:
        report.accept(0).edit(1, "An effusion.").sign([2])
    assert DRAFTED[3] in str(caught.value)
    assert not any(text in str(caught.value) for text in (*DRAFTED[:3], "An effusion."))


def test_confirmed_sentences_are_accepted_by_the_signature(report):
    signed = report.accept(0).delete(1).sign([2, 3])
    assert choices(signed) == {0: "accepted", 1: "deleted", 2: "accepted", 3: "accepted"}
    assert [row[:2] for row in done(signed)[2:]] == [("accept", 2), ("accept", 3), ("sign", None)]
    assert (signed.status, signed.signed) == ("final", signed.edits[-1].time)


def test_a_report_without_words_is_not_signed(report):
    with pytest.raises(EmrrgError, match="no words"):
        report.delete(0).delete(1).delete(2).delete(3).sign()
    with pytest.raises(EmrrgError, match="no words"):
        Report().sign()


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.accept(0),
        lambda r: r.edit(0, "a"),
        lambda r: r.delete(0),
        lambda r: r.restore(0),
        lambda r: r.add("findings", "a"),
        lambda r: r.retype("findings", "a"),
        lambda r: r.undo(),
        lambda r: r.redo(),
        lambda r: r.sign(),
    ],
)
def test_a_signed_report_is_not_changed_until_the_signature_is_taken_back(report, change):
    signed = report.edit(0, "Large heart.").sign([1, 2, 3])
    with pytest.raises(EmrrgError, match="is signed"):
        change(signed)
    opened = signed.unsign()
    assert (opened.status, opened.signed, opened.lines) == ("preliminary", None, signed.lines)
    changed = opened.edit(0, "Small heart.")
    assert [e.action for e in changed.edits][-3:] == ["sign", "unsign", "edit"]


def test_a_text_says_whether_it_was_reviewed_and_signed(report):
    assert report.text().startswith("DRAFT, NOT REVIEWED\n")
    assert DISCLAIMER in report.text()
    reviewed = report.accept(0).accept(1).accept(2)
    assert reviewed.text().startswith("DRAFT, NOT REVIEWED\n")  # one is left
    reviewed = reviewed.delete(3)
    assert "NOT REVIEWED" not in reviewed.text()
    assert "Preliminary, not signed off." in reviewed.text()
    signed = reviewed.sign()
    assert f"Signed off {signed.signed}." in signed.text()
    for text in (reviewed.text(), signed.text()):
        assert "not reviewed by a radiologist" not in text
        assert "not a medical device" in text
    assert signed.text().index("FINDINGS:") < signed.text().index(DRAFTED[0]) < signed.text().index("IMPRESSION:")
    assert DRAFTED[3] not in signed.text()


# ----------------------------------------------------------------------------------------------------------- retyping

H, E, L, D = DRAFTED


@pytest.mark.parametrize(
    ("text", "expected", "actions"),
    [
        (f"{H} {E} {L}", ["0 accepted", "1 unreviewed", "2 unreviewed"], []),
        (f" {H}\n\n{E}\n{L}\n", ["0 accepted", "1 unreviewed", "2 unreviewed"], []),
        (f"{H} No large effusion is seen. {L}", ["0 accepted", "1 edited", "2 unreviewed"], [("edit", 1)]),
        (f"{H} {L}", ["0 accepted", "1 deleted", "2 unreviewed"], [("delete", 1)]),
        (L, ["0 deleted", "1 deleted", "2 unreviewed"], [("delete", 0), ("delete", 1)]),
        (f"{H} {E} {L} A nodule.", ["0 accepted", "1 unreviewed", "2 unreviewed", "4 added"], [("add", 4)]),
        (f"A nodule. {H} {E} {L}", ["4 added", "0 accepted", "1 unreviewed", "2 unreviewed"], [("add", 4)]),
        (f"{H} A nodule. {E} {L}", ["0 accepted", "4 added", "1 unreviewed", "2 unreviewed"], [("add", 4)]),
        (
            f"{H} Pacemaker leads on the left. {L}",  # nothing of the old sentence is in the new one
            ["0 accepted", "1 deleted", "4 added", "2 unreviewed"],
            [("add", 4), ("delete", 1)],
        ),
        (
            f"{L} {H} {E}",  # moved, not rewritten
            ["2 unreviewed", "0 accepted", "1 unreviewed"],
            [("delete", 2), ("restore", 2)],
        ),
        (f"{H} {E[:-1]} and {L}", ["0 accepted", "1 edited", "2 deleted"], [("edit", 1), ("delete", 2)]),
        ("", ["0 deleted", "1 deleted", "2 deleted"], [("delete", 0), ("delete", 1), ("delete", 2)]),
    ],
)
def test_a_retyped_section_keeps_the_state_of_what_was_not_touched(report, text, expected, actions):
    was = report.accept(0)
    now = was.retype("findings", text)
    assert [f"{x.id} {x.choice}" for x in now.lines if x.section == "findings"] == expected
    assert [(e.action, e.line) for e in now.edits[1:]] == actions
    assert now.findings.split() == text.split()
    assert (now.lines[-1], now.impression) == (was.lines[-1], D)
    if actions:
        assert now.undo().lines == was.lines
    else:
        assert now is was


def test_a_retyped_impression_leaves_the_findings_alone(report):
    now = report.retype("impression", "Acute disease. Call the ward.")
    assert now.findings == report.findings
    assert [(x.section, x.text, x.choice.value) for x in now.lines[3:]] == [
        ("impression", "Acute disease.", "edited"),
        ("impression", "Call the ward.", "added"),
    ]


def test_words_that_were_cut_out_and_pasted_again_are_the_line_they_were(report):
    edited = report.edit(1, "An effusion on the left.")
    now = edited.retype("findings", "").retype("findings", edited.findings)
    assert choices(now) == choices(edited)
    assert now.lines == edited.lines


def test_retyping_back_to_the_drafted_words_is_an_acceptance(report):
    now = report.retype("findings", f"{H} An effusion is seen. {L}").retype("findings", f"{H} {E} {L}")
    assert choices(now) == {0: "unreviewed", 1: "accepted", 2: "unreviewed", 3: "unreviewed"}


def test_a_correction_of_a_space_is_an_edit(report):
    now = report.edit(1, "A nodule of 1 .5 cm.").retype("findings", f"{H} A nodule of 1.5 cm. {L}")
    assert now.line(1).text == "A nodule of 1.5 cm."


def test_lines_that_are_no_sentences_stay_as_they_are_when_another_is_retyped(report):
    """One line of two sentences, one without a full stop in lower case: the splitter alone would cut them anew."""
    was = report.edit(0, "Heart is normal. Aorta too.").edit(1, "no effusion").accept(2)
    now = was.retype("findings", was.findings.replace("lungs are clear", "lungs are not clear"))
    assert [line.text for line in now.lines[:3]] == [
        "Heart is normal. Aorta too.",
        "no effusion",
        "The lungs are not clear.",
    ]
    assert [(e.action, e.line) for e in now.edits[3:]] == [("edit", 2)]


def test_whatever_is_typed_the_report_says_those_words_and_undo_takes_them_back(report):
    random = Random(5)
    words = [*" ".join(DRAFTED).split(), "1.", "2.", "-", "\n", "nodule", "?", "Dr.", "No", "café", "..."]
    now = report
    for _ in range(150):
        section = random.choice(("findings", "impression"))
        text = getattr(now, section).split()
        at, size = random.randrange(len(text) + 1), random.randrange(4)
        text[at : at + size] = random.choices(words, k=random.randrange(4))
        before, now = now, now.retype(section, " ".join(text))
        assert getattr(now, section).split() == " ".join(text).split()
        assert now.retype(section, getattr(now, section)) is now
        assert now is before or now.undo().lines == before.lines
        assert len({line.id for line in now.lines}) == len(now.lines)
        for line in now.lines:
            assert (line.drafted is None) == (line.id > 3)
            if line.choice in (Choice.UNREVIEWED, Choice.ACCEPTED):
                assert line.text == DRAFTED[line.id]
    assert Report.from_dict(json.loads(json.dumps(now.to_dict()))) == now


# ---------------------------------------------------------------------------------------------------------- difference


def test_a_difference_says_word_by_word_what_became_of_the_draft(study, report):
    now = report.accept(0).edit(1, "A small effusion is seen, new.").delete(2).add("impression", "Follow up.", after=3)
    rows = now.diff(study)
    assert [(d.line, d.section, d.choice.value) for d in rows] == [
        (0, "findings", "accepted"),
        (1, "findings", "edited"),
        (2, "findings", "deleted"),
        (3, "impression", "unreviewed"),
        (4, "impression", "added"),
    ]
    assert [(d.drafted, d.written) for d in rows] == [
        (H, H),
        (E, "A small effusion is seen, new."),
        (L, None),
        (D, D),
        (None, "Follow up."),
    ]
    assert [[(p.kind, p.text) for p in d.pieces] for d in rows] == [
        [("same", H)],
        [
            ("removed", "No "),
            ("added", "A small "),
            ("same", "effusion is seen"),
            ("added", ", new"),
            ("same", "."),
        ],
        [("removed", L)],
        [("same", D)],
        [("added", "Follow up.")],
    ]


@pytest.mark.parametrize(
    "text",
    ["No effusion.", "a", "No effusion  is seen .", "effusion No is seen.", "No 1.5 cm effusion\nis seen.", E.upper()],
)
def test_the_pieces_of_a_difference_are_both_texts(study, report, text):
    row = report.edit(1, text).diff(study)[1]
    assert "".join(p.text for p in row.pieces if p.kind != "removed") == text
    drafted = "".join(p.text for p in row.pieces if p.kind != "added")
    assert drafted.replace(" ", "").replace("\n", "") == E.replace(" ", "")


# ------------------------------------------------------------------------------ indication, comparison and technique


def test_a_field_is_put_in_logged_and_emptied_again(report):
    now = report.with_field("indication", " Cough.\n").with_field("technique", "PA.").with_field("indication", "")
    assert now.fields == Fields(technique="PA.")
    assert [(e.action, e.line, e.before, e.after, e.field) for e in now.edits] == [
        ("field", None, None, "Cough.", "indication"),
        ("field", None, None, "PA.", "technique"),
        ("field", None, "Cough.", None, "indication"),
    ]
    assert now.with_field("technique", " PA. ") is now
    assert (report.fields, report.edits) == (Fields(), ())


def test_a_field_is_no_step_for_undo_and_undo_leaves_it_alone(report):
    now = report.accept(0).with_field("comparison", "None.")
    assert len(now.past) == 1
    back = now.undo()
    assert (back.lines, back.fields) == (report.lines, Fields(comparison="None."))
    again = back.with_field("technique", "AP.").redo()
    assert (again.lines, again.fields) == (now.lines, Fields(comparison="None.", technique="AP."))


def test_an_unknown_field_and_a_signed_report_are_refused_in_words(report):
    with pytest.raises(EmrrgError, match="no field “history”: choose one of indication, comparison, technique"):
        report.with_field("history", "a")
    done = report.with_field("indication", "Cough.").sign([0, 1, 2, 3])
    with pytest.raises(EmrrgError, match="is signed"):
        done.with_field("indication", "Fever.")
    assert done.unsign().with_field("indication", "Fever.").fields.indication == "Fever."
    with pytest.raises(EmrrgError, match="no words"):
        Report().with_field("indication", "Cough.").sign()


def test_fields_stand_before_the_findings_where_they_have_words(report):
    text = report.with_field("technique", "PA.").with_field("indication", "Cough,\nfever.").text()
    assert text.startswith("DRAFT, NOT REVIEWED\n\nINDICATION:\nCough,\nfever.\n\nTECHNIQUE:\nPA.\n\nFINDINGS:\n")
    assert "COMPARISON" not in text
    assert "INDICATION" not in report.text()


def test_fields_are_kept_and_a_report_that_was_kept_before_there_were_any_opens(report):
    now = report.accept(0).with_field("comparison", "Film of May.")
    data = json.loads(json.dumps(now.to_dict()))
    assert data["fields"] == {"indication": "", "comparison": "Film of May.", "technique": ""}
    assert Report.from_dict(data) == now
    older = report.accept(0)
    data = json.loads(json.dumps(older.to_dict()))
    del data["fields"]
    for edit in data["edits"]:
        del edit["field"]
    assert Report.from_dict(data) == older


@pytest.mark.parametrize("fields", [{"history": "a"}, {"indication": 5}, {"indication": None}, ["a"], "a"])
def test_damaged_fields_are_refused_in_words(report, fields):
    with pytest.raises(EmrrgError, match="report cannot be read"):
        Report.from_dict(report.to_dict() | {"fields": fields})


# ------------------------------------------------------------------------------------------------------- report as JSON


REPORT_KEYS = {
    "schema",
    "status",
    "signed",
    "findings",
    "impression",
    "fields",
    "decided",
    "says",
    "lines",
    "edits",
    "undo",
}


def test_a_report_as_json_has_the_documented_keys_and_comes_back_whole(report):
    now = report.accept(0).edit(1, "An effusion.").add("findings", "New.").undo().sign([2, 3])
    data = json.loads(json.dumps(now.to_dict(), allow_nan=False))
    assert set(data) == REPORT_KEYS
    assert (data["schema"], data["status"], data["signed"]) == ("emrrg.report/1", "final", now.signed)
    assert set(data["lines"][0]) == {"id", "section", "text", "choice", "drafted", "written"}
    assert set(data["edits"][0]) == {"time", "action", "line", "before", "after", "field"}
    back = Report.from_dict(data)
    assert back == now
    assert back.unsign().undo().lines == now.unsign().undo().lines


def test_a_report_comes_back_without_its_undo_steps(report):
    now = report.accept(0)
    data = {name: value for name, value in now.to_dict().items() if name != "undo"}
    back = Report.from_dict(data)
    assert (back.lines, back.edits) == (now.lines, now.edits)
    assert back.undo() is back


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "emrrg.report/2"},
        {"lines": None},
        {"lines": [{"id": 0}]},
        {"lines": [{"id": 0, "section": "history", "text": "a", "choice": "added", "drafted": None}]},
        {"lines": [{"id": 0, "section": "findings", "text": "a", "choice": "liked", "drafted": None}]},
        {"lines": [{"id": "0", "section": "findings", "text": "a", "choice": "added", "drafted": None}]},
        {"lines": [{"id": 0, "section": "findings", "text": "a", "choice": "added", "drafted": None}] * 2},
        {"edits": [{"time": "t", "action": "shout", "line": 0, "before": None, "after": None}]},
        {"undo": {"lines": [], "past": [[3]], "future": []}},
        {"signed": True},
    ],
)
def test_a_damaged_report_is_refused_in_words(report, change):
    with pytest.raises(EmrrgError, match="report cannot be read"):
        Report.from_dict(report.to_dict() | change)


@pytest.mark.parametrize("data", [None, [], "text", {}])
def test_what_is_no_report_is_refused_in_words(data):
    with pytest.raises(EmrrgError, match="report cannot be read"):
        Report.from_dict(data)


# ------------------------------------------------------------------------------------------ Impression from these findings


@pytest.fixture
def made() -> Draft:
    return draft(cut(compose(FINDINGS, IMPRESSION), 3, 5))


def written(draft) -> Report:
    """A report whose reader added a sentence to the Impression; then the model wrote an Impression anew."""
    report = Report.of(draft)
    report = report.add("impression", "Compare with the film of May.", after=report.lines[-1].id)
    return report.summarise("Left pleural effusion. No acute disease.")


def test_an_impression_from_the_findings_takes_the_place_of_the_models_and_leaves_the_readers_own(made):
    before, after = Report.of(made), written(made)
    assert after.findings == before.findings
    assert after.impression == "Compare with the film of May. Left pleural effusion. No acute disease."
    new = after.lines[-2:]
    assert [(x.choice, x.drafted, x.by_model) for x in new] == [(Choice.UNREVIEWED, None, True)] * 2
    assert next(x for x in after.lines if x.choice is Choice.ADDED).by_model is False
    gone = [x for x in after.lines if x.choice is Choice.DELETED]
    assert [x.text for x in gone] == [x.text for x in before.lines if x.section == "impression"]
    assert [e.action for e in after.edits[-2:]] == ["write", "write"]
    assert after.undo().impression == f"{before.impression} Compare with the film of May."
    with pytest.raises(EmrrgError, match="Not signed"):
        after.sign([x.id for x in before.lines])  # nobody has reviewed what was written since


def test_a_line_that_was_written_since_is_edited_restored_and_kept_like_a_drafted_one(made):
    report = written(made)
    id = report.lines[-2].id
    edited = report.edit(id, "Small left pleural effusion.")
    assert edited.line(id).choice is Choice.EDITED
    assert edited.drafted(id) == "Left pleural effusion."
    assert next(row for row in edited.diff(made) if row.line == id).drafted == "Left pleural effusion."
    assert edited.edit(id, "Left pleural effusion.").line(id).choice is Choice.ACCEPTED
    assert report.delete(id).restore(id).line(id).choice is Choice.UNREVIEWED
    again = Report.from_dict(json.loads(json.dumps(edited.to_dict())))
    assert again == edited
    old = edited.to_dict()
    for line in old["lines"] + old["undo"]["lines"]:
        del line["written"]
    assert Report.from_dict(old).text() == edited.text()  # a report that was kept before there was such a thing


def test_the_same_impression_again_changes_nothing(made):
    report = written(made)
    assert report.summarise("No acute disease. Left pleural effusion.") is report
    once = report.accept(report.lines[-1].id)
    changed = once.summarise("No acute disease.")
    assert changed.line(once.lines[-1].id).choice is Choice.ACCEPTED  # it comes again, and stays as it is
    assert changed.impression == "Compare with the film of May. No acute disease."
