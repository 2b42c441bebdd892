"""What a report says of each label, where it contradicts itself, and what it cannot know. Every sentence here is of our own making."""

import pytest

from emrrg_core.text.consistency import (
    Flag,
    Kind,
    Place,
    clear_lungs,
    contradictions,
    findings_table,
    flags,
    only_concluded,
)
from emrrg_core.text.labeler import LABELS, Status, labels, report_text
from tests.phantom import LESIONS, SIDES, make_phantom

POSITIVE, NEGATIVE, UNCERTAIN = Status.POSITIVE, Status.NEGATIVE, Status.UNCERTAIN
FINDINGS = (
    "The heart is of normal size. There is a small pleural effusion on the left. Possible atelectasis at the left base. "
    "No pneumothorax. A nodule lies in the right upper lobe. A pacemaker is in place."
)
IMPRESSION = "Small left effusion. Nodule, right upper lobe."


def words(place: Place, findings: str, impression: str) -> str:
    return {"findings": findings, "impression": impression}[place.section][place.start : place.end]


def said(findings: str, impression: str = "") -> list[tuple]:
    """(kind, label, one sentence, the other)"""
    return [
        (c.kind, c.label, *(words(place, findings, impression) for place in c.places))
        for c in contradictions(findings, impression)
    ]


# --------------------------------------------------------------------------------------------------------------- table


def test_the_table_has_every_label_in_order_with_the_sentences_that_say_so():
    table = findings_table(FINDINGS, IMPRESSION)
    assert tuple(row.label for row in table) == LABELS
    told = {
        row.label: (row.status, [(p.section, words(p, FINDINGS, IMPRESSION)) for p in row.places])
        for row in table
        if row.status is not None and row.label != "No Finding"
    }
    assert told == {
        "Cardiomegaly": (NEGATIVE, [("findings", "The heart is of normal size.")]),
        "Pleural Effusion": (
            POSITIVE,
            [("findings", "There is a small pleural effusion on the left."), ("impression", "Small left effusion.")],
        ),
        "Atelectasis": (UNCERTAIN, [("findings", "Possible atelectasis at the left base.")]),
        "Pneumothorax": (NEGATIVE, [("findings", "No pneumothorax.")]),
        "Lung Lesion": (
            POSITIVE,
            [
                ("findings", "A nodule lies in the right upper lobe."),
                ("impression", "Nodule, right upper lobe."),
            ],
        ),
        "Support Devices": (POSITIVE, [("findings", "A pacemaker is in place.")]),
    }


def test_what_is_not_mentioned_has_no_status_and_no_place():
    row = next(row for row in findings_table(FINDINGS, IMPRESSION) if row.label == "Fracture")
    assert (row.status, row.places) == (None, ())


def test_a_sentence_of_a_lesser_status_is_not_named_and_one_that_says_it_twice_is_named_once():
    (row,) = (
        r for r in findings_table("No effusion. Left effusion and right effusion.", "") if r.label == "Pleural Effusion"
    )
    assert row.status is POSITIVE
    assert row.places == (Place("findings", 13, 46),)


def test_no_finding_points_at_the_call_of_normal_or_at_what_speaks_against_it():
    normal = findings_table("The lungs are clear.", "Normal chest.")[0]
    assert (normal.label, normal.status, normal.places) == ("No Finding", POSITIVE, (Place("impression", 0, 13),))
    ill = findings_table("A pacemaker is in place. No pneumothorax. Possible effusion.", "")[0]
    assert (ill.status, ill.places) == (NEGATIVE, (Place("findings", 42, 60),))


@pytest.mark.parametrize("texts", [("", ""), (FINDINGS, ""), ("", IMPRESSION), (FINDINGS, IMPRESSION)])
def test_the_statuses_are_those_of_the_label_reader(texts):
    assert {row.label: row.status for row in findings_table(*texts)} == labels(report_text(*texts))


# ------------------------------------------------------------------------------------------------------ contradictions


