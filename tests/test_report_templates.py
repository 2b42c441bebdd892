"""What is read is told: no more, no less, in good English, and so that the label reader understands it as it is meant."""

import copy
import re
from collections import Counter

import numpy as np
import pytest

from emrrg_core.errors import ConfigError
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, PLACED_BY, SIDES, ZONES, Finding, Presence
from emrrg_core.text.labeler import Status, is_abnormal, labels, read_findings
from train import report_templates
from train.report_templates import SIZES, fill, made_up, tell, templates, wordings

LUNGS = ("opacity", "consolidation", "nodule", "edema", "atelectasis")
ALL = tuple(NAMES)


def present(name: str, side: str = "", zone: str = "", severity: str = "", *, pneumonia: bool = False) -> Finding:
    return Finding(name, Presence.PRESENT, 0.9, 0.5, side, zone, severity, pneumonia)


def absent(*names: str) -> list[Finding]:
    return [Finding(name, Presence.ABSENT, 0.01, 0.5) for name in names]


def unclear(*names: str) -> list[Finding]:
    return [Finding(name, Presence.OPEN, 0.3, 0.5) for name in names]


def told(findings: list[Finding], times: int = 30) -> list[tuple[str, str]]:
    """Findings and Impression, drawn several times."""
    drawn = (tell(findings, np.random.default_rng(seed)) for seed in range(times))
    return [(" ".join(said), " ".join(concluded)) for said, concluded in drawn]


def shown(name: str) -> list[Finding]:
    """Every way in which a present finding can lie, and every size."""
    placed = name in PLACED_BY
    sides = SIDES if placed else ("",)
    zones = ZONES if placed and name != "effusion" else ("",)
    sizes = ("", "mild", "moderate", "severe") if name in SIZES else ("",)
    return [
        present(name, side, zone if side else "", size, pneumonia=pneumonia)
        for side in sides
        for zone in zones
        for size in sizes
        for pneumonia in ((False, True) if name == "opacity" else (False,))
    ]


# ------------------------------------------------------------------------------------------------------------- wordings


@pytest.mark.parametrize("name", [name for name in ALL if name != ABNORMAL])
def test_every_wording_of_every_place_and_size_is_read_as_it_is_meant(name):
    for finding in shown(name):
        for section in wordings(finding):
            for text in section:
                sentence = fill(text, finding)
                assert is_abnormal(sentence), sentence
                read = labels(sentence)
                assert read[NAMES[name]] is not None, sentence
                assert read[NAMES[name]] is not Status.NEGATIVE, sentence
                stated = {label for label, status in read.items() if status in (Status.POSITIVE, Status.UNCERTAIN)}
                assert stated <= {NAMES[name]} | ({"Pneumonia"} if finding.pneumonia else set()), sentence
                sides = {mention.side for mention in read_findings(sentence)} - {None}
                assert sides == ({finding.side} if finding.side else set()), sentence


@pytest.mark.parametrize("name", [name for name in ALL if name != ABNORMAL])
def test_every_wording_is_good_english(name):
    for finding in shown(name):
        many = finding.side == "bilateral"
        for section in wordings(finding):
            for text in section:
                sentence = fill(text, finding)
                assert re.fullmatch(r"[A-Z][a-z ,]*\.", sentence), sentence
                assert not re.search(r"  | [.,]|,\.", sentence), sentence
                assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", sentence), sentence
                if many:  # what lies on both sides is more than one
                    assert not re.search(r"\b(?:An? (?!mild)|is an? )\w* ?(?:nodule|opacity|effusion)\b", sentence), (
                        sentence
                    )
                    assert not re.search(r"\ba (?:nodule|mass)\b|\ban \w+ opacity\b", sentence, re.I), sentence


def test_what_lies_in_both_lungs_is_told_in_the_plural_with_its_place():
    (body, short) = wordings(present("nodule", "bilateral", "mid"))
    assert {fill(text, present("nodule", "bilateral", "mid")) for text in body} == {
        "There are nodules in both mid lungs.",
        "Nodules are seen in both mid lungs.",
    }
    assert fill(short[0], present("nodule", "bilateral", "mid")) == "Bilateral mid lung nodules."
    one = present("nodule", "left", "upper and mid")
    assert fill(wordings(one)[0][0], one) == "There is a nodule or mass in the left upper and mid lung."
    unplaced = present("opacity")
    assert fill(wordings(unplaced)[0][0], unplaced) == "There is an airspace opacity."
    assert fill(wordings(unplaced)[1][0], unplaced) == "Opacity."


