"""Films are told as their labels, their simulated finding and the tower's reading say, and no sentence contradicts another."""

import itertools

import numpy as np
import pytest

from emrrg_core import findings as reading_of_text
from emrrg_core.data import NO_FINDING, Wording
from emrrg_core.findings import LABELS, Status, is_abnormal, labels, read_findings
from emrrg_core.simulate import LABEL_OF, Drawn, Side, Sign, Zone
from emrrg_core.stated import NAMES as STATED
from emrrg_core.stated import Fact
from tests.tiny import normal_reports
from train.telling import Reading, Statement, Teller, fill, noted_sides, phrases

GRID = 4
NAMES = list(phrases())
PLACES = [("", ""), ("in both lungs", "bilateral"), ("in both mid and lower lungs", "bilateral")] + [
    (f"in the {side} {zone}lung", side) for side in ("right", "left") for zone in ("", "upper ", "mid ", "lower ")
]
SIZES = {
    "nodule": ("", "small", "large"),
    "effusion": ("", "small", "moderate", "large"),
    "heart": ("", "mildly", "moderately"),
}


def affirmed(text: str) -> set[str]:
    return {name for name, status in labels(text).items() if status in (Status.POSITIVE, Status.UNCERTAIN)} - {
        NO_FINDING
    }


def read(**changes) -> Reading:
    """A reading of a film that looks normal and says nothing of any place, code 0."""
    plain = {
        "labels": dict.fromkeys(LABELS, 0.05),
        "regions": np.full((3, 2, 3), 0.02, np.float32),
        "places": np.full((GRID**2, 5), 0.02, np.float32),
        "code": np.zeros(12, bool),
    }
    return Reading(**plain | changes)


def codes() -> list[np.ndarray]:
    """Every wording at least once."""
    rng = np.random.default_rng(0)
    return [rng.random(12) > 0.5 for _ in range(24)]


@pytest.fixture(scope="module")
def teller() -> Teller:
    return Teller(normal_reports())


def joined(statements: list[Statement]) -> str:
    return " ".join(s.text for s in statements)


# -------------------------------------------------------------------------------------------------------------- phrases


def test_whatever_can_be_stated_has_wordings_and_the_same_labels():
    assert {name: tuple(entry["labels"]) for name, entry in phrases().items()} == STATED


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("section", ["findings", "impression"])
def test_every_wording_is_read_as_it_is_meant(name, section):
    entry = phrases()[name]
    assert len(entry[section]) == len(set(entry[section])) == 4  # as many as two bits of a code choose from
    for text, (place, side), size in itertools.product(entry[section], PLACES, SIZES.get(name, ("",))):
        told = fill(text, place, side, size)
        stated = affirmed(told)
        # of a pneumonia the findings state the opacity that is seen, the impression what it means
        meant = "Lung Opacity" if (name, section) == ("pneumonia", "findings") else entry["labels"][-1]
        assert meant in stated <= set(entry["labels"]), told
        assert not set(labels(told).values()) & {Status.UNCERTAIN}, told
        named = {m.side for m in read_findings(told) if m.label in entry["labels"]} - {None}
        assert named == ({side} if side and ("{place}" in text or "{side}" in text) else set()), told
        assert is_abnormal(told), told


@pytest.mark.parametrize("name", NAMES)
def test_every_wording_is_one_tidy_sentence(name):
    for section in ("findings", "impression"):
        for text, (place, side), size in itertools.product(phrases()[name][section], PLACES, SIZES.get(name, ("",))):
            told = fill(text, place, side, size)
            assert told[0].isupper(), told
            assert told.endswith("."), told
            assert "  " not in told, told
            assert " ." not in told, told
            assert "{" not in told, told
            assert len(reading_of_text.sentences(told)) == 1, told


