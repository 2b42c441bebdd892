"""Findings and Impression are linked by what their lines say, and a change in one is offered in the other."""

import pytest

from emrrg_core.errors import EmrrgError
from emrrg_core.report.links import Offer, linked, offers
from emrrg_core.report.report import Choice, Line, Report

FINDINGS = (
    "There is an opacity in the right lower lung.",
    "There is a small left pleural effusion.",
    "No pneumothorax.",
)
IMPRESSION = ("Right lower lung opacity, suspicious for pneumonia.", "Small left pleural effusion.")


def report(findings=FINDINGS, impression=IMPRESSION) -> Report:
    """Lines 0, 1, …: the model's, of Findings, then of Impression."""
    rows = [("findings", text) for text in findings] + [("impression", text) for text in impression]
    return Report(
        tuple(Line(i, section, text, Choice.UNREVIEWED, i) for i, (section, text) in enumerate(rows)),
    )


def offered(before: Report, after: Report) -> list[tuple[str, int | None, str]]:
    return [(offer.action, offer.line, offer.text) for offer in offers(before, after)]


# --------------------------------------------------------------------------------------------------------------- linked


def test_a_line_is_linked_with_those_of_the_other_section_that_state_the_same():
    both = report()
    assert [linked(both, line) for line in range(5)] == [(3,), (4,), (), (0,), (1,)]


def test_a_pneumonia_is_linked_with_the_opacity_that_it_may_be():
    assert linked(report(["Patchy opacity on the left."], ["Left pneumonia."]), 0) == (1,)


def test_what_is_on_the_other_side_or_denied_is_not_linked_and_what_tells_no_side_is():
    assert linked(report(["Right pleural effusion."], ["Left pleural effusion."]), 0) == ()
    assert linked(report(["No pleural effusion."], ["Left pleural effusion."]), 0) == ()
    assert linked(report(["No pleural effusion."], ["No effusion."]), 0) == (1,)
    assert linked(report(["Right pleural effusion."], ["Pleural effusion.", "Bilateral effusions."]), 0) == (1, 2)


def test_a_call_of_normal_is_linked_with_no_line():
    text = "No acute cardiopulmonary abnormality."
    assert linked(report(["No pleural effusion.", text], [text]), 2) == ()
    assert linked(report(["No pleural effusion.", text], [text]), 1) == ()


def test_a_deleted_line_is_linked_with_what_stands_and_nothing_with_a_deleted_one():
    gone = report().delete(1)
    assert linked(gone, 1) == (4,)
    assert linked(gone, 4) == ()
    with pytest.raises(EmrrgError):
        linked(gone, 99)


# -------------------------------------------------------------------------------------------------------------- deleted


def test_a_finding_deleted_from_the_findings_is_offered_to_be_deleted_from_the_impression():
    before = report()
    (offer,) = offers(before, before.delete(1))
    assert offer == Offer(
        "delete", 4, "The Impression still says: “Small left pleural effusion.” Delete it too?", offer.text
    )
    assert offer.text == ""
    assert before.delete(1).line(4).choice is Choice.UNREVIEWED


def test_and_the_other_way_round():
    before = report()
    assert offered(before, before.delete(4)) == [("delete", 1, "")]


def test_nothing_is_offered_where_another_line_states_it_still_or_nothing_was_stated():
    twice = report((*FINDINGS, "Blunted angle: effusion on the left."))
    assert offered(twice, twice.delete(1)) == []
    assert offered(report(), report().delete(2)) == []
    assert offered(report(), report().accept(1)) == []


def test_a_line_that_states_something_else_too_is_not_offered_to_be_deleted():
    before = report(FINDINGS, ["Left pleural effusion with opacity in the right lower lung."])
    assert offered(before, before.delete(1)) == [("summarise", None, "")]
    below = report(["Left pleural effusion with opacity in the right lower lung."], IMPRESSION)
    assert offered(below, below.delete(2)) == []


def test_an_edit_that_takes_the_finding_out_counts_as_its_deletion():
    before = report()
    assert offered(before, before.edit(1, "No pleural effusion.")) == [("delete", 4, "")]
    assert offered(before, before.edit(1, "There is a large left pleural effusion.")) == []


def test_both_lines_deleted_in_one_step_offer_nothing():
    before = report()
    assert offered(before, before.delete(1).delete(4)) == []


# ----------------------------------------------------------------------------------------------------------- other side


@pytest.mark.parametrize(
    ("was", "now", "there", "offered_text"),
    [
        ("Right pleural effusion.", "Left pleural effusion.", "Right pleural effusion.", "Left pleural effusion."),
        (
            "There is an opacity in the left upper lung.",
            "There is an opacity in both upper lungs.",
            "Left upper lung opacity, which may represent pneumonia.",
            "Bilateral upper lung opacity, which may represent pneumonia.",
        ),
        (
            "Opacities in both lower lungs.",
            "Opacity in the right lower lung.",
            "Opacities in both lower lungs.",
            "Opacities in the right lower lung.",
        ),
        ("Nodule in the left lung.", "Nodule in the right lung.", "LEFT-sided nodule.", "Right-sided nodule."),
        # of two findings only one moves
        (
            "Left pleural effusion.",
            "Right pleural effusion.",
            "Left pleural effusion with opacity in the left lung.",
            "Right pleural effusion with opacity in the left lung.",
        ),
    ],
)
def test_another_side_in_the_findings_is_offered_for_the_impression(was, now, there, offered_text):
    findings = [was, "There is an opacity in the left lung."] if "with opacity" in there else [was]
    before = report(findings, [there])
    assert offered(before, before.edit(0, now)) == [("edit", len(findings), offered_text)]


def test_a_side_that_cannot_be_put_into_the_words_offers_the_impression_anew():
    before = report(["Left effusion.", "Left opacity."], ["Opacity with effusion on the left."])
    assert offered(before, before.edit(0, "Right effusion.")) == [("summarise", None, "")]
    below = report(["Opacity with effusion on the left."], ["Left effusion.", "Left opacity."])
    assert offered(below, below.edit(1, "Right effusion.")) == []


def test_a_side_that_is_named_first_or_no_more_offers_nothing():
    before = report(["Pleural effusion."], ["Pleural effusion."])
    assert offered(before, before.edit(0, "Left pleural effusion.")) == []
    before = report(["Left pleural effusion."], ["Left pleural effusion."])
    assert offered(before, before.edit(0, "Pleural effusion.")) == []


# ------------------------------------------------------------------------------------------------------------- restored


def test_a_restored_finding_offers_the_line_that_was_deleted_with_it():
    before = report().delete(1).delete(4)
    assert offered(before, before.restore(1)) == [("restore", 4, "")]
    assert offered(report().delete(1), report().delete(1).restore(1)) == []  # it stands


def test_a_signed_report_is_offered_nothing():
    before = report()
    after = before.delete(1).sign(range(9))
    assert offers(before, after) == ()