def test_sizes_stand_where_they_belong():
    effusion, heart = present("effusion", "left", severity="severe"), present("heart", severity="mild")
    assert fill(wordings(effusion)[0][0], effusion) == "There is a large left pleural effusion."
    assert {fill(text, heart) for section in wordings(heart) for text in section} == {
        "The heart is mildly enlarged.",
        "The cardiac silhouette is mildly enlarged.",
        "Mild cardiomegaly.",
    }


@pytest.mark.parametrize(
    ("where", "wording", "said"),
    [
        (("opacity", "findings"), "There is consolidation {place}.", "Lung Opacity"),
        (("nodule", "findings"), "There is no nodule {place}.", "something abnormal"),
        (("nodule", "many"), "There is a nodule in the left lung.", "bilateral"),
        (("effusion", "impression"), "{Size} {side} effusion and pneumothorax.", "Pleural Effusion"),
        (("heart", "findings"), "The heart is {size} normal.", "something abnormal"),
    ],
)
def test_a_wording_that_is_read_otherwise_than_meant_stops_the_training(where, wording, said):
    table = copy.deepcopy(templates())
    section, key = where
    table[section][key] = [*table[section][key], wording]
    with pytest.raises(ConfigError, match=f"should state .*{said}"):
        report_templates._check(table)


@pytest.mark.parametrize("wording", ["No pleural effusion or rib fracture.", "There is a pleural effusion.", "Fine."])
def test_a_denial_denies_what_it_is_for_and_no_more(wording):
    table = copy.deepcopy(templates())
    row = next(row for row in table["denial"] if row["of"] == ["effusion"])
    row["findings"] = [wording]
    with pytest.raises(ConfigError, match="a denial"):
        report_templates._check(table)


# -------------------------------------------------------------------------------------------------------------- reports


def test_what_is_open_or_not_assessed_is_neither_stated_nor_denied():
    findings = [present(ABNORMAL), present("nodule", "left", "upper"), *unclear("effusion", "heart"), *absent("edema")]
    for body, impression in told(findings):
        for mention in read_findings(f"{body} {impression}"):
            assert mention.label in ("Lung Lesion", "Edema", "Lung Opacity"), (body, impression)
            assert (mention.label == "Lung Lesion") is (mention.status is not Status.NEGATIVE), body


def test_lungs_are_called_clear_only_where_every_finding_of_theirs_that_is_assessed_is_absent():
    clear = re.compile(r"\blungs are clear\b", re.I)
    assert all(clear.search(body) for body, _ in told([*absent(ABNORMAL, *LUNGS)]))
    assert all(
        clear.search(body) for body, _ in told([*absent(ABNORMAL, "opacity", "nodule")])
    )  # the rest not assessed
    for name in LUNGS:
        rest = [other for other in LUNGS if other != name]
        for one in (present(name), *unclear(name)):
            findings = [*absent(ABNORMAL), *sorted([one, *absent(*rest)], key=lambda f: ALL.index(f.name))]
            assert not any(clear.search(body) for body, _ in told(findings)), (name, one.presence)
    assert not any(clear.search(body) for body, _ in told(absent(ABNORMAL, "nodule")))  # whether opaque: not assessed


def test_two_findings_are_denied_together_only_where_both_are_absent():
    both = {body for body, _ in told(absent(ABNORMAL, "effusion", "pneumothorax"))}
    assert both == {"No pleural effusion or pneumothorax.", "There is no pleural effusion or pneumothorax."}
    for findings in (absent(ABNORMAL, "effusion"), [*absent(ABNORMAL, "effusion"), *unclear("pneumothorax")]):
        assert {body for body, _ in told(findings)} == {"No pleural effusion.", "There is no pleural effusion."}


