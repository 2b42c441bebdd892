"""The reader of report text. Every sentence here is of our own making."""

from itertools import pairwise

import pytest

from emrrg_core.text.labeler import LABELS, Mention, Status, is_abnormal, labels, prior_words, read_findings, sentences
from tests.phantom import LESIONS, SIDES, make_phantom

POSITIVE, NEGATIVE, UNCERTAIN = Status.POSITIVE, Status.NEGATIVE, Status.UNCERTAIN


def split(text):
    return [text[start:end] for start, end in sentences(text)]


def said(text):
    return [(mention.label, mention.status, mention.side) for mention in read_findings(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lungs are clear. The heart is large.", ["The lungs are clear.", "The heart is large."]),
        ("The lungs are clear.There is no fluid.", ["The lungs are clear.", "There is no fluid."]),
        ("A 5.5 cm mass is seen. It is new.", ["A 5.5 cm mass is seen.", "It is new."]),
        ("Told to Dr. Reed at 5 p.m. by telephone.", ["Told to Dr. Reed at 5 p.m. by telephone."]),
        ("1. Nodule. 2. No fluid.", ["1. Nodule.", "2. No fluid."]),
        ("1. Stable nodule 2. No fluid.", ["1. Stable nodule", "2. No fluid."]),
        ("no effusion . heart is normal .", ["no effusion .", "heart is normal ."]),
        ("A wide\nmediastinum is seen\n\nNo fluid", ["A wide\nmediastinum is seen", "No fluid"]),
        ("- nodule\n- no fluid", ["- nodule", "- no fluid"]),
        ("Small effusion.. No nodule", ["Small effusion..", "No nodule"]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_sentences_are_cut_where_a_reader_would(text, expected):
    assert split(text) == expected


@pytest.mark.parametrize(
    "text",
    ["A. B\n\n C ... d?! 1. 2. x", " .. ", "1.\n2.\n", "Dr.", "a.B.C d.e", "•", "\t- \n(1) yes) no. ", "No. 5 rib."],
)
def test_sentence_spans_hold_every_character_but_space_in_order(text):
    spans = sentences(text)
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))
    assert all(text[start:end].strip() == text[start:end] != "" for start, end in spans)


@pytest.mark.parametrize(
    ("text", "label", "status"),
    [
        ("There is a small pleural effusion.", "Pleural Effusion", POSITIVE),
        ("No focal consolidation, pleural effusion, or pneumothorax.", "Pleural Effusion", NEGATIVE),
        ("No focal consolidation, pleural effusion, or pneumothorax.", "Pneumothorax", NEGATIVE),
        ("Neither effusion nor pneumothorax is seen.", "Pneumothorax", NEGATIVE),
        ("A pneumothorax is not seen.", "Pneumothorax", NEGATIVE),
        ("The former pneumothorax has resolved.", "Pneumothorax", NEGATIVE),
        ("Pleural effusion: none.", "Pleural Effusion", NEGATIVE),
        ("Pneumothorax: no, effusion: small.", "Pneumothorax", NEGATIVE),
        ("Pneumothorax: no, effusion: small.", "Pleural Effusion", POSITIVE),
        ("Pneumothorax: no evidence.", "Pneumothorax", NEGATIVE),
        ("Findings: No pneumothorax.", "Pneumothorax", NEGATIVE),  # a heading denies nothing, and hides no denial
        ("Findings: No pleural effusion or pneumothorax is seen.", "Pneumothorax", NEGATIVE),
        ("Impression: No consolidation.", "Consolidation", NEGATIVE),
        ("Pleural effusion: No effusion.", "Pleural Effusion", NEGATIVE),
        ("Small effusion; lungs: no edema.", "Pleural Effusion", POSITIVE),
        ("Small effusion; lungs: no edema.", "Edema", NEGATIVE),
        ("Without effusion, but there is atelectasis at the base.", "Atelectasis", POSITIVE),
        ("There is no effusion or pneumothorax, the heart is enlarged.", "Cardiomegaly", POSITIVE),
        ("No change in the pleural effusion.", "Pleural Effusion", POSITIVE),
        ("An effusion cannot be excluded.", "Pleural Effusion", UNCERTAIN),
        ("An opacity that may represent pneumonia.", "Pneumonia", UNCERTAIN),
        ("An opacity that may represent pneumonia.", "Lung Opacity", POSITIVE),
        ("Basal atelectasis or infiltrate.", "Atelectasis", UNCERTAIN),
        ("Basal atelectasis or infiltrate.", "Lung Opacity", UNCERTAIN),
        ("The costophrenic angle is blunted.", "Pleural Effusion", UNCERTAIN),
        ("The heart is not enlarged.", "Cardiomegaly", NEGATIVE),
        ("Heart size and mediastinal contours are normal.", "Cardiomegaly", NEGATIVE),
        ("Heart size and mediastinal contours are normal.", "Enlarged Cardiomediastinum", NEGATIVE),
        ("Borderline cardiomegaly.", "Cardiomegaly", UNCERTAIN),
        ("The mediastinum is widened.", "Enlarged Cardiomediastinum", POSITIVE),
        ("Clear lungs.", "Lung Opacity", NEGATIVE),
        ("A rounded mass lies in the lung.", "Lung Lesion", POSITIVE),
        ("Mild interstitial edema.", "Edema", POSITIVE),
        ("Lobar consolidation.", "Consolidation", POSITIVE),
        ("Apical pleural thickening.", "Pleural Other", POSITIVE),
        ("Old rib fractures.", "Fracture", POSITIVE),
        ("The endotracheal tube ends above the carina.", "Support Devices", POSITIVE),
        ("A pericardial effusion is present.", "Pleural Effusion", None),
        ("Please evaluate for pneumonia.", "Pneumonia", None),
        ("History of lung cancer.", "Lung Lesion", None),
        ("There are no XXXX of a pleural effusion.", "Pleural Effusion", NEGATIVE),
    ],
)
def test_a_sentence_affirms_denies_or_doubts(text, label, status):
    assert labels(text)[label] is status


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nodule in the right upper lobe.", [("Lung Lesion", POSITIVE, "right")]),
        ("Left-sided effusion.", [("Pleural Effusion", POSITIVE, "left")]),
        ("Bibasilar atelectasis.", [("Atelectasis", POSITIVE, "bilateral")]),
        ("Effusions, left greater than right.", [("Pleural Effusion", POSITIVE, "bilateral")]),
        ("Opacities in the left base and right apex.", [("Lung Opacity", POSITIVE, "bilateral")]),
        ("No effusion.", [("Pleural Effusion", NEGATIVE, None)]),
        (
            "Small left effusion and right basal atelectasis.",
            [("Pleural Effusion", POSITIVE, "left"), ("Atelectasis", POSITIVE, "right")],
        ),
        (
            "No left effusion; the right effusion is small.",
            [("Pleural Effusion", NEGATIVE, "left"), ("Pleural Effusion", POSITIVE, "right")],
        ),
        (
            "The heart, displaced to the left, is enlarged. Cardiomegaly on the left.",
            [("Cardiomegaly", POSITIVE, None)],
        ),
    ],
)
def test_each_finding_has_the_side_that_its_own_words_name(text, expected):
    assert said(text) == expected


