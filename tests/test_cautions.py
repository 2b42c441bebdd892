"""Warnings stand at the sentence that they are about, go with its words, and hold the signature back until each is decided."""

from dataclasses import replace

import numpy as np
import pytest

from emrrg_core.errors import EmrrgError
from emrrg_core.model.finding_tokens import Earlier, Finding, Presence
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.cautions import Caution, CautionKind, cautions
from emrrg_core.report.draft import Draft, compose, sections
from emrrg_core.report.report import Report
from emrrg_core.report.told import Said
from emrrg_core.text.changes import Change

PRESENT, ABSENT, OPEN = Presence.PRESENT, Presence.ABSENT, Presence.OPEN


def finding(name: str, presence: Presence = PRESENT, side: str = "", **more) -> Finding:
    return Finding(name, presence, 0.7, 0.5, side, **more)


def drafted(findings: str, impression: str, *read: Finding) -> Draft:
    token = Token(
        0, compose(findings, impression), -0.1, (0.1,), np.zeros((1, 4), np.float32), np.zeros((1, 0), np.float32)
    )
    above, below, found = sections(Writing((token,), True, -0.1))
    return Draft(above, below, found, (token,), (0,), 2, (), (), {}, {}, {"seed": 0}, True, read=read or None)


def of(draft: Draft, report: Report | None = None, *, has_prior: bool = False) -> tuple[Caution, ...]:
    return cautions(report or Report.of(draft), draft, has_prior=has_prior)


def kinds(found: tuple[Caution, ...]) -> list[tuple[int | None, str]]:
    return [(caution.line, caution.kind.value) for caution in found]


# ---------------------------------------------------------------------------------------------------------- in the text


def test_what_the_text_says_against_itself_stands_at_both_sentences():
    draft = drafted("There is a left effusion. The heart is normal.", "No pleural effusion. Right nodule.")
    assert kinds(of(draft)) == [(0, "negation"), (2, "negation"), (3, "only in the Impression")]
    sides = drafted("There is a left effusion.", "Right effusion.")
    assert kinds(of(sides)) == [(0, "side"), (1, "side")]
    normal = drafted("There is a left effusion.", "Left effusion. No acute cardiopulmonary disease.")
    assert kinds(of(normal)) == [(0, "normal"), (1, "normal"), (2, "normal"), (2, "normal")]  # beside each of two
    assert len({caution.key for caution in of(normal)}) == 4


def test_words_about_an_earlier_film_are_one_warning_a_sentence_and_none_where_one_was_given():
    draft = drafted("The heart is normal. Stable and unchanged opacity.", "")
    found = of(draft)
    assert kinds(found) == [(1, "prior")]
    assert "“Stable”" in found[0].message
    assert "“unchanged”" in found[0].message
    assert of(draft, has_prior=True) == ()


def test_every_kind_of_flag_is_a_kind_of_caution():
    from emrrg_core.text.consistency import Kind

    assert {kind.value for kind in Kind} <= {kind.value for kind in CautionKind}


# ---------------------------------------------------------------------------------------------------------- by the film


@pytest.mark.parametrize(
    ("sentence", "read", "expected"),
    [
        ("There is a nodule.", [finding("nodule", OPEN)], "not read"),
        ("There is a nodule.", [finding("nodule")], None),
        ("No nodule.", [finding("nodule", OPEN)], "not ruled out"),
        ("No nodule.", [finding("nodule", ABSENT)], None),
        ("Left effusion.", [finding("effusion", side="right")], "other side"),
        ("Left effusion.", [finding("effusion", side="left")], None),
        ("Left effusion.", [finding("effusion")], None),
        ("Left effusion, right effusion.", [finding("effusion", side="bilateral")], None),
        ("Old rib fracture.", [finding("effusion", ABSENT)], "not assessed"),
        ("No fracture.", [finding("effusion", ABSENT)], "not assessed"),
        ("Opacity, which may be pneumonia.", [finding("opacity")], "not read"),
        ("Opacity, which may be pneumonia.", [finding("opacity", pneumonia=True)], None),
        ("There is atelectasis with opacity.", [finding("atelectasis"), finding("opacity", OPEN)], None),
        ("No pneumonia.", [finding("opacity", ABSENT)], None),
    ],
)
def test_the_models_words_are_held_against_what_was_read(sentence, read, expected):
    found = [kind for line, kind in kinds(of(drafted(sentence, "", *read))) if line == 0]
    assert found == ([expected] if expected else [])


def test_a_readers_own_words_are_not_and_accepted_ones_still_are():
    draft = drafted("There is a nodule. Heart normal.", "", finding("nodule", OPEN), finding("heart", ABSENT))
    report = Report.of(draft)
    assert kinds(of(draft, report.accept(0))) == [(0, "not read")]
    assert of(draft, report.edit(0, "There is a nodule in the left lung.")) == ()
    assert of(draft, report.delete(0)) == ()
    assert of(draft, report.delete(0).add("findings", "There is a nodule.")) == ()
    assert kinds(of(draft, report.delete(0).restore(0))) == [(0, "not read")]


