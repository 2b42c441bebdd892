"""The warm-up: what is known of a film teaches, what is unknown leaves no trace, and a simulated finding is told with its place."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from emrrg_core.config import Stem, VisionConfig
from emrrg_core.data import NO_FINDING, SIGHTS, FilmCache, Study
from emrrg_core.findings import LABELS
from emrrg_core.signs import PLACES, Signs
from emrrg_core.simulate import LABEL_OF, Sign, split_lungs
from emrrg_core.vision import VisionMamba
from tests.phantom import make_phantom
from train.warmup import (
    BalancedSampler,
    Example,
    Reader,
    add_nothing_yet,
    area_under_curve,
    balanced_accuracy,
    check,
    example,
    loss,
    seen_lungs,
    without_class,
)

SIZE, GRID = 64, 4
VISION = VisionConfig(
    image_size=SIZE, patch_size=16, d_model=64, depth=1, d_state=4, drop_path=0.0, stem=Stem.CONVOLUTION
)
NOWHERE = np.zeros((SIZE, SIZE), np.float32)


def _studies(source: str, normal: int, abnormal: int, unknown: int = 0) -> list[Study]:
    known = [{"No Finding": 1}] * normal + [{"Edema": 1}] * abnormal + [{"Edema": 0}] * unknown
    return [
        Study(
            id=f"{source} {i}",
            source=source,
            split="train",
            patient=str(i),
            files=(),
            labels=labels,
            view=None,
            findings="",
            impression="",
        )
        for i, labels in enumerate(known)
    ]


def test_films_are_drawn_by_source_and_class_whatever_their_number():
    studies = _studies("many", 5, 400, unknown=50) + _studies("few", 10, 10) + _studies("one class", 0, 30)
    sampler = BalancedSampler(studies, {"many": 0.6, "few": 0.2, "one class": 0.2, "absent": 0.5}, seed=1)
    drawn = [s for step in range(100) for s in sampler.batch(step, 40)[0]]
    assert all(s.abnormal is not None for s in drawn)
    count = {source: sum(s.source == source for s in drawn) / len(drawn) for source in ("many", "few", "one class")}
    assert count == pytest.approx({"many": 0.6, "few": 0.2, "one class": 0.2}, abs=0.03)
    for source in ("many", "few"):
        assert np.mean([s.abnormal for s in drawn if s.source == source]) == pytest.approx(0.5, abs=0.06)


def test_the_films_of_a_step_depend_on_seed_and_step_alone():
    studies = _studies("ours", 50, 50)
    one, same = (BalancedSampler(studies, {"ours": 1.0}, seed=1) for _ in range(2))
    one.batch(0, 8)
    (films, rng), (again, other_rng) = one.batch(1, 8), same.batch(1, 8)
    assert films == again
    assert rng.random() == other_rng.random()
    assert films != one.batch(2, 8)[0]
    assert films != BalancedSampler(studies, {"ours": 1.0}, seed=2).batch(1, 8)[0]


# ------------------------------------------------------------------------------------------------------------- scores


def test_balanced_accuracy_is_a_half_for_whoever_always_says_the_same():
    truth = np.array([True] * 9 + [False])
    assert balanced_accuracy(truth, np.ones(10, bool)) == 0.5
    assert balanced_accuracy(truth, truth) == 1
    assert balanced_accuracy(truth, ~truth) == 0


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    truth = np.array([True, False, True, False, False])
    # pairs: 3 > 2, 3 > 1, 3 > 0 and 1 > 0 are in order, 1 < 2 is not, 1 = 1 is half
    assert area_under_curve(truth, np.array([3.0, 2, 1, 1, 0])) == pytest.approx(4.5 / 6)
    assert area_under_curve(truth, np.array([3.0, 1, 2, 1, 0])) == 1
    assert area_under_curve(truth, -np.array([3.0, 1, 2, 1, 0])) == 0
    for order in (truth, truth[::-1]):
        assert area_under_curve(order, np.ones(5)) == 0.5


# ----------------------------------------------------------------------------------------------------------- examples


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, height=224, width=224, lesion=None)


@pytest.fixture(scope="module")
def film(phantom) -> np.ndarray:
    return np.rint(phantom.pixels * 255).astype(np.uint8)


def one(**values: int) -> Study:
    """A study with these labels, underscores for spaces."""
    return replace(_studies("ours", 1, 0)[0], labels={name.replace("_", " "): v for name, v in values.items()})


def test_a_normal_film_with_lungs_gets_findings_of_every_kind_with_label_and_place(phantom, film):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        made, drawn = example(film, one(No_Finding=1), phantom.lungs, 1.0, rng, true_mask=True)
        seen.add(drawn.sign)
        assert made.film.shape == film.shape
        assert made.labels[LABEL_OF[drawn.sign]] == 1
        assert NO_FINDING not in made.labels  # whether it can be seen is not known
        assert not set(SIGHTS) & made.labels.keys() - {LABEL_OF[drawn.sign]}  # a nodule is an opacity to some
        assert made.lungs.shape == (2, 224, 224)
        right, left = (np.nonzero(lung > 0.5)[1].mean() for lung in made.lungs)
        assert right < left
        # the place moves with the film
        own = {Sign.NODULE: 2, Sign.OPACITY: 3, Sign.EFFUSION: 4}.get(drawn.sign)
        assert made.drawn.max() > 0.3
        for channel in (2, 3, 4):
            assert bool(made.signs[channel].any()) is (channel == own)
        if own:
            np.testing.assert_array_equal(made.signs[own], made.drawn)
            lung = made.lungs[0 if drawn.side == "right" else 1]
            outside = made.drawn * (made.lungs[1 if drawn.side == "right" else 0] > 0.5)
            assert (made.drawn * (lung > 0.5)).sum() > 4 * outside.sum()
    assert seen == set(Sign)


def test_only_normal_films_with_two_lungs_get_a_finding(phantom, film):
    rng = np.random.default_rng(0)
    right, _ = split_lungs(phantom.lungs)
    for study, mask in ((one(Edema=1), phantom.lungs), (one(No_Finding=1), None), (one(No_Finding=1), right)):
        made, drawn = example(film, study, mask, 1.0, rng, true_mask=True)
        assert drawn is None
        assert made.drawn is None
        assert made.labels == study.labels
    for share in (0.0, 0.3):
        count = sum(
            example(film, one(No_Finding=1), phantom.lungs, share, rng, true_mask=True)[1] is not None
            for _ in range(60)
        )
        assert abs(count / 60 - share) < 0.17


def test_lungs_that_were_only_seen_are_drawn_in_but_not_taught(phantom, film):
    made, drawn = example(film, one(No_Finding=1), phantom.lungs, 1.0, np.random.default_rng(0), true_mask=False)
    assert drawn is not None
    assert made.lungs is None


@pytest.mark.parametrize(
    ("known", "signs"),
    [
        ({"No_Finding": 1}, {2: 0, 3: 0, 4: 0}),
        ({"Lung_Lesion": 1}, {2: None}),
        ({"Pneumonia": 1}, {3: None}),
        ({"Pneumonia": 0}, {}),  # another opacity may still be there
        ({"Pneumonia": 0, "Consolidation": 0, "Lung_Opacity": 0, "Pleural_Effusion": 0}, {3: 0, 4: 0}),
        ({"Edema": 1}, {}),
    ],
)
def test_a_sign_is_somewhere_nowhere_or_unknown_as_the_labels_say(film, known, signs):
    made, _ = example(film, one(**known), None, 1.0, np.random.default_rng(0), true_mask=False)
    assert {channel: where if where is None else where.max() for channel, where in made.signs.items()} == signs


# ---------------------------------------------------------------------------------------------------------------- loss


def logits(n: int = 1) -> Signs:
    generator = torch.Generator().manual_seed(0)
    return Signs(
        torch.randn(n, len(LABELS), generator=generator).requires_grad_(),
        torch.randn(n, GRID**2, len(PLACES), generator=generator).requires_grad_(),
        torch.zeros(n, 2),
    )


def taught(labels: dict, *, lungs: np.ndarray | None = None, signs: dict | None = None) -> Example:
    return Example(NOWHERE, labels, lungs, None, signs or {})


def test_what_is_unknown_leaves_no_gradient():
    signs = logits(2)
    loss(signs, [taught({"Edema": 1}), taught({NO_FINDING: 0}, signs={3: NOWHERE})])[0].backward()
    moved = [[LABELS[i] for i in row.nonzero().flatten()] for row in signs.labels.grad]
    assert moved == [["Edema"], [NO_FINDING]]
    assert signs.labels.grad[0, LABELS.index("Edema")] < 0
    assert signs.labels.grad[1, LABELS.index(NO_FINDING)] > 0
    channels = signs.places.grad.abs().sum(1) > 0  # (films, PLACES)
    assert channels.tolist() == [[False] * 5, [False, False, False, True, False]]
    assert (signs.places.grad[1, :, 3] > 0).all()  # nothing anywhere


def test_known_lungs_teach_their_side():
    lungs = np.zeros((2, SIZE, SIZE), np.float32)
    lungs[0, :, : SIZE // 4], lungs[1, :, -SIZE // 4 :] = 1, 1
    signs = logits()
    _, numbers = loss(signs, [taught({NO_FINDING: 1}, lungs=lungs)])
    grad = torch.autograd.grad(loss(signs, [taught({NO_FINDING: 1}, lungs=lungs)])[0], signs.places)[0]
    right, left = grad[0, :, 0].view(GRID, GRID), grad[0, :, 1].view(GRID, GRID)
    assert (right[:, 0] < 0).all()
    assert (right[:, 1:] > 0).all()
    assert (left[:, -1] < 0).all()
    assert (left[:, :-1] > 0).all()
    assert numbers["lungs"] > 0


def test_a_sign_of_known_place_is_raised_there_and_lowered_elsewhere():
    mask = NOWHERE.copy()
    mask[16:32, 32:48] = 1  # exactly patch (1, 2)
    signs = logits()
    loss(signs, [taught({"Lung Lesion": 1}, signs={2: mask})])[0].backward()
    down = signs.places.grad[0, :, 2] > 0
    assert [i for i in range(GRID**2) if not down[i]] == [1 * GRID + 2]
    assert not signs.places.grad[0, :, [0, 1, 3, 4]].any()


def test_a_rare_sign_of_known_place_is_not_drowned_by_films_without_one():
    mask = NOWHERE.copy()
    mask[16:32, 32:48] = 1
    rare = [taught({"Lung Lesion": 1}, signs={2: mask})]
    pulls = []
    for others in ({}, {2: NOWHERE, 3: NOWHERE, 4: NOWHERE}):
        signs = logits(8)
        loss(signs, rare + [taught({NO_FINDING: 1}, signs=others)] * 7)[0].backward()
        pulls.append(signs.places.grad[0, GRID + 2, 2].item())
    assert pulls[1] == pytest.approx(pulls[0], rel=0.01)


def test_a_drawn_finding_counts_more_than_a_label_that_is_often_seen():
    grads = []
    for drawn in (None, NOWHERE):
        signs = logits()
        known = {NO_FINDING: 0, "Lung Lesion": 1}
        loss(signs, [replace(taught(known), drawn=drawn)])[0].backward()
        grads.append(signs.labels.grad[0])
    share = [g[LABELS.index("Lung Lesion")] / g[LABELS.index(NO_FINDING)] for g in grads]
    assert abs(share[1]) > 2 * abs(share[0])


def test_a_sign_of_unknown_place_raises_the_patches_that_show_it_most():
    signs = logits()
    loss(signs, [taught({"Pneumonia": 1}, signs={3: None})])[0].backward()
    grad = signs.places.grad[0, :, 3]
    raised = set(grad.nonzero().flatten().tolist())
    assert (grad <= 0).all()
    assert raised == set(signs.places[0, :, 3].topk(len(raised)).indices.tolist())
    assert 1 <= len(raised) < GRID**2


def test_a_perfect_reading_costs_nearly_nothing():
    mask = NOWHERE.copy()
    mask[16:32, 32:48] = 1
    signs = logits()
    with torch.no_grad():
        signs.labels.fill_(-12)[0, LABELS.index("Lung Lesion")] = 12
        signs.places.fill_(-12)[0, GRID + 2, 2] = 12
    known = dict.fromkeys(LABELS, 0) | {"Lung Lesion": 1}
    total, _ = loss(signs, [taught(known, signs={2: mask, 3: NOWHERE})])
    assert total.item() < 1e-3


# -------------------------------------------------------------------------------------------------------------- reader


def test_the_first_stage_trains_the_stem_and_its_readers_alone():
    reader = Reader(VisionMamba(VISION), stem_only=True)
    trained = {name for name, p in reader.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained} == {"tower", "stem_signs"}
    assert all(n.startswith(("tower.patch_embed.", "stem_signs.labels.", "stem_signs.places.")) for n in trained)
    assert len(reader(torch.randn(2, 3, SIZE, SIZE))) == 1


def test_a_tower_begins_as_the_stem_that_it_stands_on():
    torch.manual_seed(0)
    tower = VisionMamba(VISION).eval()
    add_nothing_yet(tower)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        stem, tokens = tower.patch_embed(images), without_class(tower, tower(images))
        middle = tower.config.class_position
        places = torch.cat([tower.pos_embed[:, :middle], tower.pos_embed[:, middle + 1 :]], dim=1)
        torch.testing.assert_close(tokens, tower.norm_f(stem + places))
    without_class(tower, tower(images)).pow(2).sum().backward()
    silent = [layer.mixer.out_proj.weight for layer in tower.layers] + [layer.mlp.w3.weight for layer in tower.layers]
    assert all(weight.grad.any() for weight in silent)  # and may learn


def test_the_second_stage_reads_the_stem_as_the_first_did_and_the_tower_last():
    torch.manual_seed(0)
    reader = Reader(VisionMamba(VISION), stem_only=False).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        early, last = reader(images)
        reader.stem_only = True
        (alone,) = reader(images)
        reader.stem_only = False
        again = reader(images)[0]
    torch.testing.assert_close(early.vector(), alone.vector())
    torch.testing.assert_close(early.vector(), again.vector())
    assert not torch.allclose(early.labels, last.labels)
    assert last.places.shape == (2, GRID**2, len(PLACES))
    assert {n for n, p in reader.named_parameters() if not p.requires_grad} == {
        f"{part}.appearance.{leaf}" for part in ("signs", "stem_signs") for leaf in ("weight", "bias")
    }


@pytest.fixture
def films(tmp_path) -> tuple[list[Study], FilmCache]:
    """Two normal and two abnormal phantoms of one source, and one film of a source with a single class."""
    studies = []
    for i, study in enumerate([*_studies("ours", 2, 2), *_studies("one class", 1, 0)]):
        make_phantom(i, height=128, width=128, lesion=None).save_png(tmp_path / f"{i}.png")
        studies.append(replace(study, files=(tmp_path / f"{i}.png",)))
    return studies, FilmCache(studies, tmp_path, SIZE)


def planted(reader: Reader, places) -> Reader:
    """A reader that says the same of every film. places: (g²,) logits of both lungs, on their sides."""

    def say(images: torch.Tensor) -> list[Signs]:
        n = len(images)
        grid = torch.tensor(places, dtype=torch.float32).view(GRID, GRID)
        right, left = grid.clone(), grid.clone()
        right[:, GRID // 2 :], left[:, : GRID // 2] = -9, -9
        both = torch.stack([right, left], -1).view(1, GRID**2, 2).expand(n, -1, -1)
        rest = torch.full((n, GRID**2, 3), -9.0)
        # normality: as bright as the film is, so that films differ
        labels = torch.zeros(n, len(LABELS))
        labels[:, LABELS.index(NO_FINDING)] = images.mean((1, 2, 3))
        return [Signs(labels, torch.cat([both, rest], -1), torch.zeros(n, 2))]

    reader.forward = say
    return reader


def test_lungs_count_as_seen_only_where_there_are_two(films):
    studies, cache = films
    columns = [[9.0, -9, -9, 9]] * GRID
    both = seen_lungs(planted(Reader(VisionMamba(VISION), stem_only=True), columns), studies, cache)
    assert both.keys() == {s.id for s in studies}
    mask = both[studies[0].id]
    assert (mask.shape, mask.dtype) == ((SIZE, SIZE), np.bool_)
    assert mask[:, : SIZE // 8].all()
    assert mask[:, -SIZE // 8 :].all()
    assert not mask[:, SIZE * 3 // 8 : SIZE * 5 // 8].any()
    for wrong in ([[9.0, -9, -9, -9]] * GRID, [[9.0] * GRID] * GRID, [[-9.0] * GRID] * GRID):
        assert seen_lungs(planted(Reader(VisionMamba(VISION), stem_only=True), wrong), studies, cache) == {}


def test_the_check_judges_sources_that_have_both_classes(films):
    studies, cache = films
    reader = planted(Reader(VisionMamba(VISION), stem_only=True), [[9.0, -9, -9, 9]] * GRID)
    result = check(reader, studies, cache)
    assert result.keys() == {"ours"}
    grey = [float(cache[s].mean()) for s in studies[:4]]  # two normal films, then two abnormal
    pairs = [grey[n] > grey[a] for n in (0, 1) for a in (2, 3)]
    assert result["ours"][0] == pytest.approx(np.mean(pairs), abs=1e-3)


def test_a_mirrored_film_teaches_no_side(film, phantom):
    known, plain, mirrored = one(No_Finding=1), [], []
    for mirror, made in ((0.0, plain), (1.0, mirrored)):
        rng = np.random.default_rng(5)
        made.append(example(film, known, phantom.lungs, 1.0, rng, true_mask=True, mirror=mirror)[0])
    as_it_is, exchanged = plain[0], mirrored[0]
    np.testing.assert_array_equal(exchanged.film, as_it_is.film[:, ::-1])
    np.testing.assert_array_equal(exchanged.drawn, as_it_is.drawn[:, ::-1])
    assert as_it_is.lungs is not None
    assert exchanged.lungs is None  # which lung is which is then unknown
    assert exchanged.labels == as_it_is.labels
    assert exchanged.signs.keys() == as_it_is.signs.keys()
    for channel, where in exchanged.signs.items():
        np.testing.assert_array_equal(where, as_it_is.signs[channel][:, ::-1])
    signs = Signs(torch.zeros(1, len(LABELS)), torch.zeros(1, GRID**2, len(PLACES)), torch.zeros(1, 2))
    assert torch.isfinite(loss(signs, [exchanged])[0])