@pytest.mark.parametrize(
    ("findings", "impression", "expected"),
    [
        (
            "There is no pleural effusion. A small left pleural effusion is seen.", "",
            (Kind.NEGATION, "Pleural Effusion", "There is no pleural effusion.", "A small left pleural effusion is seen."),
        ),
        ("No pneumothorax.", "Left pneumothorax.", (Kind.NEGATION, "Pneumothorax", "No pneumothorax.", "Left pneumothorax.")),
        ("Left pneumothorax.", "No pneumothorax.", (Kind.NEGATION, "Pneumothorax", "Left pneumothorax.", "No pneumothorax.")),
        ("", "Rib fracture. No fracture.", (Kind.NEGATION, "Fracture", "Rib fracture.", "No fracture.")),
        ("No left effusion.", "Bilateral effusions.", (Kind.NEGATION, "Pleural Effusion", "No left effusion.", "Bilateral effusions.")),
        ("No large effusion.", "Large effusion.", (Kind.NEGATION, "Pleural Effusion", "No large effusion.", "Large effusion.")),
        (
            "Heart size is normal.", "Mild cardiomegaly.",
            (Kind.NEGATION, "Cardiomegaly", "Heart size is normal.", "Mild cardiomegaly."),
        ),
        (
            "Normal heart size and mediastinal contours. The heart is enlarged.", "",
            (Kind.NEGATION, "Cardiomegaly", "Normal heart size and mediastinal contours.", "The heart is enlarged."),
        ),
        (
            "No focal consolidation, effusion, or pneumothorax.", "Consolidation of the right lower lobe.",
            (Kind.NEGATION, "Consolidation", "No focal consolidation, effusion, or pneumothorax.", "Consolidation of the right lower lobe."),
        ),
        ("The lungs are clear.", "Right pneumonia.", (Kind.NEGATION, "Pneumonia", "The lungs are clear.", "Right pneumonia.")),
        (
            "The left lung is clear. Opacity at the left base.", "",
            (Kind.NEGATION, "Lung Opacity", "The left lung is clear.", "Opacity at the left base."),
        ),
        ("Left effusion.", "Right effusion.", (Kind.SIDE, "Pleural Effusion", "Left effusion.", "Right effusion.")),
        ("Nodule on the right.", "Possible left nodule.", (Kind.SIDE, "Lung Lesion", "Nodule on the right.", "Possible left nodule.")),
        ("Left effusion.", "Normal chest.", (Kind.NORMAL, "Pleural Effusion", "Left effusion.", "Normal chest.")),
        ("Normal chest.", "Cardiomegaly.", (Kind.NORMAL, "Cardiomegaly", "Normal chest.", "Cardiomegaly.")),
        ("Left pneumothorax.", "No acute abnormality.", (Kind.NORMAL, "Pneumothorax", "Left pneumothorax.", "No acute abnormality.")),
    ],
)  # fmt: skip
def test_two_sentences_that_cannot_both_be_true_are_found_in_reading_order(findings, impression, expected):
    assert said(findings, impression) == [expected]


def test_one_sentence_may_contradict_itself():
    text = "No effusion on the left, and there is a left effusion."
    assert said(text) == [(Kind.NEGATION, "Pleural Effusion", text, text)]


