"""From probabilities to findings: what is stated, what may be denied, what is left open; where; and one token for each."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from emrrg_core.config import PromptTokens
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.finding_tokens import (
    ABNORMAL,
    NAMES,
    NEVER,
    SEVERITIES,
    SIDES,
    ZONES,
    Calibration,
    Finding,
    FindingTokens,
    Presence,
    cardiothoracic_ratio,
    codes,
    finding_maps,
    placed,
    ratios_of,
    select_findings,
    zone_of,
)
from emrrg_core.report.draft import Draft
from emrrg_core.text.labeler import LABELS, NO_FINDING

G = 12  # patches along a side
NORMAL, ILL = {NO_FINDING: 0.9}, {NO_FINDING: 0.1}
UPPER, MID, LOWER = 3, 6, 8  # rows of patches in each third of the lungs
RIGHT, LEFT = 2, 9  # columns of patches in each lung


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def chest() -> torch.Tensor:
    """Lung borders (1, 2, 48, 48): the right lung at columns 4 to 20, the left at 28 to 44, both at rows 6 to 42."""
    lungs = torch.full((1, 2, 48, 48), -9.0)
    lungs[0, 0, 6:42, 4:20] = 9.0
    lungs[0, 1, 6:42, 28:44] = 9.0
    return lungs


def seen_of(probabilities: dict[str, float], places: dict[str, list[tuple[int, int]]] | None = None) -> Seen:
    """One film with these probabilities by label, 0.2 for others, and findings of probability 0.9 at these patches (row, column)."""
    logits = torch.tensor([[logit(probabilities.get(label, 0.2)) for label in LABELS]])
    evidence = torch.full((1, len(LABELS), G, G), -5.0)
    for label, mine in (places or {}).items():
        for row, column in mine:
            evidence[0, LABELS.index(label), row, column] = logit(0.9)
    evidence = evidence.flatten(2)
    share = torch.full_like(evidence, 1 / G**2)
    bias, none = logits[0] - evidence[0].mean(-1), torch.zeros(1, len(LABELS), 4)
    return Seen(torch.zeros(1, G**2 + 1, 4), logits, evidence, share, bias, none, chest())


def read(probabilities: dict, places: dict | None = None, calibration: Calibration | None = None) -> dict[str, Finding]:
    (found,) = select_findings(seen_of(probabilities, places), calibration or Calibration())
    return {finding.name: finding for finding in found}


# ------------------------------------------------------------------------------------------------ stated, denied, open


@pytest.mark.parametrize(
    ("probability", "presence"),
    [
        (0.6, Presence.PRESENT),
        (0.51, Presence.PRESENT),
        (0.49, Presence.OPEN),
        (0.11, Presence.OPEN),
        (0.09, Presence.ABSENT),
    ],
)
def test_a_finding_is_present_open_or_absent_by_its_thresholds(probability, presence):
    found = read(ILL | {"Pleural Effusion": probability})["effusion"]
    assert found.presence is presence
    assert found.probability == pytest.approx(probability, abs=1e-5)
    assert found.threshold == pytest.approx(0.5)


def test_in_a_film_that_is_normal_as_a_whole_only_what_reaches_the_second_threshold_is_stated():
    for probability, presence in ((0.6, Presence.OPEN), (0.89, Presence.OPEN), (0.91, Presence.PRESENT)):
        found = read(NORMAL | {"Pleural Effusion": probability})["effusion"]
        assert (found.presence, found.threshold) == (presence, pytest.approx(0.9))


def test_a_film_is_abnormal_by_the_probability_that_it_is_not_normal():
    assert read(NORMAL)[ABNORMAL].probability == pytest.approx(0.1)
    assert read({NO_FINDING: 0.95})[ABNORMAL].presence is Presence.ABSENT
    assert read(NORMAL)[ABNORMAL].presence is Presence.OPEN
    assert read(ILL)[ABNORMAL].presence is Presence.PRESENT
    # by its own threshold, also where nothing that has a name reaches any
    assert {f.name for f in read(ILL).values() if f.presence is Presence.PRESENT} == {ABNORMAL}


def test_nothing_below_its_own_threshold_is_stated_and_nothing_from_it_on_is_not():
    calibration, random = Calibration(), np.random.default_rng(0)
    stated = 0
    for _ in range(100):
        low, high = np.sort(random.uniform(0.2, 0.95, (2, len(LABELS))), axis=0)
        calibration.thresholds[:] = torch.tensor(np.stack([low, high, low / 2], 1))
        for finding in read(dict(zip(LABELS, random.uniform(0.01, 0.99, len(LABELS)), strict=True)), None, calibration).values():  # fmt: skip
            assert (finding.presence is Presence.PRESENT) == (finding.probability >= finding.threshold)
            stated += finding.presence is Presence.PRESENT
    assert 100 < stated < 1000


def test_what_is_not_assessed_is_not_read_and_is_named_as_that(draft_of):
    calibration = Calibration()
    for label in ("Fracture", "Pneumothorax"):
        calibration.thresholds[LABELS.index(label)] = torch.tensor([NEVER, NEVER, 0.0])
    found = read(ILL | {"Fracture": 1 - 1e-9, "Pneumothorax": 1e-6}, None, calibration)
    assert found.keys() == NAMES.keys() - {"fracture", "pneumothorax"}
    assert draft_of(tuple(found.values())).not_assessed == ("Pneumothorax", "Fracture", "Support Devices")
    assert draft_of(tuple(read(ILL).values())).not_assessed == ("Support Devices",)


@pytest.fixture
def draft_of():
    return lambda found: Draft("", "", (), (), (), G, (), (), {}, {}, {"seed": 0}, True, read=found)


def test_findings_are_read_in_the_order_in_which_they_are_told():
    assert list(read(ILL)) == list(NAMES)


def test_every_film_is_read_by_itself():
    one, two = seen_of(ILL | {"Edema": 0.8}), seen_of(NORMAL)
    whole = {"bias": one.bias, "stem": None}
    both = Seen(
        **{name: torch.cat([v, getattr(two, name)]) for name, v in vars(one).items() if name not in whole}, **whole
    )
    calibration = Calibration()
    assert select_findings(both, calibration) == [select_findings(each, calibration)[0] for each in (one, two)]


# -------------------------------------------------------------------------------------------------------- probabilities


def test_probabilities_are_calibrated_and_may_be_told_the_width_of_the_heart():
    calibration = Calibration()
    heart = LABELS.index("Cardiomegaly")
    calibration.curve[heart] = torch.tensor([0.5, 10.0, -1.0])
    logits = torch.full((2, len(LABELS)), 2.0)
    got = calibration.probabilities(logits, [0.6, None])
    assert got[:, heart].tolist() == pytest.approx([1 / (1 + np.exp(-(1 + 1 - 1))), 0.5])
    assert got[:, heart - 1].tolist() == pytest.approx([1 / (1 + np.exp(-2.0))] * 2)


# --------------------------------------------------------------------------------------------------------------- places


def opacity(*patches: tuple[int, int]) -> Finding:
    return read(ILL | {"Lung Opacity": 0.8}, {"Lung Opacity": list(patches)})["opacity"]


@pytest.mark.parametrize(
    ("patches", "side", "zone"),
    [
        ([], "", ""),
        ([(UPPER, RIGHT)], "right", "upper"),
        ([(LOWER, LEFT)], "left", "lower"),
        ([(UPPER, LEFT), (MID, LEFT)], "left", "upper and mid"),
        ([(UPPER, LEFT), (LOWER, LEFT)], "left", ""),  # zones that do not touch
        ([(UPPER, RIGHT), (MID, RIGHT), (LOWER, RIGHT)], "right", ""),  # all of the lung
        ([(MID, RIGHT), (MID, LEFT)], "bilateral", "mid"),
        ([(MID, RIGHT), (LOWER, LEFT)], "bilateral", "mid and lower"),
    ],
)
def test_side_and_zone_are_those_of_the_patches(patches, side, zone):
    found = opacity(*patches)
    assert (found.side, found.zone) == (side, zone)


def test_a_place_is_named_from_a_lower_probability_on_than_a_second_one():
    assert placed(torch.tensor([[0.39, 0, 0], [0, 0, 0]])) == ("", "")
    assert placed(torch.tensor([[0.41, 0, 0], [0, 0, 0]])) == ("right", "")
    assert placed(torch.tensor([[0.8, 0, 0], [0.45, 0, 0]])) == ("right", "upper")
    assert placed(torch.tensor([[0.8, 0, 0], [0.55, 0, 0]])) == ("bilateral", "upper")


@pytest.mark.parametrize(("zones", "said"), [([1, 0, 0], "upper"), ([0, 1, 1], "mid and lower"), ([1, 0, 1], "")])
def test_zones_have_words_where_they_touch(zones, said):
    assert zone_of(torch.tensor(zones, dtype=torch.float32)) == said
    assert said in ZONES


def test_an_effusion_has_a_side_and_no_zone_and_what_is_not_there_has_no_place():
    places = {"Pleural Effusion": [(LOWER, LEFT)], "Lung Opacity": [(UPPER, RIGHT)]}
    found = read(ILL | {"Pleural Effusion": 0.8}, places)
    assert (found["effusion"].side, found["effusion"].zone) == ("left", "")
    assert (found["opacity"].presence, found["opacity"].side, found["opacity"].zone) == (Presence.OPEN, "", "")


def test_a_consolidation_lies_where_the_opacity_lies():
    found = read(ILL | {"Consolidation": 0.8}, {"Lung Opacity": [(MID, LEFT)], "Consolidation": [(UPPER, RIGHT)]})
    assert (found["consolidation"].side, found["consolidation"].zone) == ("left", "mid")


def test_an_opacity_may_be_a_pneumonia_and_nothing_else_may():
    likely = read(ILL | {"Lung Opacity": 0.8, "Edema": 0.8, "Pneumonia": 0.6})
    assert [f.name for f in likely.values() if f.pneumonia] == ["opacity"]
    assert not any(f.pneumonia for f in read(ILL | {"Lung Opacity": 0.8, "Pneumonia": 0.4}).values())
    assert not any(f.pneumonia for f in read(ILL | {"Lung Opacity": 0.3, "Pneumonia": 0.9}).values())


def test_an_effusion_is_as_large_as_its_share_of_the_lung():
    def size(*patches: tuple[int, int]) -> str:
        return read(ILL | {"Pleural Effusion": 0.8}, {"Pleural Effusion": list(patches)})["effusion"].severity

    left = [(row, column) for row in range(2, 10) for column in range(7, 11)]
    assert size(left[-1]) == "mild"
    assert size(*left[-12:]) == "moderate"
    assert size(*left) == "severe"
    assert size() == ""  # on no side


def test_a_finding_is_noted_as_a_reader_would_note_it():
    assert str(Finding("nodule", Presence.PRESENT, 0.9, 0.5, "left", "upper")) == "nodule or mass, left upper lung"
    assert str(Finding("opacity", Presence.PRESENT, 0.9, 0.5, "bilateral")) == "airspace opacity, both lungs"
    assert str(Finding("effusion", Presence.PRESENT, 0.9, 0.5, "right")) == "pleural effusion, right"
    assert str(Finding("heart", Presence.PRESENT, 0.9, 0.5)) == "enlarged heart"


# ----------------------------------------------------------------------------------------------------------------- maps


def test_a_present_findings_map_is_what_speaks_for_it_and_else_where_it_was_looked_for():
    seen = seen_of(ILL | {"Lung Lesion": 0.8}, {"Lung Lesion": [(UPPER, RIGHT), (MID, LEFT)]})
    (found,) = select_findings(seen, Calibration())
    by_name = {f.name: f.maps[0].reshape(G, G) for f in found}
    expected = np.zeros((G, G))
    expected[UPPER, RIGHT] = expected[MID, LEFT] = 0.5
    np.testing.assert_allclose(by_name["nodule"], expected, atol=1e-6)
    np.testing.assert_allclose(by_name["edema"], 1 / G**2, rtol=1e-5)


def test_the_map_of_an_opacity_is_also_what_speaks_for_pneumonia():
    seen = seen_of(ILL)
    opacity, pneumonia = (seen.evidence[0, LABELS.index(label)] for label in ("Lung Opacity", "Pneumonia"))
    pneumonia[:] = 0.0
    opacity[5], opacity[7], pneumonia[7] = 1.0, 1.0, 2.0
    expected = np.zeros(G**2)
    expected[[5, 7]] = 0.25, 0.75
    np.testing.assert_allclose(finding_maps(seen)[0, LABELS.index("Lung Opacity"), 1], expected, atol=1e-6)


def test_the_map_of_any_abnormality_is_what_speaks_against_a_normal_film():
    seen = seen_of(ILL)
    normal = LABELS.index(NO_FINDING)
    seen.evidence[0, normal] = 5.0
    seen.evidence[0, normal, 17] = -5.0
    maps = finding_maps(seen)
    assert maps.shape == (1, len(LABELS), 2, G**2)
    assert maps[0, normal, 1].argmax() == 17
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)


def test_what_speaks_against_pneumonia_takes_nothing_from_the_map_of_an_opacity():
    seen = seen_of({**ILL, "Lung Opacity": 0.9})
    seen.evidence[0, LABELS.index("Lung Opacity"), 30] = 4.0
    alone = finding_maps(seen)[0, LABELS.index("Lung Opacity"), 1]
    seen.evidence[0, LABELS.index("Pneumonia")] = -50.0
    np.testing.assert_allclose(finding_maps(seen)[0, LABELS.index("Lung Opacity"), 1], alone, atol=1e-6)


# -------------------------------------------------------------------------------------------------- cardiothoracic ratio


def lungs_of(height: int = 100, width: int = 100, *, heart: tuple[float, float] = (0.4, 0.7)) -> np.ndarray:
    """Borders (2, height, width) of two lungs from 0.1 to 0.9 of the width. In the lower half the heart lies between the shares `heart`."""
    lungs = np.zeros((2, height, width), np.float32)
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5)[:, None] / height
    inside, low = (y >= 0.1) & (y < 0.9), y >= 0.5
    lungs[0] = inside & (x >= 0.1) & (x < np.where(low, heart[0], 0.4))
    lungs[1] = inside & (x < 0.9) & (x >= np.where(low, heart[1], 0.6))
    return lungs


@pytest.mark.parametrize(("heart", "ratio"), [((0.4, 0.7), 0.375), ((0.4, 0.8), 0.5), ((0.3, 0.8), 0.625)])
def test_the_ratio_is_the_width_of_the_heart_over_that_of_the_chest(heart, ratio):
    assert cardiothoracic_ratio(lungs_of(heart=heart)) == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(100, 200), (240, 100), (100, 100)])
def test_squashing_a_film_to_a_square_changes_no_ratio(height, width):
    seen = np.stack([cv2.resize(lung, (56, 56), interpolation=cv2.INTER_AREA) for lung in lungs_of(height, width)])
    assert cardiothoracic_ratio(seen) == pytest.approx(0.375, abs=0.01)  # half a cell of 56


def test_one_row_that_is_wrong_changes_no_ratio():
    lungs = lungs_of()
    lungs[1, 70, :88] = 0
    lungs[0, 75, 12:] = 0
    assert cardiothoracic_ratio(lungs) == pytest.approx(0.375, abs=1e-6)


def test_there_is_no_ratio_without_two_lungs():
    both = lungs_of()
    for lungs in (both * np.array([1, 0])[:, None, None], both * np.array([0, 1])[:, None, None], both * 0, both * 0.4):
        assert cardiothoracic_ratio(lungs) is None


@pytest.mark.parametrize("side", [0, 1])
def test_there_is_no_ratio_where_the_lower_part_of_a_lung_is_hidden(side):
    """What hides it hides the heart's border too: the rows that are left show the upper mediastinum."""
    for row, measured in ((20, False), (50, False), (65, False), (85, True)):
        lungs = lungs_of(heart=(0.3, 0.8))
        lungs[side, row:] = 0
        assert (cardiothoracic_ratio(lungs) is not None) == measured, row