def test_a_mention_points_at_its_words_in_the_whole_text():
    text = "The lungs are clear. Possible small effusion on the left."
    mention = read_findings(text)[-1]
    assert text[mention.start : mention.end] == "effusion"
    assert mention == Mention("Pleural Effusion", UNCERTAIN, "left", 1, mention.start, mention.end, "possible")


def test_only_words_about_the_whole_film_are_a_call_of_normal():
    assert said("No acute bony abnormality.") == []
    assert said("No acute cardiopulmonary abnormality.") == [("No Finding", POSITIVE, None)]
    assert said("Normal chest radiograph.") == [("No Finding", POSITIVE, None)]


def test_labels_come_in_chexpert_order_and_positive_wins_over_uncertain_over_negative():
    assert tuple(labels("")) == LABELS
    assert labels("No effusion. Possible effusion.")["Pleural Effusion"] is UNCERTAIN
    assert labels("Possible effusion. No effusion. Small effusion.")["Pleural Effusion"] is POSITIVE


@pytest.mark.parametrize(
    ("text", "no_finding", "abnormal"),
    [
        ("The lungs are clear and the heart is normal in size.", POSITIVE, False),
        ("Pacemaker in place. The lungs are clear.", POSITIVE, False),
        ("The lungs are clear. Calcified granuloma at the left apex.", POSITIVE, True),
        ("Mild scoliosis. No effusion.", POSITIVE, True),
        ("A normal chest but for a possible nodule.", NEGATIVE, True),
        ("", None, False),
    ],
)
def test_no_finding_follows_from_the_other_labels_and_abnormal_looks_beyond_them(text, no_finding, abnormal):
    assert labels(text)["No Finding"] is no_finding
    assert is_abnormal(text) is abnormal


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("lesion", LESIONS)
def test_a_phantoms_report_is_read_as_what_the_phantom_holds(lesion, side, seed):
    film = make_phantom(seed, height=128, width=128, lesion=lesion, side=side)
    label = {"nodule": "Lung Lesion", "opacity": "Lung Opacity", "effusion": "Pleural Effusion", None: "No Finding"}[
        lesion
    ]
    for text in (film.findings, film.impression):
        found = labels(text)
        assert found[label] is POSITIVE
        assert is_abnormal(text) is (lesion is not None)
        assert {name for name, status in found.items() if status in (POSITIVE, UNCERTAIN)} == {label}
        if lesion:
            assert {m.side for m in read_findings(text) if m.status is POSITIVE} == {side}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The heart is enlarged, unchanged. The lungs are clear.", ["unchanged"]),
        ("Compared to the prior study, the effusion is larger.", ["Compared", "prior"]),
        ("No interval change.", ["No interval change"]),
        ("Stable cardiomegaly. A granuloma is again seen.", ["Stable", "again"]),
        ("There is worsening edema; the opacity has improved.", ["worsening", "improved"]),
        ("The nodule has slowly increased.", ["has slowly increased"]),
        ("The lungs remain clear, and the tube is no longer present.", ["remain", "no longer"]),
        ("New opacity since the earlier film.\nImpression: Persistent effusion.", ["New", "since", "earlier film", "Persistent"]),
        ("Re-demonstrated scoliosis, as before.", ["Re-demonstrated", "as before"]),
    ],
)  # fmt: skip
def test_words_about_an_earlier_film_are_found_where_they_stand(text, words):
    assert [text[start:end] for start, end in prior_words(text)] == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is a small left effusion. The heart is of normal size. No pneumothorax.",
        "Calcified nodes from prior granulomatous disease. Clips of previous bypass surgery.",
        "Old rib fractures and chronic, increased interstitial markings.",
        "Effusions, right worse than left. Degenerative changes of the spine.",
        "The right base is denser as compared to the left.",
        "Please note the rib interval; short interval follow-up is advised to document resolution.",
        "Unstable spine. The remainder of the film is clear. The wires remain intact.",
        "A newborn with knowledge of nowhere.",
    ],
)
def test_what_one_film_can_show_is_no_word_about_an_earlier_one(text):
    assert prior_words(text) == []