@pytest.mark.parametrize(
    ("findings", "impression"),
    [
        ("", ""),
        (FINDINGS, IMPRESSION),
        # another side, another place, another kind, another size
        ("No effusion on the right. Small left effusion.", "Left effusion."),
        ("No right pneumothorax.", "Left pneumothorax."),
        ("The right lung is clear. Opacity in the left lung.", ""),
        ("There is a small left pleural effusion, no right-sided pleural effusion.", ""),
        ("No rib fracture.", "Fracture of the left clavicle."),
        ("No nodule at the apex. A nodule lies at the right base.", ""),
        ("No large effusion.", "Small effusion."),
        ("No acute fracture.", "Old rib fractures."),
        ("No mass.", "Nodule in the left lung."),
        ("No lobar collapse.", "Basal atelectasis."),
        ("No endotracheal tube. A pacemaker is seen.", "Pacemaker."),
        # exceptions
        ("No other nodule. A nodule lies in the left lung.", ""),
        ("The lungs are otherwise clear. Opacity at the left base.", ""),
        ("No effusion except for a small one on the left. Small left effusion.", ""),
        ("Effusion on the left.", "Otherwise normal chest."),
        # the parent and its kinds
        ("No focal consolidation. Patchy opacity at the left base.", "Opacity, no consolidation."),
        ("No infiltrate. Linear opacity at the base.", ""),
        ("The lungs are clear. Calcified nodule at the left apex.", ""),
        # other organs
        ("Heart size is normal. The mediastinum is widened.", ""),
        ("The lungs are clear. The heart is enlarged. Pacemaker in place.", "Cardiomegaly."),
        # doubt
        ("Possible left effusion.", "No effusion."),
        ("Left effusion.", "Effusion cannot be excluded."),
        # sides
        ("Nodule in the left lung. Nodule in the right lung.", "Nodule, left."),
        ("Bilateral effusions.", "Left effusion."),
        ("Left effusion. Right atelectasis.", "Right atelectasis. Left effusion."),
        ("Effusion.", "Left effusion."),
        # chronic findings and devices beside a call of normal
        ("Cardiomegaly. Old rib fracture.", "No acute disease."),
        ("Pacemaker in place.", "Normal chest."),
        ("Left effusion.", "No acute bony abnormality."),
    ],
)
def test_what_can_both_be_true_is_no_contradiction(findings, impression):
    assert said(findings, impression) == []


def test_the_reader_is_told_in_plain_words_what_stands_against_what():
    (negation,) = contradictions("There is no pleural effusion.", "Small left effusion.")
    assert negation.message == (
        "The Findings say (“There is no pleural effusion.”) that there is no pleural effusion, but the Impression states pleural effusion "
        "(“Small left effusion.”)."
    )
    (side,) = contradictions("Left effusion.", "Right effusion.")
    assert side.message == (
        "The Findings have pleural effusion on the left (“Left effusion.”), the Impression on the right (“Right effusion.”)."
    )


REPORTS = {
    "Pleural Effusion": ("There is a small pleural effusion on the left.", "There is no pleural effusion."),
    "Pneumothorax": ("A left pneumothorax is present.", "No pneumothorax is seen."),
    "Cardiomegaly": ("The heart is enlarged.", "The heart is not enlarged."),
    "Consolidation": ("There is consolidation in the left lower lobe.", "There is no focal consolidation."),
    "Edema": ("There is mild pulmonary edema.", "There is no pulmonary edema."),
    "Lung Lesion": ("There is a nodule in the left lung.", "No nodule is identified."),
    "Atelectasis": ("There is atelectasis at the left base.", "There is no atelectasis."),
    "Fracture": ("There is a fracture of a left rib.", "No fracture is seen."),
    "Pneumonia": ("There is pneumonia in the left lower lobe.", "No evidence of pneumonia."),
    "Lung Opacity": ("There is an opacity at the left base.", "The lungs are clear."),
}