def test_a_checkpoint_that_reads_nothing_and_a_report_without_a_draft_are_not_held_against_a_film():
    draft = drafted("There is a nodule.", "")
    assert of(draft) == ()
    own = Report().add("findings", "There is a nodule. No nodule.")
    assert kinds(cautions(own, None, has_prior=False)) == [(0, "negation")]


def test_what_was_read_and_is_not_stated_is_a_warning_of_the_whole_report_unless_the_reader_took_it_out():
    nodule = finding("nodule", side="left", zone="upper")
    draft = drafted("The heart is normal.", "", nodule, finding("heart", ABSENT))
    (only,) = of(draft)
    assert (only.line, only.kind) == (None, CautionKind.NOT_STATED)
    assert only.message == "Read in the film, but not stated: nodule or mass, left upper lung."
    assert of(draft, Report.of(draft).add("findings", "There is a nodule.")) == ()
    stated = drafted("There is a nodule.", "", nodule)
    assert of(stated, Report.of(stated).delete(0)) == ()


def test_a_change_that_was_not_read_is_a_warning_and_so_is_one_that_no_sentence_tells():
    larger = finding("opacity", side="left", earlier=Earlier(PRESENT, "left", "", Change.LARGER))
    assert of(drafted("Left opacity, larger than on the prior film.", "", larger), has_prior=True) == ()
    (wrong,) = of(drafted("Left opacity, unchanged from the prior film.", "", larger), has_prior=True)
    assert (wrong.line, wrong.kind) == (0, CautionKind.CHANGE)
    assert "it is larger" in wrong.message
    assert kinds(of(drafted("New left opacity.", "", finding("opacity")), has_prior=True)) == [(0, "change")]
    assert kinds(of(drafted("New left opacity.", "", finding("opacity")))) == [(0, "prior")]  # once is enough
    assert kinds(of(drafted("Left opacity.", "", larger), has_prior=True)) == [(None, "change")]


# ------------------------------------------------------------------------------------------------- by what a reader said


def test_what_the_reader_said_of_a_finding_counts_in_place_of_the_film_and_of_every_sentence():
    draft = drafted("There is a left effusion.", "", finding("effusion", OPEN), finding("nodule", ABSENT))
    report = Report.of(draft)
    assert kinds(of(draft, report)) == [(0, "not read")]
    on = replace(report, says={"effusion": Said(True, "left")})
    assert of(draft, on) == ()
    off = replace(report, says={"effusion": Said(False)})
    assert kinds(of(draft, off)) == [(0, "switched")]
    assert kinds(of(draft, off.edit(0, "Small left effusion."))) == [(0, "switched")]
    right = replace(report, says={"effusion": Said(True, "right")})
    (side,) = of(draft, right)
    assert side.message == "You said of pleural effusion: present, right. This sentence names another side."
    nothing = replace(report, says={"nodule": Said(True)}).edit(0, "There is an effusion.")
    assert kinds(of(draft, nothing)) == [(None, "not stated")]
    silent = replace(report, says={"effusion": Said(None)})
    assert kinds(of(draft, silent)) == [(0, "switched")]
    assert of(draft, silent.edit(0, "There may be a left effusion.")) == ()


# ------------------------------------------------------------------------------------------------------- to be decided


def test_a_key_is_the_same_for_the_same_sentence_and_another_for_other_words():
    draft = drafted("There is a nodule. No effusion.", "", finding("nodule", OPEN), finding("effusion", OPEN))
    one, two = of(draft)
    assert [c.key for c in of(draft, Report.of(draft).accept(0))] == [one.key, two.key]
    assert one.key != two.key
    other = drafted("There is a mass. No effusion.", "", finding("nodule", OPEN), finding("effusion", OPEN))
    assert one.key not in {caution.key for caution in of(other)}
    assert len(one.key) == 12


def test_nothing_is_signed_before_each_warning_is_decided_and_a_changed_sentence_is_decided_anew():
    draft = drafted("There is a nodule. No effusion.", "", finding("nodule", OPEN), finding("effusion"))
    report = Report.of(draft)
    found = of(draft, report)
    assert [caution.line for caution in found] == [0, 1, None]
    with pytest.raises(EmrrgError, match=r"decide on each warning first: “There is a nodule.” “No effusion.” Read in"):
        report.sign([0, 1], found)
    for caution in found:
        report = report.decide(caution.key, caution.line)
    assert report.sign([0, 1], of(draft, report)).signed
    changed = report.edit(1, "Effusion.").edit(1, "No effusion on the right.")
    assert changed.decided == report.decided
    assert changed.sign([0, 1], of(draft, changed)).signed  # the reader's own words, and the rest is decided
    with pytest.raises(EmrrgError, match="No effusion"):
        report.undo().undo().sign([0, 1], found)


def test_a_deleted_sentence_asks_for_no_decision():
    draft = drafted("There is a nodule. Heart normal.", "", finding("nodule", OPEN), finding("heart", ABSENT))
    report = Report.of(draft).delete(0)
    assert report.sign([1], of(draft, report)).signed