@pytest.mark.parametrize(
    ("text", "side", "size", "told"),
    [
        ("A {size} {side} pleural effusion is seen.", "", "", "A pleural effusion is seen."),
        ("A {size} {side} effusion is seen.", "", "", "An effusion is seen."),
        (
            "A {size} {side} pleural effusion is seen.",
            "bilateral",
            "small",
            "Small bilateral pleural effusions are seen.",
        ),
        ("There is a {size} {side} pleural effusion.", "bilateral", "", "There are bilateral pleural effusions."),
        ("{size} {side} effusion.", "left", "large", "Large left effusion."),
        ("There is {size} enlargement of the heart.", "", "mildly", "There is mild enlargement of the heart."),
        ("The heart is {size} enlarged.", "", "mildly", "The heart is mildly enlarged."),
        ("The heart is {size} enlarged.", "", "", "The heart is enlarged."),
    ],
)
def test_blanks_are_filled_in_good_english(text, side, size, told):
    assert fill(text, "", side, size) == told


# ------------------------------------------------------------------------------------------------------------- telling


def test_a_normal_film_is_told_as_normal(teller):
    told = set()
    for code in codes():
        findings, impression = teller.tell({NO_FINDING: 1}, read(code=code), None, None)
        text = joined([*findings, *impression])
        assert findings
        assert impression
        assert not is_abnormal(text), text
        assert labels(text)[NO_FINDING] is Status.POSITIVE
        told.add(text)
    assert len(told) > 15  # films that look different are told differently


def test_a_normal_film_is_normal_whatever_the_tower_suspects(teller):
    suspicious = read(labels=dict.fromkeys(LABELS, 0.9), regions=np.full((3, 2, 3), 0.9, np.float32))
    plain, doubted = (teller.tell({NO_FINDING: 1}, r, None, None) for r in (read(), suspicious))
    assert [joined(s) for s in plain] == [joined(s) for s in doubted]


@pytest.mark.parametrize("name", [name for name in LABELS if name not in (NO_FINDING, "Support Devices")])
def test_a_finding_is_told_in_both_sections_and_nothing_denies_it(teller, name):
    for code in codes():
        findings, impression = teller.tell({name: 1, NO_FINDING: 0}, read(code=code), None, None)
        for section in (findings, impression):
            assert is_abnormal(joined(section)), joined(section)
            assert is_abnormal(section[0].text)  # findings first
        text = joined([*findings, *impression])
        meant = {name, "Lung Opacity"} if name == "Pneumonia" else {name}
        assert name in affirmed(text) <= meant, text
        assert not any(m.label == name and m.status is Status.NEGATIVE for m in read_findings(text)), text


PAIRS = [("Cardiomegaly", "Pleural Effusion"), ("Pneumonia", "Pleural Effusion"), ("Consolidation", "Lung Opacity"), ("Edema", "Cardiomegaly"),
         ("Pneumonia", "Lung Opacity"), ("Fracture", "Pneumothorax"), ("Lung Lesion", "Atelectasis"), ("Support Devices", "Edema")]  # fmt: skip


@pytest.mark.parametrize("positive", PAIRS)
def test_several_findings_are_all_told_and_nothing_denies_them(teller, positive):
    known = dict.fromkeys(LABELS, 0) | dict.fromkeys(positive, 1)
    named = set(positive) - {"Support Devices"}
    for code in codes():
        findings, impression = teller.tell(known, read(code=code), None, None)
        text = joined([*findings, *impression])
        stated = affirmed(text)
        # an opacity that is known to be a consolidation is told as one
        assert named - {"Lung Opacity"} <= stated <= named | {"Lung Opacity"}, text
        assert not any(m.label in named and m.status is Status.NEGATIVE for m in read_findings(text)), text


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Cardiomegaly", ("heart", "cardi", "mediast")),
        ("Fracture", ("bon", "spine")),
        ("Edema", ("lungs",)),
        ("Pneumothorax", ("effusion", "pneumothorax")),
    ],
)
def test_what_is_unknown_is_called_normal_only_where_the_tower_reads_little(teller, label, words):
    for code in codes():
        told = []
        for probability in (0.05, 0.45, 0.95):
            reading = read(code=code, labels=dict.fromkeys(LABELS, 0.05) | {label: probability})
            findings, _ = teller.tell({"Lung Lesion": 1} if label != "Edema" else {"Fracture": 1}, reading, None, None)
            told.append(any(word in s.text.lower() for s in findings[1:] for word in words))
        assert told == [True, False, False]
        # and a label that is known to be absent is called normal whatever is read
        reading = read(code=code, labels=dict.fromkeys(LABELS, 0.95))
        absent = dict.fromkeys(LABELS, 0) | ({"Lung Lesion": 1} if label != "Edema" else {"Fracture": 1})
        findings, _ = teller.tell(absent, reading, None, None)
        assert any(word in s.text.lower() for s in findings[1:] for word in words)


