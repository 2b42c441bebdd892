"""A finding is switched: the sentences that rest on it are exchanged in both sections, and no other word of the report changes."""

import json

import numpy as np
import pytest

from emrrg_core.errors import EmrrgError
from emrrg_core.model.finding_tokens import Earlier, Finding, Presence
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.draft import Draft, compose, sections
from emrrg_core.report.report import Choice, Report
from emrrg_core.report.rewrite import Rewritten, agreeing, missed, whole
from emrrg_core.report.told import Said, spoken, switched
from emrrg_core.text.changes import Change

PRESENT, ABSENT, OPEN = Presence.PRESENT, Presence.ABSENT, Presence.OPEN
READ = (
    Finding("abnormal", PRESENT, 0.9, 0.5),
    Finding("opacity", PRESENT, 0.9, 0.5, "right", "lower", "", True),
    Finding("nodule", OPEN, 0.3, 0.5),
    Finding("effusion", ABSENT, 0.01, 0.5),
    Finding("heart", OPEN, 0.01, 0.5),
)
OPACITY = "There is an opacity in the right lower lung."
CONCLUDED = "Right lower lung opacity, suspicious for pneumonia."
DENIED, NORMAL = "No pleural effusion.", "No acute cardiopulmonary disease."
EFFUSION, SHORT = "There is a left pleural effusion.", "Left pleural effusion."
ON = {"effusion": Said(True, "left")}
OFF = {"effusion": Said(False)}


def report(findings: str, impression: str) -> Report:
    """As drafted. Lines are numbered through both sections."""
    token = Token(
        0, compose(findings, impression), -0.1, (0.1,), np.zeros((1, 4), np.float32), np.zeros((1, 0), np.float32)
    )
    above, below, found = sections(Writing((token,), True, -0.1))
    return Report.of(Draft(above, below, found, (token,), (0,), 2, (), (), {}, {}, {"seed": 0}, True))


ABNORMAL = report(f"{OPACITY} {DENIED}", CONCLUDED)
CLEAR = report(f"The heart is normal. {DENIED}", NORMAL)
WITH = Rewritten(f"{OPACITY} {EFFUSION}", f"{CONCLUDED} {SHORT}", ON)
WITHOUT = Rewritten(f"{OPACITY} {DENIED}", CONCLUDED, OFF)


def texts(some: Report) -> tuple[str, str]:
    return some.findings, some.impression


# ------------------------------------------------------------------------------------------------------- what is switched


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_finding_is_as_the_reader_says_and_all_others_as_they_were_read():
    found = by_name(switched(READ, ON))
    assert (found["effusion"].presence, found["effusion"].side) == (PRESENT, "left")
    assert [found[name] for name in ("opacity", "nodule", "heart")] == [READ[1], READ[2], READ[4]]
    off = by_name(switched(READ, {"opacity": Said(False), "nodule": Said(None)}))
    assert off["opacity"] == Finding("opacity", ABSENT, 0.9, 0.5)
    assert off["nodule"] == READ[2]


def test_whether_anything_is_abnormal_follows_from_what_is_present():
    presence = [by_name(switched(READ, {"opacity": Said(there)}))["abnormal"].presence for there in (True, False, None)]
    assert presence == [PRESENT, ABSENT, ABSENT]
    assert by_name(switched(READ, {"opacity": Said(False), "heart": Said(True)}))["abnormal"].presence is PRESENT


def test_what_was_read_as_the_reader_says_keeps_its_place_and_another_side_has_none():
    assert switched(READ, {"opacity": Said(True)}) == READ
    assert switched(READ, {"opacity": Said(True, "right")}) == READ
    moved = by_name(switched(READ, {"opacity": Said(True, "left")}))["opacity"]
    assert (moved.side, moved.zone, moved.pneumonia) == ("left", "", False)


def test_what_was_read_of_a_prior_film_stays_where_the_finding_does():
    earlier = Earlier(PRESENT, "right", "", Change.LARGER)
    read = (Finding("opacity", PRESENT, 0.9, 0.5, "right", earlier=earlier), Finding("effusion", OPEN, 0.1, 0.5, earlier=earlier))  # fmt: skip
    assert [f.earlier for f in switched(read, {"opacity": Said(True)})] == [earlier, earlier]
    assert [f.earlier for f in switched(read, {"opacity": Said(False), "effusion": Said(True)})] == [None, None]