@pytest.mark.parametrize("label", REPORTS)
def test_a_denial_put_anywhere_into_a_sound_report_is_found_and_so_is_a_changed_side(label):
    yes, no = REPORTS[label]
    rest = "The bony thorax is intact. The aorta is tortuous."
    assert said(f"{yes} {rest}", yes) == []
    assert said(f"{no} {rest}", no) == []
    for findings, impression in (
        (f"{yes} {rest}", no),
        (f"{no} {rest}", yes),
        (f"{yes} {rest} {no}", ""),
        ("", f"{no} {rest} {yes}"),
    ):
        assert {(kind, name) for kind, name, *_ in said(findings, impression)} == {(Kind.NEGATION, label)}
    if "left" in yes:
        found = said(f"{yes} {rest}", yes.replace("left", "right"))
        assert {(kind, name) for kind, name, *_ in found} == {(Kind.SIDE, label)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("lesion", LESIONS)
def test_a_phantoms_report_does_not_contradict_itself_and_another_phantoms_impression_does(lesion, side):
    film, normal = (make_phantom(3, height=128, width=128, lesion=one, side=side) for one in (lesion, None))
    assert said(film.findings, film.impression) == []
    if lesion:
        other = make_phantom(3, height=128, width=128, lesion=lesion, side="left" if side == "right" else "right")
        assert Kind.SIDE in {kind for kind, *_ in said(film.findings, other.impression)}
        assert said(film.findings, normal.impression + " Normal chest.")


# --------------------------------------------------------------------------------------------------------------- flags


def test_flags_mark_both_sentences_of_a_contradiction_and_every_word_about_an_earlier_film():
    findings, impression = "Unchanged heart. No effusion.", "Left effusion, again seen."
    (contradiction,) = contradictions(findings, impression)
    assert flags(findings, impression, has_prior=False) == [
        Flag("findings", 0, 9, Kind.PRIOR, "“Unchanged” compares with an earlier film, and none was given."),
        Flag("findings", 17, 29, Kind.NEGATION, contradiction.message),
        Flag("impression", 0, 26, Kind.NEGATION, contradiction.message),
        Flag("impression", 15, 20, Kind.PRIOR, "“again” compares with an earlier film, and none was given."),
    ]


def test_words_about_an_earlier_film_are_no_fault_where_one_was_given():
    assert flags("Unchanged heart.", "Stable.", has_prior=True) == []
    assert len(flags("Unchanged heart.", "Stable.", has_prior=False)) == 2


@pytest.mark.parametrize(
    ("findings", "impression", "expected"),
    [
        ("The heart is normal.", "Left effusion.", ["Pleural Effusion"]),
        ("", "Left effusion.", ["Pleural Effusion"]),
        ("Left effusion.", "Left effusion.", []),
        ("There may be an effusion.", "Possible effusion.", []),
        ("No effusion.", "No effusion. No acute disease.", []),
        # what is described above may have a name below
        ("Opacity in the right lower lobe.", "Right lower lobe pneumonia.", []),
        ("Opacity in the right lower lobe.", "Nodule.", ["Lung Lesion"]),
        ("Left lower lobe consolidation.", "Opacity. Nodule. Effusion.", ["Lung Lesion", "Pleural Effusion"]),
    ],
)
def test_what_only_the_impression_names_is_found_and_marked(findings, impression, expected):
    found = only_concluded(findings, impression)
    assert [label for label, _ in found] == expected
    marks = flags(findings, impression, has_prior=True)
    assert [(mark.start, mark.end, mark.kind) for mark in marks] == [
        (place.start, place.end, Kind.ONLY_IMPRESSION) for _, place in found
    ]


def test_what_the_findings_deny_is_a_contradiction_and_not_said_to_be_missing_too():
    assert [mark.kind for mark in flags("No effusion.", "Left effusion.", has_prior=True)] == [Kind.NEGATION] * 2
    (mark,) = flags("No large effusion.", "Small left effusion.", has_prior=True)
    assert mark.message == "The Impression names pleural effusion (“Small left effusion.”), and the Findings do not."


def test_clear_lungs_are_told_from_other_denials():
    assert [clear_lungs(words) for words in ("The lungs are clear.", "No opacity.", "The lungs are not clear.")] == [
        True,
        False,
        False,
    ]


def test_a_sentence_that_contradicts_itself_is_marked_once():
    text = "No effusion on the left, and there is a left effusion."
    assert [(f.start, f.end, f.kind) for f in flags(text, "", has_prior=True)] == [(0, len(text), Kind.NEGATION)]