# -------------------------------------------------------------------------------------------------------------- places


def drawn(sign: Sign, side: Side | None, zone: Zone | None, size: float) -> Drawn:
    return Drawn(sign, side, zone, size, np.zeros((8, 8), np.float32))


@pytest.mark.parametrize("sign", [Sign.NODULE, Sign.OPACITY, Sign.EFFUSION])
@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("zone", Zone)
def test_a_simulated_finding_is_told_with_its_side_and_looks_where_it_was_drawn(teller, sign, side, zone):
    mask = np.random.default_rng(0).random(GRID**2).astype(np.float32)
    made = drawn(sign, side, None if sign is Sign.EFFUSION else zone, 0.2)
    known = {NO_FINDING: 0, LABEL_OF[sign]: 1}
    # the tower reads it elsewhere, but the drawing is known
    wrong = np.full((3, 2, 3), 0.02, np.float32)
    wrong[:, 1 if side is Side.RIGHT else 0, 1] = 0.9
    for code in codes():
        findings, impression = teller.tell(known, read(code=code, regions=wrong), made, mask)
        for section in (findings, impression):
            mentions = [m for m in read_findings(section[0].text) if m.label == LABEL_OF[sign]]
            assert {m.side for m in mentions} == {side.value}
            assert labels(section[0].text)[LABEL_OF[sign]] is Status.POSITIVE
            assert (f"{zone.value} lung" in section[0].text) is (sign is not Sign.EFFUSION)
            np.testing.assert_array_equal(section[0].where, mask)
            assert not any(s.where is mask for s in section[1:])
        assert affirmed(joined([*findings, *impression])) == {LABEL_OF[sign]}


@pytest.mark.parametrize(
    ("sign", "size", "word"),
    [
        (Sign.NODULE, 0.01, "small"),
        (Sign.NODULE, 0.06, "large"),
        (Sign.EFFUSION, 0.1, "small"),
        (Sign.EFFUSION, 0.2, "moderate"),
        (Sign.EFFUSION, 0.4, "large"),
        (Sign.HEART, 0.35, "mild"),
        (Sign.HEART, 0.6, "moderate"),
    ],
)
def test_a_simulated_finding_is_as_large_as_it_was_drawn(teller, sign, size, word):
    side = None if sign is Sign.HEART else Side.LEFT
    for code in codes():
        findings, impression = teller.tell(
            {NO_FINDING: 0, LABEL_OF[sign]: 1}, read(code=code), drawn(sign, side, None, size), np.ones(GRID**2)
        )
        for section in (findings, impression):
            said = section[0].text.lower()
            assert word in said
            assert not any(other in said for other in {"small", "large ", "moderate", "mild"} - {word, f"{word} "})


def regions(channel: int, **values: float) -> np.ndarray:
    """Region probabilities of one channel: right_lower=0.9."""
    made = np.full((3, 2, 3), 0.02, np.float32)
    for place, value in values.items():
        side, zone = place.split("_")
        made[channel, ("right", "left").index(side), ("upper", "mid", "lower").index(zone)] = value
    return made