@pytest.mark.parametrize(("ratio", "severity"), [(0.52, "mild"), (0.57, "moderate"), (0.65, "severe")])
def test_a_heart_is_as_enlarged_as_its_ratio_says(ratio, severity):
    lungs = torch.from_numpy(lungs_of(heart=(0.5 - 0.4 * ratio, 0.5 + 0.4 * ratio)))[None]
    seen = replace(seen_of(ILL | {"Cardiomegaly": 0.9}), lungs=(lungs - 0.5) * 20)
    assert ratios_of(seen) == [pytest.approx(ratio, abs=0.011)]
    (found,) = select_findings(seen, Calibration())
    (heart,) = (f for f in found if f.name == "heart")
    assert heart.severity == severity
    blind = replace(seen, lungs=torch.full_like(seen.lungs, -9.0))
    assert ratios_of(blind) == [None]
    assert {f.severity for f in select_findings(blind, Calibration())[0]} == {""}


# --------------------------------------------------------------------------------------------------------------- tokens

EFFUSION = Finding("effusion", Presence.PRESENT, 0.9, 0.5, "left", "", "moderate")


@pytest.fixture
def tokens() -> FindingTokens:
    torch.manual_seed(0)
    return FindingTokens(8).requires_grad_(False)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "pneumothorax"},
        {"presence": Presence.ABSENT},
        {"side": "right"},
        {"zone": "lower"},
        {"severity": "severe"},
    ],
)
def test_a_token_changes_with_each_of_its_five_parts(tokens, change):
    row = list(NAMES).index("effusion")
    one = tokens(codes([[EFFUSION]]))[0]
    changed = replace(EFFUSION, **change)
    other = tokens(codes([[changed]]))[0, list(NAMES).index(changed.name)]
    assert one.shape == (len(NAMES), 8)
    assert (one[row] - other).abs().max() > 0.1