def test_the_findings_as_they_stand_count_in_place_of_what_was_read_of_all_others():
    gone = by_name(switched(READ, OFF, "The heart is normal."))
    assert (gone["opacity"].presence, gone["abnormal"].presence) == (OPEN, ABSENT)
    assert by_name(switched(READ, OFF, OPACITY))["opacity"] == READ[1]
    assert by_name(switched(READ, OFF, "Old rib fracture."))["abnormal"].presence is PRESENT  # not assessed, yet there
    assert by_name(switched(READ, OFF, EFFUSION))["abnormal"].presence is ABSENT  # it is this that is switched off
    assert by_name(switched(READ, {"opacity": Said(True)}, "No opacity."))["opacity"] == READ[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pneumothorax": Said(True)}, "does not assess pneumothorax"),
        ({"unicorn": Said(True)}, "cannot be switched"),
        ({"abnormal": Said(True)}, "cannot be switched"),
        ({"effusion": Said(True, "upper")}, "is no side"),
        ({"effusion": Said(False, "left")}, "is no side"),
        ({"heart": Said(True, "left")}, "is no side"),
    ],
)
def test_what_cannot_be_switched_is_refused(changed, words):
    with pytest.raises(EmrrgError, match=words):
        switched(READ, changed)


def test_what_a_text_says_of_a_label_is_one_thing():
    found = spoken("Left effusion and right effusion. No opacity. No nodule. There is a nodule.")
    assert (found["Pleural Effusion"].states, found["Pleural Effusion"].side) == (True, "bilateral")
    assert (found["Lung Opacity"].states, found["Lung Lesion"].states) == (False, True)
    assert found["Pleural Effusion"].beside("left")
    assert not found["Lung Lesion"].beside("left")


# ------------------------------------------------------------------------------------------------- what rests on it


def test_a_finding_that_is_switched_on_is_written_into_both_sections_and_off_takes_it_out_again():
    on = ABNORMAL.rewrite(WITH)
    assert texts(on) == (f"{OPACITY} {EFFUSION}", f"{CONCLUDED} {SHORT}")
    fresh = [line for line in on.lines if line.written]
    assert [(x.text, x.choice, x.drafted, x.written) for x in fresh] == [
        (EFFUSION, Choice.UNREVIEWED, None, EFFUSION),
        (SHORT, Choice.UNREVIEWED, None, SHORT),
    ]
    assert on.line(1).choice is Choice.DELETED  # the denial
    assert [(edit.action, edit.before, edit.after) for edit in on.edits] == [
        ("switch", None, "effusion: present, left"),
        ("delete", DENIED, None),
        ("write", None, EFFUSION),
        ("write", None, SHORT),
    ]
    off = on.rewrite(WITHOUT)
    assert texts(off) == texts(ABNORMAL)
    assert off.line(1) == ABNORMAL.line(1)  # the drafted sentence itself, with its map
    assert off.says == OFF


def test_in_a_normal_report_the_call_of_normal_goes_with_a_finding_and_comes_back_without():
    on = CLEAR.rewrite(Rewritten(EFFUSION, SHORT, ON))
    assert texts(on) == (f"The heart is normal. {EFFUSION}", SHORT)
    off = on.rewrite(Rewritten(DENIED, NORMAL, OFF))
    assert texts(off) == texts(CLEAR)


@pytest.mark.parametrize(
    "words",
    [
        "The lungs are clear.",
        "No definite abnormality is seen.",
        "The chest looks abnormal, but no single finding can be named.",
    ],
)
def test_what_cannot_stand_beside_a_finding_goes_though_it_does_not_name_it(words):
    was = report(words, NORMAL)
    on = was.rewrite(Rewritten("There is a nodule.", "Nodule.", {"nodule": Said(True)}))
    assert texts(on) == ("There is a nodule.", "Nodule.")
    off = on.rewrite(Rewritten(words, NORMAL, {"nodule": Said(None)}))
    assert texts(off) == texts(was)


def test_clear_lungs_may_stand_beside_an_effusion_and_a_denied_opacity_beside_a_nodule():
    was = report("The lungs are clear.", NORMAL)
    assert was.rewrite(Rewritten(EFFUSION, SHORT, ON)).findings == f"The lungs are clear. {EFFUSION}"
    nodule = Rewritten("There is a nodule.", "Nodule.", {"nodule": Said(True)})
    assert report("No focal opacity.", NORMAL).rewrite(nodule).findings == "No focal opacity. There is a nodule."


