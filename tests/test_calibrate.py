"""Probabilities and thresholds: fitted on development films, and what cannot be judged there is not assessed."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from emrrg_core.data.studies import FilmCache, Study, development, read_studies
from emrrg_core.errors import ConfigError
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.finding_tokens import NEVER, Calibration
from emrrg_core.text.labeler import LABELS, NO_FINDING
from tests import tiny
from tests.phantom import make_phantom
from train import calibrate
from train.calibrate import FEWEST, LEAST_AREA, MISSED, RIGHT, fit, logistic
from train.measures import area_under_curve
from train.targets import Truth

EFFUSION = LABELS.index("Pleural Effusion")


@dataclass
class Films:
    """Development films that nobody drew: their logits, and who has what."""

    seen: Seen
    studies: list[Study]
    truths: dict[str, Truth]


def seen_with(logits: torch.Tensor) -> Seen:
    n, labels = logits.shape
    none = torch.zeros(n, labels, 4)
    return Seen(
        torch.zeros(n, 0), logits, none, none + 0.25, torch.zeros(labels), torch.zeros(n, 0), torch.zeros(n, 2, 0, 0)
    )


def films(
    label: str, logits: np.ndarray, has: np.ndarray, normal: np.ndarray | None = None, known: np.ndarray | None = None
) -> Films:
    """n films of which this label is known (of `known`), with these logits of it. normal: films that are known to be; the others are ill."""
    whole = torch.zeros(len(logits), len(LABELS))
    whole[:, LABELS.index(label)] = torch.from_numpy(logits).float()
    normal = np.zeros(len(logits), bool) if normal is None else normal
    known = np.ones(len(logits), bool) if known is None else known
    studies = [
        Study(f"{i}", "ours", "train", f"{i}", (), {NO_FINDING: int(n)}, None, "", "") for i, n in enumerate(normal)
    ]
    truths = {s.id: Truth({label: float(h)} if k else {}) for s, h, k in zip(studies, has, known, strict=True)}
    return Films(seen_with(whole), studies, truths)


def fitted(given: Films, label: str, drawn: dict | None = None) -> tuple[Calibration, dict, list[float]]:
    """The calibration, what was found of this label, and its thresholds: in an abnormal film, in any, and for denial."""
    calibration = Calibration()
    found = fit(calibration, given.seen, given.studies, given.truths, drawn)[label]
    return calibration, found, calibration.thresholds[LABELS.index(label)].tolist()


def told(n: int = 400, share: float = 0.3, apart: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of n films, and who of them has a finding: `apart` deviations between the two kinds."""
    rng = np.random.default_rng(seed)
    has = rng.random(n) < share
    return rng.normal(size=n) + apart * has, has


# -------------------------------------------------------------------------------------------------------------- curve


def test_a_known_curve_is_found_again():
    rng = np.random.default_rng(0)
    logits, ratio = rng.normal(0, 3, 20_000), rng.normal(0, 0.06, 20_000)
    target = rng.random(20_000) < 1 / (1 + np.exp(-(0.6 * logits + 12 * ratio - 1.5)))
    assert logistic(logits, ratio, target) == pytest.approx([0.6, 12, -1.5], rel=0.1)
    scale, weight, offset = logistic(logits, None, rng.random(20_000) < 1 / (1 + np.exp(-(2 * logits + 1))))
    assert (scale, offset) == pytest.approx((2, 1), rel=0.1)
    assert weight == 0


def test_probabilities_are_as_frequent_as_they_say_and_soft_labels_count_by_halves():
    logits, has = told(2000)
    given = films("Pleural Effusion", logits, has)
    calibration, _, _ = fitted(given, "Pleural Effusion")
    p = calibration.probabilities(given.seen.logits, [None] * 2000)[:, EFFUSION].numpy()
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1)):
        mine = (p >= low) & (p < high)
        assert p[mine].mean() == pytest.approx(has[mine].mean(), abs=0.08)
    half = logistic(np.zeros(50), None, np.full(50, 0.5))
    assert 1 / (1 + np.exp(-half[2])) == pytest.approx(0.5, abs=0.01)


def test_a_reading_that_is_the_wrong_way_round_is_never_believed_backwards():
    logits, has = told()
    assert logistic(-logits, None, has)[0] == 0.05


