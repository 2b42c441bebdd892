"""Drafts: sections and sentences are found again in the text, each sentence with the tokens that wrote it."""

import json
import math
import re

import numpy as np
import pytest

from emrrg_core.decode import Token, Writing
from emrrg_core.layout import first_repeat
from emrrg_core.report import DISCLAIMER, SCHEMA, Draft, FilmRecord, as_text, compose, sections, split

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
        Token(i, part, -0.1 * (i % 7) - 0.01, (0.1 * i, -0.2), np.full((2, 4), 0.2, np.float32))
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
        "findings",
        "impression",
        "sentences",
        "tokens",
        "finished",
        "closed",
        "warnings",
        "timings",
        "model",
        "decoding",
        "seed",
    }
    assert (data["schema"], data["schema"], data["notice"]) == ("emrrg.draft/1", SCHEMA, DISCLAIMER)
    assert set(data["films"][0]) == {"name", "format", "sha256", "height", "width", "spacing", "view", "steps"}
    assert data["films"][0]["steps"] == ["read", "scaled"]
    assert set(data["sentences"][0]) == {"text", "section", "start", "end", "confidence", "gates", "map", "maps"}
    assert data["sentences"][0]["gates"].keys() == {"0", "5"}
    assert set(data["tokens"][0]) == {"text", "log_prob", "gates", "forced"}
    assert "".join(token["text"] for token in data["tokens"]) == compose(FINDINGS, IMPRESSION)
    assert (data["finished"], data["closed"], data["tokens"][0]["forced"]) == (True, ["findings"], False)
    assert (data["findings"], data["impression"], data["seed"]) == (FINDINGS, IMPRESSION, 7)


def test_maps_stand_with_their_sentences_the_first_film_first():
    data = draft([compose("A is b. C is d.", "")]).to_dict({1: ["one.npy", "two.npy"]})
    assert [(s["map"], s["maps"]) for s in data["sentences"]] == [(None, []), ("one.npy", ["one.npy", "two.npy"])]


def test_the_text_carries_both_sections_and_the_notice():
    text = draft([compose(FINDINGS, IMPRESSION)]).text()
    assert text == as_text(FINDINGS, IMPRESSION)
    assert text.index("FINDINGS:") < text.index(FINDINGS) < text.index("IMPRESSION:") < text.index(IMPRESSION)
    assert text.rstrip().endswith(DISCLAIMER)
    assert "not a medical device" in DISCLAIMER