@pytest.mark.parametrize(
    ("found", "place"),
    [
        ({"right_lower": 0.9}, "in the right lower lung"),
        ({"left_upper": 0.6}, "in the left upper lung"),
        ({"left_mid": 0.45}, "in the left lung"),  # seen, but not clearly where
        ({"right_lower": 0.9, "right_mid": 0.8, "right_upper": 0.7}, "in the right lung"),
        ({"right_lower": 0.9, "right_upper": 0.8}, "in the right lung"),
        ({"right_lower": 0.9, "left_lower": 0.8}, "in both lower lungs"),
        ({"right_lower": 0.9, "left_upper": 0.8}, "in both lungs"),
        ({"right_lower": 0.9, "left_lower": 0.3}, "in the right lower lung"),
        ({"right_lower": 0.3}, ""),  # what is not read is not claimed
    ],
)
@pytest.mark.parametrize(("label", "channel"), [("Lung Lesion", 0), ("Pneumonia", 1), ("Atelectasis", 1)])
def test_other_findings_are_placed_where_the_tower_reads_them(teller, found, place, label, channel):
    for code in codes()[:6]:
        findings, impression = teller.tell({label: 1}, read(code=code, regions=regions(channel, **found)), None, None)
        for section in (findings, impression):
            said = section[0].text
            assert (f" {place}" in said) if place else not any(w in said for w in ("right", "left", "both")), said


@pytest.mark.parametrize(
    ("label", "place"),
    [("Pneumonia", "in the right mid and lower lung"), ("Lung Lesion", "in the right lung")],
)
def test_only_what_can_spread_lies_in_two_zones(teller, label, place):
    found = regions(0 if label == "Lung Lesion" else 1, right_mid=0.8, right_lower=0.9)
    findings, _ = teller.tell({label: 1}, read(regions=found), None, None)
    assert place in findings[0].text


@pytest.mark.parametrize(
    ("note", "opacity", "effusion"),
    [
        ("There is a consolidation in the right upper lobe.", "right", None),
        ("Bilateral opacities. Small left pleural effusion.", "bilateral", "left"),
        ("Opacity of the left lung. New consolidation in the right lung.", "bilateral", None),
        ("No right pleural effusion. Possible left effusion.", None, None),
        ("Normal chest radiograph.", None, None),
    ],
)
def test_a_note_that_names_a_side_is_believed(teller, note, opacity, effusion):
    sides = noted_sides(note)
    assert sides == {
        name: side
        for names, side in ((("opacity", "pneumonia", "consolidation"), opacity), (("effusion",), effusion))
        for name in names
        if side
    }
    if opacity:  # whatever the tower reads
        reading = read(regions=regions(1, **{"left_mid" if opacity == "right" else "right_mid": 0.9}))
        findings, impression = teller.tell({"Pneumonia": 1}, reading, None, None, sides)
        for section in (findings, impression):
            assert {m.side for m in read_findings(section[0].text)} - {None} == {opacity}