# --------------------------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize("positive", [FEWEST - 1, FEWEST])
def test_a_finding_of_which_there_are_too_few_films_is_never_assessed(positive):
    """However well these few are told from the others."""
    has = np.arange(200) < positive
    calibration, found, thresholds = fitted(films("Fracture", 10.0 * has - 5, has), "Fracture")
    assert found["assessed"] is calibration.assessed("fracture") is (positive >= FEWEST)
    assert found["positive"] == positive
    if positive < FEWEST:
        assert thresholds == [NEVER, NEVER, 0]


@pytest.mark.parametrize("apart", [0.2, 3.0])
def test_a_finding_that_is_not_told_from_its_absence_is_never_assessed(apart):
    logits, has = told(apart=apart)
    calibration, found, _ = fitted(films("Pleural Effusion", logits, has), "Pleural Effusion")
    assert found["area"] == pytest.approx(area_under_curve(has, logits))
    assert calibration.assessed("effusion") is (found["area"] >= LEAST_AREA) is (apart == 3)


def test_what_is_unknown_of_a_film_counts_neither_way():
    logits, has = told(400)
    known = np.arange(400) < 200
    part, _, limits = fitted(films("Pleural Effusion", logits, has, known=known), "Pleural Effusion")
    alone, _, same = fitted(films("Pleural Effusion", logits[:200], has[:200]), "Pleural Effusion")
    assert limits == pytest.approx(same)
    torch.testing.assert_close(part.curve[EFFUSION], alone.curve[EFFUSION])
    other, _, _ = fitted(films("Pleural Effusion", logits, has), "Pleural Effusion")
    assert not torch.allclose(other.curve[EFFUSION], alone.curve[EFFUSION])


def test_in_films_that_look_normal_a_finding_is_stated_only_above_what_normal_films_reach():
    logits, has = told(1000, apart=2.0)
    normal = ~has & (np.arange(1000) % 2 == 0)
    given = films("Pleural Effusion", logits, has, normal)
    calibration, _, (first, alone, _) = fitted(given, "Pleural Effusion")
    p = calibration.probabilities(given.seen.logits, [None] * 1000)[:, EFFUSION].numpy()
    assert alone > first
    assert 0 < (p[normal] >= alone).mean() <= calibrate.ALARMS + 1 / normal.sum()
    assert (p[normal] >= first).mean() > 2 * calibrate.ALARMS


@pytest.mark.parametrize(("apart", "share"), [(1.2, 0.8), (1.2, 0.3), (2.0, 0.3), (3.0, 0.3), (4.0, 0.3)])
def test_what_is_denied_is_rarely_there_and_what_is_there_is_rarely_denied(apart, share):
    logits, has = told(600, share=share, apart=apart)
    given = films("Pleural Effusion", logits, has)
    calibration, found, (first, _, denied) = fitted(given, "Pleural Effusion")
    p = calibration.probabilities(given.seen.logits, [None] * 600)[:, EFFUSION].double().numpy()
    assert denied <= first
    if share == 0.8:  # nothing can be denied with that much right
        assert denied == 0
        assert found["negative_predictive_value"] is None
        return
    assert (~has[p < denied]).mean() >= RIGHT
    assert (p[has] < denied).mean() <= MISSED
    assert found["negative_predictive_value"] == pytest.approx((~has[p < denied]).mean(), abs=0.01)
    assert found["denied_of_positive"] == pytest.approx((p[has] < denied).mean(), abs=0.01)


def test_whether_a_film_is_normal_is_always_assessed_and_its_limit_is_of_abnormality():
    logits, ill = told(400, share=0.5)
    given = films(NO_FINDING, -logits, ~ill, ~ill)
    calibration, found, (first, alone, denied) = fitted(given, NO_FINDING)
    normal = calibration.probabilities(given.seen.logits, [None] * 400)[:, LABELS.index(NO_FINDING)].numpy()
    called = 1 - normal >= first
    assert found["assessed"]
    assert (called[ill].mean() + (~called[~ill]).mean()) / 2 > 0.9
    assert first == alone
    assert 0 < denied <= first