def test_a_token_is_the_sum_of_its_parts(tokens):
    (code,) = codes([[EFFUSION]])[:, list(NAMES).index("effusion")]
    parts = [table.weight[i] for table, i in zip(tokens.tables, code, strict=True)]
    torch.testing.assert_close(tokens(code), torch.stack(parts).sum(0))


def test_an_opacity_that_may_be_a_pneumonia_has_a_token_of_its_own(tokens):
    plain = Finding("opacity", Presence.PRESENT, 0.9, 0.5)
    one, other = (tokens(codes([[f]]))[0, 1] for f in (plain, replace(plain, pneumonia=True)))
    assert (one - other).abs().max() > 0.1


def test_every_code_has_a_row_in_its_table(tokens):
    for name in NAMES:
        for pneumonia in (False, True):
            last = Finding(name, Presence.OPEN, 0.5, 0.5, SIDES[-1], ZONES[-1], SEVERITIES[-1], pneumonia)
            assert tokens(codes([[last]])).isfinite().all()


def test_tokens_start_as_the_words_of_the_language_model(build):
    model = build(queries=True)
    embedding = model.llm.get_input_embeddings().weight

    def word(text: str) -> torch.Tensor:
        return embedding[model.tokenizer(text, add_special_tokens=False).input_ids].mean(0)

    expected = word(" pleural effusion") + word(" present") + word(" left") + word(",") + word(" moderate")
    row = model.finding_tokens(codes([[EFFUSION]]))[0, list(NAMES).index("effusion")]
    torch.testing.assert_close(row, expected)


def test_what_is_not_assessed_is_no_token_that_anything_can_see(reading, images):
    assert reading.config.prompt.tokens is PromptTokens.NONE
    film, report = reading.encode(images[:1]), torch.tensor([[5, 9, 200, 2]])
    names = list(NAMES)
    assert [name for name, seen in zip(names, film.assessed[0].tolist(), strict=True) if not seen] == ["fracture"]
    before = reading.log_probs(film, report)
    for name in ("fracture", "heart"):
        changed = film.finding_tokens.clone()
        changed[:, names.index(name)] += 10.0
        after = reading.log_probs(replace(film, finding_tokens=changed), report)
        assert torch.equal(before, after) == (name == "fracture")


def test_a_draft_is_told_what_is_read_unless_other_findings_are_given(reading, images):
    seen = reading.see(images[:1])
    own = reading.project(seen)
    assert list(own.findings) == select_findings(seen, reading.calibration)
    told = reading.project(seen, [[EFFUSION]])
    assert told.findings == ((EFFUSION,),)
    assert told.assessed.sum() == 1
    assert torch.equal(own.patches, told.patches)