def test_a_call_of_normal_does_not_come_back_while_any_other_line_states_something():
    on = CLEAR.rewrite(Rewritten(EFFUSION, SHORT, ON)).add("findings", "Old rib fracture.", after=0)
    off = on.rewrite(Rewritten(DENIED, NORMAL, OFF))
    assert texts(off) == (f"The heart is normal. Old rib fracture. {DENIED}", "")


def test_whether_a_sentence_speaks_of_the_whole_film():
    assert [whole(words) for words in (NORMAL, "Abnormal chest.", OPACITY, "Scoliosis.", "The lungs are clear.")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_another_side_exchanges_the_sentences_in_their_place():
    was = report(f"{OPACITY} {EFFUSION} The heart is large.", f"{CONCLUDED} {SHORT} Cardiomegaly.")
    right = [words.replace("left", "right").replace("Left", "Right") for words in (EFFUSION, SHORT)]
    new = Rewritten(f"{OPACITY} {right[0]}", f"{CONCLUDED} {right[1]}", {"effusion": Said(True, "right")})
    assert texts(was.rewrite(new)) == (
        f"{OPACITY} {right[0]} The heart is large.",
        f"{CONCLUDED} {right[1]} Cardiomegaly.",
    )


@pytest.mark.parametrize(
    ("before", "new", "after"),
    [
        ("The heart is large.", f"{EFFUSION} The heart is large.", f"{EFFUSION} The heart is large."),
        (f"The heart is large. {OPACITY}", f"{OPACITY} {EFFUSION}", f"The heart is large. {OPACITY} {EFFUSION}"),
        ("Scoliosis.", EFFUSION, f"Scoliosis. {EFFUSION}"),
        ("", EFFUSION, EFFUSION),
    ],
)
def test_a_new_sentence_stands_where_the_new_writing_has_it(before, new, after):
    was = report(before, "Cardiomegaly.")
    assert was.rewrite(Rewritten(new, SHORT, ON)).findings == after


def test_several_findings_are_switched_in_one_step():
    changed = {"effusion": Said(True, "left"), "opacity": Said(False)}
    now = ABNORMAL.rewrite(Rewritten(f"{EFFUSION} No focal airspace opacity.", SHORT, changed))
    assert texts(now) == (f"No focal airspace opacity. {EFFUSION}", SHORT)
    assert texts(now.undo()) == texts(ABNORMAL)
    assert now.undo().says == {}
    assert now.undo().redo().says == changed


# ---------------------------------------------------------------------------------------------------- what is left alone


def test_all_other_lines_stay_as_they_are_accepted_edited_or_the_readers_own():
    was = ABNORMAL.accept(0).edit(2, "Right basal opacity.").add("impression", "CT advised.", after=2)
    now = was.rewrite(WITH)
    assert texts(now) == (f"{OPACITY} {EFFUSION}", f"Right basal opacity. {SHORT} CT advised.")
    assert [now.line(id) for id in (0, 2, 3)] == [was.line(id) for id in (0, 2, 3)]


def test_of_an_edited_sentence_only_the_models_words_go_where_they_stand_as_written():
    was = ABNORMAL.edit(1, f"{DENIED} Angles are free.")
    now = was.rewrite(WITH)
    assert now.findings == f"{OPACITY} {EFFUSION} Angles are free."
    assert (now.line(1).choice, now.line(1).text) == (Choice.EDITED, "Angles are free.")
    changed = ABNORMAL.edit(1, "No effusion at all.").rewrite(WITH)
    assert changed.findings == f"{OPACITY} {EFFUSION} No effusion at all."  # a caution says that it says otherwise


def test_a_readers_own_sentence_about_the_finding_stays():
    was = ABNORMAL.add("findings", "Effusion excluded by ultrasound.", after=1)
    assert was.rewrite(WITH).findings == f"{OPACITY} {EFFUSION} Effusion excluded by ultrasound."


def test_a_line_that_is_written_again_word_for_word_keeps_its_yes():
    was = ABNORMAL.accept(1)
    now = was.rewrite(Rewritten(f"{OPACITY} {DENIED}", CONCLUDED, OFF))
    assert now.lines == was.lines
    assert now.says == OFF
    assert now.rewrite(Rewritten(f"{OPACITY} {DENIED}", CONCLUDED, OFF)) is now


def test_what_a_line_said_besides_the_finding_is_said_again():
    was = report("No pleural effusion or pneumothorax.", NORMAL)
    now = was.rewrite(Rewritten(f"{EFFUSION} No pneumothorax. The heart is normal.", SHORT, ON))
    assert now.findings == f"{EFFUSION} No pneumothorax."


def test_a_sentence_that_says_otherwise_than_the_reader_is_not_taken_over():
    for wrong in (DENIED, "There is a right pleural effusion."):
        assert ABNORMAL.rewrite(Rewritten(f"{OPACITY} {wrong}", CONCLUDED, ON)).findings == OPACITY
    silent = ABNORMAL.rewrite(Rewritten(f"{OPACITY} {DENIED}", CONCLUDED, {"effusion": Said(None)}))
    assert silent.findings == OPACITY


def test_what_the_model_did_not_follow_is_known():
    assert missed(EFFUSION, SHORT, ON) == ()
    assert missed(EFFUSION, NORMAL, ON) == ("effusion",)
    assert missed(EFFUSION, "Right pleural effusion.", ON) == ("effusion",)
    assert missed(DENIED, NORMAL, OFF) == ()
    assert missed(DENIED, SHORT, OFF) == ("effusion",)


def test_a_writing_loses_what_says_otherwise_and_takes_what_it_lacks_from_another_in_the_order_of_findings():
    text = "There is an opacity. No pleural effusion. Cardiomegaly. The lungs are clear."
    alone = "Left pleural effusion. There is a nodule. No opacity."
    assert (
        agreeing(text, ON, [alone]) == "There is an opacity. Left pleural effusion. Cardiomegaly. The lungs are clear."
    )
    assert agreeing(f"{EFFUSION} {NORMAL}", ON, [alone]) == EFFUSION
    assert agreeing(f"{EFFUSION} {DENIED}", OFF) == DENIED
    assert agreeing(f"{EFFUSION} {SHORT} Nodule. A nodule.", ON) == f"{EFFUSION} Nodule. A nodule."  # once is enough
    both = "Opacity on the left. Opacity on the right."
    assert agreeing(both, {"opacity": Said(True)}) == both


def test_a_signed_report_is_not_rewritten():
    with pytest.raises(EmrrgError, match="signed"):
        ABNORMAL.sign([0, 1, 2]).rewrite(WITH)


# ------------------------------------------------------------------------------------------------- decided, said, kept


def test_a_decision_is_logged_undone_and_not_made_twice():
    kept = ABNORMAL.decide("0123456789ab", 0)
    assert (kept.decided, kept.lines) == ({"0123456789ab"}, ABNORMAL.lines)
    assert (kept.edits[-1].action, kept.edits[-1].line, kept.edits[-1].after) == ("keep", 0, OPACITY)
    assert kept.decide("0123456789ab") is kept
    assert kept.drafted(0) == OPACITY
    assert kept.undo().decided == frozenset()
    assert kept.undo().redo().decided == kept.decided
    whole_report = ABNORMAL.decide("0123456789ab")
    assert whole_report.edits[-1].line is None
    with pytest.raises(EmrrgError, match="not known"):
        ABNORMAL.decide("<script>")


def test_decisions_and_what_was_said_are_kept_with_their_undo_and_older_reports_open():
    now = ABNORMAL.rewrite(WITH).decide("0123456789ab").edit(0, "Opacity.").undo()
    data = json.loads(json.dumps(now.to_dict(), allow_nan=False))
    assert data["says"] == {"effusion": {"present": True, "side": "left"}}
    again = Report.from_dict(data)
    assert again == now
    assert again.undo().undo().says == {}
    undo = data["undo"]
    older = {key: value for key, value in data.items() if key not in ("decided", "says")}
    older["undo"] = undo | {side: [step["lines"] for step in undo[side]] for side in ("past", "future")}
    opened = Report.from_dict(older)
    assert (opened.lines, opened.decided, opened.says) == (now.lines, frozenset(), {})
    assert opened.undo().undo().lines == ABNORMAL.lines
    for wrong in ({"says": {"unicorn": {"present": True}}}, {"says": {"effusion": {"present": 3}}}, {"decided": [1]}):
        with pytest.raises(EmrrgError, match="cannot be read"):
            Report.from_dict(data | wrong)