def test_a_finding_with_few_real_films_is_assessed_by_drawn_ones_stated_with_care_and_never_denied():
    rng = np.random.default_rng(0)
    has = np.arange(300) < calibrate.LEAST
    given = films("Lung Lesion", rng.normal(size=300) + 3 * has, has, ~has)

    def reading(shift: float) -> Seen:
        logits = torch.zeros(60, len(LABELS))
        logits[:, LABELS.index("Lung Lesion")] = torch.from_numpy(rng.normal(size=60) + shift).float()
        return seen_with(logits)

    for shift, assessed in ((4.0, True), (0.0, False)):
        calibration, _, thresholds = fitted(given, "Lung Lesion", {"": reading(0), "Lung Lesion": reading(shift)})
        assert calibration.assessed("nodule") is assessed
        if assessed:
            assert thresholds[0] == thresholds[1] < NEVER
            assert thresholds[2] == 0
    assert not fitted(given, "Lung Lesion")[0].assessed("nodule")  # where none were drawn


# ------------------------------------------------------------------------------------------------------------ program


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    """Film sets of the same 60 phantoms that differ in what is said of films to report scores of, or of films that are learned."""
    folder = tmp_path_factory.mktemp("set")
    kinds = (None, "effusion", "opacity")
    rows = [
        (make_phantom(i, height=128, width=128, lesion=kinds[i % 3]), {"split": ("train", "val")[i % 2]})
        for i in range(60)
    ]
    path = tiny.film_set(folder, rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = {s.id for s in development([s for s in read_studies(path) if s.split == "train"])[1]}
    for name, wrong in (
        ("val", lambda row: row["split"] == "val"),
        ("learned", lambda row: row["split"] == "train" and row["id"] not in kept),
    ):
        changed = [row | {"labels": {"Edema": 1}} if wrong(row) else row for row in lines]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, changed)))
    return folder


def test_nothing_is_fitted_on_films_that_scores_are_reported_of(reading_checkpoint, listing, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "LEAST", 1)
    seen = []
    see_all = calibrate.see_all
    monkeypatch.setattr(
        calibrate, "see_all", lambda model, studies, cache: seen.append(studies) or see_all(model, studies, cache)
    )
    weights = []
    for name in ("films", "val", "learned"):
        out = tmp_path / name
        said = ["--checkpoint", f"{reading_checkpoint}", "--films", f"{listing / name}.jsonl", "--out", f"{out}"]
        calibrate.main([*said, "--cache", f"{tmp_path}/cache", "--threads", "1"])
        weights.append(checkpoints.load(out)[0].calibration)
    assert all({s.split for s in studies} == {"train"} for studies in seen)
    assert len({len(studies) for studies in seen}) == 1
    for other in weights[1:]:
        assert torch.equal(weights[0].curve, other.curve)
        assert torch.equal(weights[0].thresholds, other.thresholds)
    before = checkpoints.load(reading_checkpoint)[0].calibration
    assert not torch.equal(before.thresholds, weights[0].thresholds)
    found = checkpoints.read_config(tmp_path / "films")["training"]["calibration"]
    assert found.keys() == set(LABELS)


def test_a_checkpoint_without_disease_queries_is_refused(checkpoint, listing, tmp_path):
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        calibrate.main(
            ["--checkpoint", f"{checkpoint}", "--films", f"{listing}/films.jsonl", "--out", f"{tmp_path}/never"]
        )


def test_findings_are_drawn_in_the_lungs_that_the_tower_sees(reading_checkpoint, tmp_path):
    """And only on normal films; a film in which it sees none is left out."""
    rows = [
        (make_phantom(i, height=128, width=128, lesion=(None, "opacity")[i % 2]), {"split": "train"}) for i in range(6)
    ]
    studies = read_studies(tiny.film_set(tmp_path, rows))
    model, _ = checkpoints.load(reading_checkpoint)
    cache = FilmCache(studies, tmp_path, model.config.vision.image_size)
    seen = calibrate.see_all(model, studies, cache)
    lungs = torch.full_like(seen.lungs, -9.0)
    quarter = lungs.shape[-1] // 4  # a patch
    lungs[:4, 0, quarter:, :quarter] = lungs[:4, 1, quarter:, -quarter:] = 9
    drawn = calibrate.see_drawn(model, Seen(**{**vars(seen), "lungs": lungs}), studies, cache)
    assert set(drawn) == {"", "Lung Lesion", "Lung Opacity", "Pleural Effusion", "Cardiomegaly"}
    assert {len(some.logits) for some in drawn.values()} == {2}  # films 0 and 2; 4 shows no lungs, the others are ill
    torch.testing.assert_close(drawn[""].logits, seen.logits[[0, 2]], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(drawn["Pleural Effusion"].logits, drawn[""].logits, atol=1e-3)
