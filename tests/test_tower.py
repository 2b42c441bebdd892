"""The tower learns what is known of a film, where it is known, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emrrg_core.config import QueryConfig, Stem, VisionConfig
from emrrg_core.data.studies import FilmCache, Study, read_studies
from emrrg_core.errors import CheckpointError, ConfigError
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.vision_mamba import VisionMamba
from emrrg_core.text.labeler import LABELS, NO_FINDING
from tests import tiny
from tests.phantom import make_phantom
from train import tower
from train.targets import TAUGHT, Example, Truth
from train.tower import Eye, Films, Lessons, Sampler, add_nothing_yet, check, hit, load_stem, loss_of_seen

SIZE, GRID, CELLS = 64, 4, 16
VISION = VisionConfig(image_size=SIZE, d_model=64, depth=1, d_state=4, drop_path=0.0, stem=Stem.CONVOLUTION)
QUERIES = QueryConfig(depth=1, heads=2, stem=True)
NOWHERE = np.zeros((SIZE, SIZE), np.float32)
ONE = NOWHERE.copy()
ONE[16:32, 32:48] = 1  # exactly the patch in row 1, column 2
AT = 1 * GRID + 2
OPACITY, PNEUMONIA = LABELS.index("Lung Opacity"), LABELS.index("Pneumonia")


def known(labels: dict[str, float] | None = None, **more) -> Example:
    """An example of which only this is known."""
    given = {"lungs": None, "places": {}, "boxes": None, "zones": None, "distilled": {}, "taught": None} | more
    return Example(NOWHERE, labels or {}, **given)


def reading(n: int = 1, seed: int = 0) -> Seen:
    """What some tower saw of n films, whose parts can be asked for their gradients."""
    draw = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        made = torch.randn(n, *shape, generator=draw).requires_grad_()
        made.grad = torch.zeros_like(made)
        return made

    evidence = some(len(LABELS), GRID**2)
    share = torch.full((n, len(LABELS), GRID**2), 1 / GRID**2)
    return Seen(
        torch.zeros(n, 0),
        some(len(LABELS)),
        evidence,
        share,
        torch.zeros(len(LABELS)),
        torch.zeros(n, 0),
        some(2, CELLS, CELLS),
    )


def learned(examples: list[Example], **lessons: float) -> tuple[Seen, dict[str, float]]:
    """What the loss of these examples asks of logits, evidence and lungs, as gradients; and its numbers."""
    seen = reading(len(examples))
    total, numbers = loss_of_seen(seen, examples, Lessons(**lessons))
    total.backward()
    return seen, numbers


# --------------------------------------------------------------------------------------------------------- what is learned


def test_what_is_unknown_leaves_no_gradient():
    seen, numbers = learned([known({"Edema": 1}), known({NO_FINDING: 0}, places={"Pleural Effusion": NOWHERE})])
    moved = [[LABELS[i] for i in row.nonzero().flatten()] for row in seen.logits.grad]
    assert moved == [["Edema"], [NO_FINDING]]
    assert seen.logits.grad[0, LABELS.index("Edema")] < 0 < seen.logits.grad[1, LABELS.index(NO_FINDING)]
    placed = [[LABELS[i] for i in row.abs().sum(1).nonzero().flatten()] for row in seen.evidence.grad]
    assert placed == [[], ["Pleural Effusion"]]
    assert (seen.evidence.grad[1, LABELS.index("Pleural Effusion")] > 0).all()  # nothing anywhere
    assert not seen.lungs.grad.any()
    assert all(np.isnan(numbers[name]) for name in ("lungs", "boxed", "zones", "taught", "present"))


def test_a_film_of_which_nothing_is_known_asks_for_nothing():
    seen, _ = learned([known()])
    for part in (seen.logits, seen.evidence, seen.lungs):
        assert not part.grad.any()


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_a_soft_label_draws_a_logit_to_its_probability(probability):
    seen = reading()
    with torch.no_grad():
        seen.logits.zero_()
    loss_of_seen(seen, [known({"Lung Opacity": probability})], Lessons())[0].backward()
    assert seen.logits.grad[0, OPACITY].item() == pytest.approx(0.5 - probability, abs=1e-6)


def test_a_normal_film_counts_four_times_and_a_rare_finding_that_is_there_three_times():
    pulls = {}
    for name, value in ((NO_FINDING, 1.0), ("Lung Opacity", 1.0), ("Edema", 1.0), ("Edema", 0.0)):
        seen = reading()
        with torch.no_grad():
            seen.logits.zero_()
        loss_of_seen(seen, [known({name: value, "Atelectasis": 0.0})], Lessons())[0].backward()
        pulls[name, value] = (
            (seen.logits.grad[0, LABELS.index(name)] / seen.logits.grad[0, LABELS.index("Atelectasis")]).abs().item()
        )
    assert pulls == {
        (NO_FINDING, 1.0): pytest.approx(4),
        ("Lung Opacity", 1.0): pytest.approx(1),
        ("Edema", 1.0): pytest.approx(3),
        ("Edema", 0.0): pytest.approx(1),
    }


def test_a_finding_of_known_place_is_raised_there_and_lowered_elsewhere():
    seen, _ = learned([known(places={"Lung Lesion": ONE})])
    grad = seen.evidence.grad[0, LABELS.index("Lung Lesion")]
    assert [i for i in range(GRID**2) if grad[i] < 0] == [AT]
    assert (grad != 0).all()
    assert not seen.evidence.grad[0].sum(1)[[i for i, name in enumerate(LABELS) if name != "Lung Lesion"]].any()


def test_a_finding_smaller_than_a_patch_is_still_in_one():
    small = NOWHERE.copy()
    small[20:25, 36:41] = 1
    seen, _ = learned([known(places={"Lung Lesion": small})])
    assert (seen.evidence.grad[0, LABELS.index("Lung Lesion")] < 0).nonzero().flatten().tolist() == [AT]


def test_a_rare_finding_of_known_place_is_not_drowned_by_films_without_one():
    pulls = []
    for rest in ({}, {"Lung Lesion": NOWHERE, "Pleural Effusion": NOWHERE}):
        seen, _ = learned([known(places={"Lung Lesion": ONE})] + [known(places=rest)] * 7)
        pulls.append(seen.evidence.grad[0, LABELS.index("Lung Lesion"), AT].item())
    assert pulls[1] == pytest.approx(pulls[0], rel=0.01)


def test_an_opacity_is_somewhere_in_a_radiologists_box_and_nowhere_outside_it():
    box = NOWHERE.copy()
    box[0:32, 0:32] = 1  # the patient's right, above: four patches
    inside = {0, 1, GRID, GRID + 1}
    seen, _ = learned([known(boxes=box, places={"Lung Opacity": None})])
    for label in (OPACITY, PNEUMONIA):
        grad, evidence = seen.evidence.grad[0, label], seen.evidence[0, label]
        raised = set((grad < 0).nonzero().flatten().tolist())
        assert raised == set(sorted(inside, key=lambda i: -evidence[i].item())[:2])  # a box is wider than what it holds
        assert {i for i in range(GRID**2) if grad[i] > 0} == set(range(GRID**2)) - inside


def test_zones_raise_the_strongest_patch_of_a_zone_that_shows_an_opacity_and_lower_it_where_none_is():
    zones = np.full((2, 3), np.nan)
    zones[0, 0], zones[1, 2] = (
        1,
        0,
    )  # the patient's right, above; the patient's left, below; of the rest readers disagree
    seen = reading()
    with torch.no_grad():  # lungs in all rows, the right one in the left half
        seen.lungs.fill_(-9)[0, 0, :, : CELLS // 2] = 9
        seen.lungs[0, 1, :, CELLS // 2 :] = 9
    loss_of_seen(seen, [known(zones=zones)], Lessons())[0].backward()
    grad = seen.evidence.grad[0, OPACITY].view(GRID, GRID)
    (up,), (down,) = (grad < 0).nonzero().tolist(), (grad > 0).nonzero().tolist()
    assert up[0] in (0, 1)
    assert up[1] < GRID // 2
    assert down[0] == GRID - 1
    assert down[1] >= GRID // 2
    assert not seen.evidence.grad[0, [i for i in range(len(LABELS)) if i != OPACITY]].any()
    assert not seen.lungs.grad.any()  # where lungs are is not learned of opacities


def test_outlined_lungs_teach_their_side():
    lungs = np.zeros((2, SIZE, SIZE), np.float32)
    lungs[0, :, : SIZE // 4], lungs[1, :, -SIZE // 4 :] = 1, 1
    seen, _ = learned([known(lungs=lungs)])
    raised = seen.lungs.grad[0] < 0
    assert raised[0, :, : CELLS // 4].all()
    assert raised[1, :, -CELLS // 4 :].all()
    assert raised.sum() == 2 * CELLS * CELLS // 4
    assert not seen.evidence.grad[0].any()


def test_the_teacher_is_heard_where_nobody_knows():
    taught = np.zeros((len(TAUGHT), GRID, GRID), np.float32)
    taught[:, 1, 2] = 1
    told = known({"Lung Opacity": 0.0}, distilled={NO_FINDING: 0.9}, taught=taught)
    seen, _ = learned([told], distil=1.0)
    with_grad = {LABELS[i] for i in seen.logits.grad[0].nonzero().flatten()}
    assert with_grad == {"Lung Opacity", NO_FINDING}
    placed = {LABELS[i] for i in seen.evidence.grad[0].abs().sum(1).nonzero().flatten()}
    assert placed == {"Lung Lesion", "Pleural Effusion"}  # of the opacity a label is known
    for name in placed:
        assert (seen.evidence.grad[0, LABELS.index(name)] < 0).nonzero().flatten().tolist() == [AT]
    coarse = seen.lungs.grad[0].view(2, GRID, CELLS // GRID, GRID, CELLS // GRID).sum((2, 4)) < 0
    assert coarse.nonzero().tolist() == [[0, 1, 2], [1, 1, 2]]
    silent, _ = learned([told], distil=0.0)
    assert not silent.evidence.grad.any()


def test_a_perfect_reading_costs_nearly_nothing():
    seen = reading()
    lungs = np.zeros((2, SIZE, SIZE), np.float32)
    lungs[0, :, : SIZE // 4], lungs[1, :, -SIZE // 4 :] = 1, 1
    with torch.no_grad():
        seen.logits.fill_(-12)[0, LABELS.index("Lung Lesion")] = 12
        seen.evidence.fill_(-12)[0, LABELS.index("Lung Lesion"), AT] = 12
        seen.lungs.fill_(-12)[0, 0, :, : CELLS // 4] = 12
        seen.lungs[0, 1, :, -CELLS // 4 :] = 12
    labels = dict.fromkeys(LABELS, 0.0) | {"Lung Lesion": 1.0}
    total, _ = loss_of_seen(
        seen, [known(labels, places={"Lung Lesion": ONE, "Lung Opacity": NOWHERE}, lungs=lungs)], Lessons()
    )
    assert total.item() < 1e-3


def test_parts_of_a_step_add_up_to_the_step():
    """Each mean is over what is known in the part, so each is multiplied by that part's share of it."""
    rng = np.random.default_rng(0)
    zones = np.array([[0.0, 1, 0], [np.nan, 0, 1]])
    kinds = [
        known({"Edema": 1.0, NO_FINDING: 0.0}),
        known({"Pneumonia": 0.5}, places={"Lung Lesion": ONE}, zones=zones),
        known({}, boxes=ONE, lungs=np.stack([ONE, NOWHERE])),
        known({NO_FINDING: 1.0}, distilled={NO_FINDING: 0.9}, taught=rng.random((5, GRID, GRID)).astype(np.float32)),
    ]
    examples = [kinds[i] for i in (0, 1, 1, 2, 3, 0, 3, 3)]
    seen = reading(len(examples))
    whole, _ = loss_of_seen(seen, examples, Lessons())
    asked: list[list[float]] = []
    for part in (slice(0, 3), slice(3, 8)):
        weights: list[float] = []
        loss_of_seen(seen.select(part), examples[part], Lessons(), lambda w, weights=weights: weights.append(w) or 0.0)
        asked.append(weights)
    assert len(asked[0]) == len(asked[1])  # every part asks for the same shares, also where it has nothing to add
    totals = [sum(pair) for pair in zip(*asked, strict=True)]
    added = 0.0
    for part, weights in zip((slice(0, 3), slice(3, 8)), asked, strict=True):
        shares = iter([w / total if total else 0.0 for w, total in zip(weights, totals, strict=True)])
        added += loss_of_seen(seen.select(part), examples[part], Lessons(), lambda _, shares=shares: next(shares))[
            0
        ].item()
    assert added == pytest.approx(whole.item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------- the eye


@pytest.fixture
def eye() -> Eye:
    torch.manual_seed(0)
    return Eye(VISION, QUERIES)


@pytest.fixture
def everything() -> list[Example]:
    """Examples of which, together, everything is known."""
    lungs = np.zeros((2, SIZE, SIZE), np.float32)
    lungs[0, :, : SIZE // 4], lungs[1, :, -SIZE // 4 :] = 1, 1
    labels = {name: float(i % 2) for i, name in enumerate(LABELS)}
    return [known(labels, lungs=lungs), known(labels, places={name: ONE for name in LABELS if name != NO_FINDING})]


def test_every_parameter_learns(eye, everything):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    loss_of_seen(eye.train()(images), everything, Lessons())[0].backward()
    still = {name for name, p in eye.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()


def test_it_begins_as_the_stem_that_it_stands_on_and_every_layer_may_learn_to_speak(eye, everything):
    add_nothing_yet(eye.visual_encoder)
    encoder = eye.visual_encoder.eval()
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stem, tokens = encoder.patch_embed(images), encoder(images)
        middle = VISION.class_position
        places = torch.cat([encoder.pos_embed[:, :middle], encoder.pos_embed[:, middle + 1 :]], dim=1)
        patches = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1)
        torch.testing.assert_close(patches, encoder.norm_f(stem + places))
    loss_of_seen(eye.train()(images), everything, Lessons())[0].backward()
    for block in encoder.blocks():
        assert block.mixer.out_proj.weight.grad.any()
        assert block.mlp.w3.weight.grad.any()


def test_in_training_too_a_logit_is_what_its_patches_give(eye):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        eye.disease.stem_mean.normal_()
        eye.disease.stem_max.normal_()
        learning = eye.train()(images)
    torch.testing.assert_close(learning.attribution.sum(-1) + learning.bias, learning.logits, atol=1e-4, rtol=1e-4)


def test_a_stem_of_another_size_is_refused(eye, tmp_path):
    with pytest.raises(CheckpointError, match="no stem for this tower"):
        load_stem(eye, tmp_path)
    wide = VisionMamba(replace(VISION, d_model=128)).patch_embed
    save_file({f"stem.{name}": value for name, value in wide.state_dict().items()}, tmp_path / "reader.safetensors")
    with pytest.raises(CheckpointError, match="no stem for this tower"):
        load_stem(eye, tmp_path)


# ---------------------------------------------------------------------------------------------------------- what is shown


def studies(source: str, *labels: dict[str, int]) -> list[Study]:
    return [Study(f"{source} {i}", source, "train", f"{i}", (), known, None, "", "") for i, known in enumerate(labels)]


def test_films_are_drawn_by_source_and_class_whatever_their_number():
    normal, ill = {NO_FINDING: 1}, {"Lung Opacity": 1}
    some = studies("many", *[normal] * 5, *[ill] * 400, *[{}] * 50) + studies("few", *[normal] * 10, *[ill] * 10)
    some += studies("one class", *[ill] * 30) + studies("unlabelled", *[{}] * 20)
    shares = {"many": 0.5, "few": 0.2, "one class": 0.2, "unlabelled": 0.1, "absent": 0.5}
    sampler = Sampler(some, shares, seed=1)
    drawn = [s for step in range(100) for s in sampler.step(step, 40)[0]]
    count = {source: sum(s.source == source for s in drawn) / len(drawn) for source in shares}
    assert count == pytest.approx({"many": 0.5, "few": 0.2, "one class": 0.2, "unlabelled": 0.1, "absent": 0}, abs=0.03)
    assert all(s.abnormal is not None for s in drawn if s.source == "many")
    for source in ("many", "few"):
        assert np.mean([bool(s.abnormal) for s in drawn if s.source == source]) == pytest.approx(0.5, abs=0.06)


def test_a_rare_finding_comes_as_often_as_a_common_one():
    some = studies(
        "ours", *[{NO_FINDING: 1}] * 50, *[{"Lung Opacity": 1}] * 300, *[{"Lung Lesion": 1}] * 5, *[{"Fracture": 1}] * 4
    )
    sampler = Sampler(some, {"ours": 1.0}, seed=0)
    drawn = [s for step in range(200) for s in sampler.step(step, 20)[0] if s.abnormal]
    share = {
        name: np.mean([s.labels.get(name) == 1 for s in drawn]) for name in ("Lung Lesion", "Lung Opacity", "Fracture")
    }
    assert share["Lung Lesion"] == pytest.approx(0.25 + 0.5 * 5 / 309, abs=0.04)
    assert share["Fracture"] == pytest.approx(
        0.5 * 4 / 309, abs=0.01
    )  # too few to be drawn by: they would be learned by heart


def test_the_films_of_a_step_depend_on_seed_and_step_alone():
    some = studies("ours", *[{NO_FINDING: 1}] * 50, *[{"Edema": 1}] * 50)
    one, same = (Sampler(some, {"ours": 1.0}, seed=1) for _ in range(2))
    one.step(0, 8)
    (films, rng), (again, other_rng) = one.step(1, 8), same.step(1, 8)
    assert films == again
    assert rng.random() == other_rng.random()
    assert films != one.step(2, 8)[0]
    assert films != Sampler(some, {"ours": 1.0}, seed=2).step(1, 8)[0]
    with pytest.raises(ConfigError, match="no training film"):
        Sampler(some, {"theirs": 1.0}, seed=1)


class Said:
    """A teacher that says the same of every film."""

    def __init__(self, places: np.ndarray) -> None:
        self._places = places

    def __getitem__(self, study: Study) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(LABELS)), self._places


@pytest.fixture
def shown(tmp_path) -> Callable[..., tuple[Films, list[Study]]]:
    """Three films, normal but for the last, the first with a lung mask: `shown(simulate=1.0, outlines=("ours",))`."""
    rows = [
        (
            make_phantom(i, height=128, width=128, lesion=None),
            {"split": "train", "labels": {NO_FINDING: int(i < 2)}} | ({} if i == 0 else {"lung_mask": None}),
        )
        for i in range(3)
    ]
    found = read_studies(tiny.film_set(tmp_path, rows))
    places = np.full((GRID, GRID, len(TAUGHT)), -8.0)
    places[1:, 0, 0] = places[1:, -1, 1] = 8

    def made(*, teacher: bool = True, **lessons) -> tuple[Films, list[Study]]:
        truths = {s.id: Truth({name: float(v) for name, v in s.labels.items()}) for s in found}
        said = Said(places.reshape(GRID**2, -1)) if teacher else None
        return Films(found, FilmCache(found, tmp_path, SIZE), truths, said, Lessons(**lessons)), found

    return made


def test_findings_are_drawn_in_outlined_lungs_and_in_those_that_the_teacher_saw(shown):
    films, (outlined, seen, ill) = shown(simulate=1.0)
    rng = np.random.default_rng(0)
    assert films.example(outlined, rng).drawn
    assert films.example(seen, rng).drawn
    assert not films.example(ill, rng).drawn
    assert not films.example(outlined, rng, simulate=0.0).drawn
    assert not shown(simulate=1.0, teacher=False)[0].example(seen, rng).drawn


def test_borders_are_taught_by_outlines_that_leave_the_heart_out(shown):
    rng = np.random.default_rng(0)
    films, (outlined, seen, _) = shown(outlines=("ours",))
    assert films.example(outlined, rng).lungs.shape == (2, SIZE, SIZE)
    assert films.example(seen, rng).lungs is None
    assert shown(outlines=("theirs",))[0].example(outlined, rng).lungs is None


# ------------------------------------------------------------------------------------------------------ what is measured


def test_a_map_points_where_the_middle_of_its_strongest_patch_lies():
    weights = np.zeros(GRID**2)
    weights[AT] = 1  # its middle is at (0.625, 0.375)
    assert hit(weights, [(0.0, 0.0, 0.1, 0.1), (0.6, 0.3, 0.1, 0.1)])
    assert not hit(weights, [(0.3, 0.6, 0.1, 0.1)])  # rows are not columns
    assert not hit(weights, None)


def test_the_check_judges_sources_findings_readings_and_boxes(tmp_path):
    kinds = ("opacity", None, "effusion")
    rows = [(make_phantom(i, height=128, width=128, lesion=kinds[i % 3]), {"split": "train"}) for i in range(9)]
    found = read_studies(tiny.film_set(tmp_path, rows))
    for s in found:
        s.labels["Pleural Effusion"] = int(s.labels.get("Pleural Effusion", 0))
    boxes = ((0.5, 0.25, 0.25, 0.25),)
    truths = {
        s.id: (Truth({}, rsna="Normal"), Truth({}, boxes=boxes, rsna="Lung Opacity"))[i % 3 == 0]
        for i, s in enumerate(found)
    }

    class Planted(torch.nn.Module):
        """Says of the nth film that asks: normal, opaque or fluid, and always at one patch."""

        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> Seen:
            n = len(images)
            kind = torch.arange(n) % 3
            logits = torch.zeros(n, len(LABELS))
            logits[:, LABELS.index(NO_FINDING)] = (kind == 1).float()
            logits[:, OPACITY], logits[:, LABELS.index("Pleural Effusion")] = (kind == 0).float(), -(kind == 2).float()
            evidence = torch.zeros(n, len(LABELS), GRID**2)
            evidence[:, OPACITY, AT] = 1
            return replace(reading(n), logits=logits, evidence=evidence)

    result = check(Planted(), found, truths, FilmCache(found, tmp_path, SIZE))
    assert result == {
        "ours": 1.0,
        "Pleural Effusion, ours": 0.0,  # the wrong way round
        "radiologists' opacity": 1.0,
        "peak in a box": 1.0,
    }


# ------------------------------------------------------------------------------------------------------------- program

RECIPE = """
[tower]
steps = 2
batch = 4
warmup = 1
seed = 0
save_every = 2
learning_rates = { visual_encoder = 1e-3, disease = 1e-3, lungs = 1e-3 }
simulate = 0.5
sources = { one = 0.5, two = 0.5 }
[model]
vision = { image_size = 64, d_model = 64, depth = 1, d_state = 4, drop_path = 0.0, stem = "convolution" }
queries = { depth = 1, heads = 2 }
"""


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """Of a film set of two hospitals and a stem that nobody taught."""
    rows = [
        (
            make_phantom(i, height=128, width=128, lesion=(None, "opacity")[i % 2]),
            {"split": ("train", "train", "val")[i % 3], "source": ("one", "two")[i // 15]},
        )
        for i in range(30)
    ]
    films = tiny.film_set(tmp_path, rows)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    torch.manual_seed(0)
    stem = VisionMamba(VISION).patch_embed
    save_file({f"stem.{n}": v for n, v in stem.state_dict().items()}, tmp_path / "reader.safetensors")
    paths = {"recipe": "recipe.toml", "start": ".", "out": "out", "cache": "cache"}
    named = [word for name, path in paths.items() for word in (f"--{name}", f"{tmp_path / path}")]
    return ["--films", f"{films}", "--threads", "1", *named]


def test_a_hospital_that_is_left_out_is_never_shown(arguments, tmp_path, monkeypatch):
    shown: list[Study] = []
    usual = Sampler.step

    def step(self, step: int, size: int) -> tuple[list[Study], np.random.Generator]:
        chosen, rng = usual(self, step, size)
        shown.extend(chosen)
        return chosen, rng

    monkeypatch.setattr(Sampler, "step", step)
    monkeypatch.setattr(tower, "near_copies", lambda *_: set())  # phantoms are more alike than people
    tower.main([*arguments, "--leave-out", "two"])
    assert {s.source for s in shown} == {"one"}
    assert {s.split for s in shown} == {"train"}
    shown.clear()
    other = [f"{tmp_path}/both" if word == f"{tmp_path}/out" else word for word in arguments]
    tower.main(other)
    assert {s.source for s in shown} == {"one", "two"}


def test_a_film_that_copies_one_that_judges_is_not_learned(arguments, monkeypatch, capsys):
    given: list[set[str]] = []

    def copies(films: list[Study], held: list[Study], cache: FilmCache) -> set[str]:
        given.append({s.split for s in held})
        assert not {s.id for s in films} & {s.id for s in held}
        return {films[0].id, films[1].id}

    monkeypatch.setattr(tower, "near_copies", copies)
    tower.main(arguments)
    assert given == [{"train", "val"}]  # development films, and those that scores are reported of
    assert "2 left out as near copies" in capsys.readouterr().out


def test_its_folder_holds_the_tower_and_its_readers_and_nothing_else(arguments, tmp_path):
    tower.main(arguments)
    eye = Eye(VISION, QueryConfig(depth=1, heads=2))
    eye.load_state_dict(load_file(tmp_path / "out" / "eye.safetensors"))
    stem = load_file(Path(tmp_path) / "reader.safetensors")
    moved = [not torch.equal(stem[f"stem.{n}"], v) for n, v in eye.visual_encoder.patch_embed.state_dict().items()]
    assert any(moved)