def test_every_present_finding_is_said_once_in_both_sections_and_first():
    findings = [present(ABNORMAL), present("opacity", "right", "lower"), present("effusion", "right"), *absent("heart")]
    for seed in range(20):
        said, concluded = tell(findings, np.random.default_rng(seed))
        read = [{m.label for m in read_findings(s) if m.status is not Status.NEGATIVE} for s in (*said, *concluded)]
        assert read == [{"Lung Opacity"}, {"Pleural Effusion"}, set(), {"Lung Opacity"}, {"Pleural Effusion"}]


def test_findings_describe_and_the_impression_hedges():
    suspected = [present(ABNORMAL), present("opacity", "left", "mid", pneumonia=True)]
    for body, impression in told(suspected):
        assert labels(body)["Pneumonia"] is None
        assert labels(impression)["Pneumonia"] is Status.UNCERTAIN, impression
    for body, impression in told([present(ABNORMAL), present("opacity", "left", "mid")]):
        assert "pneumonia" not in f"{body} {impression}"


def test_a_film_that_is_abnormal_in_no_nameable_way_is_called_that():
    for body, impression in told([present(ABNORMAL), *absent("nodule", "effusion"), *unclear("opacity")]):
        assert is_abnormal(body)
        assert is_abnormal(impression)
        assert "can be named" in impression
        assert not any(m.status is not Status.NEGATIVE for m in read_findings(f"{body} {impression}"))


def test_only_a_film_that_is_read_as_normal_is_concluded_to_be():
    assert {i for _, i in told(absent(ABNORMAL, "opacity"))} == set(templates()["whole"]["absent"])
    assert {i for _, i in told([*unclear(ABNORMAL), *absent("opacity")])} == set(templates()["whole"]["open"])


# -------------------------------------------------------------------------------------------------------------- made up


def test_made_up_findings_have_every_presence_and_every_side_of_every_finding():
    assessed = [name for name in ALL if name != "fracture"]
    drawn = [made_up(assessed, np.random.default_rng(seed)) for seed in range(1500)]
    assert all([f.name for f in findings] == assessed for findings in drawn)
    seen = Counter((f.name, f.presence) for findings in drawn for f in findings)
    assert set(seen) == {(name, presence) for name in assessed for presence in Presence}
    for name in PLACED_BY:
        assert {
            f.side for findings in drawn for f in findings if f.name == name and f.presence is Presence.PRESENT
        } == set(SIDES)
    for findings in drawn:
        whole = next(f.presence for f in findings if f.name == ABNORMAL)
        if any(f.presence is Presence.PRESENT for f in findings if f.name != ABNORMAL):
            assert whole is Presence.PRESENT
        for f in findings:
            assert f.presence is Presence.PRESENT or not (f.side or f.zone or f.severity or f.pneumonia)
            assert f.zone == "" or (f.side and f.name != "effusion")
            assert f.severity == "" or f.name in SIZES
            assert not f.pneumonia or f.name == "opacity"
    counts = {sum(f.presence is Presence.PRESENT for f in findings if f.name != ABNORMAL) for findings in drawn}
    assert counts == {0, 1, 2, 3}


def test_what_may_not_be_denied_is_never_made_up_to_be_absent():
    drawn = [made_up(ALL, np.random.default_rng(seed), {"effusion", "heart"}) for seed in range(300)]
    absent = {f.name for findings in drawn for f in findings if f.presence is Presence.ABSENT}
    assert absent == {ABNORMAL, "effusion", "heart"}


def test_whatever_is_made_up_can_be_told_and_is_read_as_it_is():
    for seed in range(150):
        rng = np.random.default_rng(seed)
        findings = made_up(ALL, rng)
        said, concluded = tell(findings, rng)
        there = [f for f in findings if f.presence is Presence.PRESENT]
        assert is_abnormal(" ".join(said)) is is_abnormal(" ".join(concluded)) is bool(there)
        read = labels(" ".join(said))
        for finding in findings:
            if finding.name == ABNORMAL:
                continue
            status = read[finding.label]
            assert (status in (Status.POSITIVE, Status.UNCERTAIN)) is (finding in there), (finding, said)
            if finding.presence is Presence.OPEN:
                assert status is None, (finding, said)