def test_a_noted_side_is_where_the_sentence_looks(teller):
    places = np.full((GRID**2, 5), 0.5, np.float32)
    places[: GRID**2 // 2, 0], places[GRID**2 // 2 :, 1] = 0.0, 0.0  # no right lung above, no left lung below
    findings, _ = teller.tell({"Pneumonia": 1}, read(places=places), None, None, {"pneumonia": "right"})
    assert findings[0].where[: GRID**2 // 2].max() == 0 < findings[0].where[GRID**2 // 2 :].min()


@pytest.mark.parametrize(
    ("found", "side"),
    [
        ({"right_lower": 0.9}, "right"),
        ({"right_lower": 0.9, "left_lower": 0.6}, "bilateral"),
        ({"left_mid": 0.3}, None),
    ],
)
def test_an_effusion_is_told_with_the_side_that_is_read(teller, found, side):
    for code in codes():
        findings, impression = teller.tell(
            {"Pleural Effusion": 1}, read(code=code, regions=regions(2, **found)), None, None
        )
        for section in (findings, impression):
            assert {m.side for m in read_findings(section[0].text) if m.label == "Pleural Effusion"} == {side}


def test_statements_look_where_they_speak_of(teller):
    rng = np.random.default_rng(0)
    places = rng.random((GRID**2, 5)).astype(np.float32)
    lungs = places[:, :2].max(1)
    known = dict.fromkeys(LABELS, 0) | {"Fracture": 1, "Atelectasis": 1}
    reading = read(places=places, regions=regions(1, right_lower=0.9))
    findings, impression = teller.tell(known, reading, None, None)
    for statement in [*findings, *impression]:
        text = statement.text.lower()
        if "atelectasis" in text:
            read_there = (
                places[:, 3] * places[:, 0]
            )  # in the lung that it names; the patch that shows it most counts in full
            np.testing.assert_allclose(statement.where, read_there / read_there.max(), rtol=1e-5)
        elif any(word in text for word in ("effusion", "pneumothorax", "lungs")):
            np.testing.assert_array_equal(statement.where, lungs)
        else:  # heart, bones: nothing of the film has been read for them
            assert statement.where is None
    # a finding of the lungs that was read nowhere in particular is sought in both
    findings, _ = teller.tell({"Pneumonia": 1}, read(places=places), None, None)
    np.testing.assert_array_equal(findings[0].where, lungs)


def test_a_code_is_as_long_as_the_wording_asks():
    assert Wording.CODE_BITS == 12 == len(read().code)


# ---------------------------------------------------------------------------------------------------------------- facts


def test_the_facts_are_what_the_report_states(teller):
    """The language model is taught that the text says what the facts say: no name, side or third may differ."""
    found = np.full((3, 2, 3), 0.02, np.float32)
    found[0, 0, 0], found[1, 1, 1], found[1, 1, 2], found[2, :, 2] = 0.9, 0.8, 0.7, 0.6
    known = {"Pneumonia": 1, "Lung Opacity": 1, "Lung Lesion": 1, "Pleural Effusion": 1, "Edema": 1, "Fracture": 0}
    told = [
        Fact("pneumonia", "left", "mid and lower"),
        Fact("nodule", "right", "upper"),
        Fact("effusion", "bilateral", "lower"),
        Fact("edema"),
    ]
    assert teller.facts(known, read(regions=found)) == told
    for code in codes():
        findings, _ = teller.tell(known, read(code=code, regions=found), None, None)
        for fact, statement in zip(told, findings, strict=False):
            assert affirmed(statement.text) & set(STATED[fact.name])
            assert {m.side for m in read_findings(statement.text)} == {fact.side or None}
            assert (
                fact.third in statement.text
            ) or fact.name == "effusion"  # which is basal: its sentences name no third


def test_a_note_that_names_a_side_sets_the_fact_and_its_third_is_read_there(teller):
    found = np.full((3, 2, 3), 0.02, np.float32)
    found[1, 0, 0], found[1, 1, 2] = 0.9, 0.8
    facts = [
        teller.facts({"Pneumonia": 1}, read(regions=found), None, {"pneumonia": side}) for side in ("left", "right")
    ]
    assert facts == [[Fact("pneumonia", "left", "lower")], [Fact("pneumonia", "right", "upper")]]


def test_a_drawn_finding_is_the_only_fact_and_a_normal_film_has_none(teller):
    made = drawn(Sign.NODULE, Side.LEFT, Zone.MID, 0.02)
    assert teller.facts({NO_FINDING: 0, "Lung Lesion": 1}, read(), made) == [Fact("nodule", "left", "mid")]
    assert teller.facts({NO_FINDING: 0, "Cardiomegaly": 1}, read(), drawn(Sign.HEART, None, None, 0.5)) == [
        Fact("heart")
    ]
    assert teller.facts({NO_FINDING: 1, "Pneumonia": 0}, read()) == []
