"""What the tower sees of each finding: the map of a finding is exactly what its logit is made of, by patch, by lung and by zone."""

from dataclasses import fields

import pytest
import torch

from emrrg_core.config import QueryConfig
from emrrg_core.model.disease_queries import VIEWS, WHOLE, DiseaseQueries, Seen
from emrrg_core.text.labeler import LABELS, NO_FINDING
from tests.rounding import additions, rounding

GRID, D = 4, 16
PATCHES, MIDDLE = GRID**2, GRID**2 // 2
OPACITY = LABELS.index("Lung Opacity")


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make():
    """Queries with random weights, nothing of them 0: `make(stem=True)`."""

    def made(*, stem: bool = False) -> DiseaseQueries:
        torch.manual_seed(3)
        queries = DiseaseQueries(D, QueryConfig(depth=1, heads=2, stem=stem)).eval().requires_grad_(False)
        for parameter in queries.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.5)
        return queries

    return made


def seen_of(*, evidence: torch.Tensor, lungs: torch.Tensor | None = None) -> Seen:
    """What was seen of b films by its evidence (b, f, g²): every patch counts as much as the others."""
    b, f, g2 = evidence.shape
    share = torch.full_like(evidence, 1 / g2)
    lungs = torch.zeros(b, 2, 4, 4) if lungs is None else lungs
    bias = torch.zeros(f)
    return Seen(torch.zeros(b, g2 + 1, D), evidence.mean(-1), evidence, share, bias, torch.zeros(b, f, D), lungs)


def weights_of(logits: torch.Tensor) -> torch.Tensor:
    """How much each film of one study counts for each label: (films, labels), by the definition."""
    signs = torch.tensor([-1.0 if label == NO_FINDING else 1.0 for label in LABELS])
    return torch.softmax(logits * signs / VIEWS, dim=0)


def assert_is_made_of_its_patches(seen: Seen, patches: int = PATCHES) -> None:
    found = seen.attribution.sum(-1) + seen.bias
    size = float(seen.attribution.abs().sum(-1).max() + seen.bias.abs().max())
    torch.testing.assert_close(found, seen.logits, rtol=0, atol=rounding(size, patches))


# -------------------------------------------------------------------------------------------- a map sums to its logit


@pytest.mark.parametrize("stem", [False, True])
def test_what_the_patches_give_to_a_finding_sums_with_the_bias_to_its_logit(build, open_gates, images, stem):
    model = open_gates(build(queries=True, stem=stem))
    with torch.no_grad():
        model.disease.bias.copy_(some(len(LABELS)))
        seen = model.see(images)
    assert seen.attribution.shape == (3, len(LABELS), PATCHES)
    assert seen.attribution.std(-1).min() > 1e-4
    assert (seen.stem is not None) == stem
    assert_is_made_of_its_patches(seen)


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize("alone", [True, False], ids=["films seen one by one", "a study seen as one"])
def test_a_studys_logit_is_that_of_its_views_by_how_surely_they_show_it_and_its_map_sums_to_it(
    build, open_gates, images, stem, alone
):
    model = open_gates(build(queries=True, stem=stem)).requires_grad_(False)
    films = model.see(images)
    study = films.study() if alone else model.see(images.transpose(0, 1))
    most = rounding(float(films.logits.abs().max()) + 4, additions(model.visual_encoder, model.disease))
    weights = weights_of(films.logits)
    torch.testing.assert_close(study.logits, (weights * films.logits).sum(0, keepdim=True), rtol=0, atol=most)
    assert_is_made_of_its_patches(study, 3 * PATCHES)
    weighed = (weights[..., None] * films.attribution).sum(0, keepdim=True)
    torch.testing.assert_close(study.attribution, weighed, rtol=0, atol=most)
    torch.testing.assert_close(study.tokens, films.tokens.mean(0, keepdim=True), rtol=0, atol=most)


def test_a_film_that_shows_nothing_takes_no_finding_away_and_one_that_shows_it_counts():
    effusion, normal = LABELS.index("Pleural Effusion"), LABELS.index(NO_FINDING)
    logits = torch.full((3, len(LABELS)), -6.0)
    logits[:, normal] = 4.0
    logits[1, effusion], logits[1, normal] = 3.0, -3.0
    seen = seen_of(evidence=torch.zeros(3, len(LABELS), PATCHES))
    seen = Seen(**{f.name: getattr(seen, f.name) for f in fields(Seen)} | {"logits": logits})
    study = seen.study()
    assert study.logits[0, effusion] > 2.5  # the mean is -3
    assert study.logits[0, normal] < -2
    assert study.logits[0, LABELS.index("Edema")] == pytest.approx(-6)


def test_a_view_that_is_not_there_has_no_part_in_its_study(build, images):
    model = build(queries=True).requires_grad_(False)
    views = images.transpose(0, 1).repeat(2, 1, 1, 1, 1)
    views[0, 1] = torch.nan
    seen = model.see(views, torch.tensor([[True, False, True], [True, True, True]]))
    one = model.see(images[[0, 2]]).study()
    most = rounding(float(one.logits.abs().max()) + 4, additions(model.visual_encoder, model.disease))
    torch.testing.assert_close(seen.logits[:1], one.logits, rtol=0, atol=most)
    assert_is_made_of_its_patches(seen, 3 * PATCHES)


def test_a_patch_that_counts_nowhere_leaves_no_nan_in_its_study():
    evidence = some(2, 1, PATCHES)
    share = torch.zeros(2, 1, PATCHES)
    share[..., 0] = 1
    seen = seen_of(evidence=evidence)
    values = {f.name: getattr(seen, f.name) for f in fields(Seen)} | {"share": share, "logits": evidence[..., 0]}
    study = Seen(**values).study()
    assert_is_made_of_its_patches(study)
    assert study.evidence.isfinite().all()


# ------------------------------------------------------------------------------------------------------ the queries


def test_how_much_patches_count_sums_to_1(make):
    read = make()(some(2, PATCHES + 1, D), MIDDLE)
    torch.testing.assert_close(read["share"].sum(-1), torch.ones(2, len(LABELS)))
    assert read["disease"].shape == (2, len(LABELS), D)


def test_the_class_token_is_no_patch_but_may_be_read(make):
    queries, tokens = make(), some(2, PATCHES + 1, D)
    other = tokens.clone()
    other[:, MIDDLE] += 5.0
    one, two = queries(tokens, MIDDLE), queries(other, MIDDLE)
    assert torch.equal(one["evidence"], two["evidence"])
    assert not torch.equal(one["share"], two["share"])


def test_whether_a_film_is_normal_is_read_by_mean_and_maximum_of_the_stem_too_and_each_patch_has_its_part(make):
    queries, tokens, stem = make(stem=True), some(2, PATCHES + 1, D), some(2, PATCHES, D, seed=1)
    read = queries(tokens, MIDDLE, stem)
    by_channel = stem.mean(1) @ queries.stem_mean.T + stem.amax(1) @ queries.stem_max.T  # (b, 2)
    expected = (read["share"] * read["evidence"]).sum(-1) + queries.bias
    expected[:, [LABELS.index(name) for name in WHOLE]] += by_channel
    most = rounding(float(expected.abs().max()) + 10, additions(queries) + PATCHES)
    torch.testing.assert_close(read["logits"], expected, rtol=0, atol=most)
    with pytest.raises(ValueError, match="stem's patches"):
        queries(tokens, MIDDLE)


def test_a_patch_is_read_as_the_tower_and_as_the_stem_saw_it(make):
    queries, tokens, stem = make(stem=True), some(1, PATCHES + 1, D), some(1, PATCHES, D, seed=1)
    own = queries(tokens, MIDDLE, stem)["evidence"]
    tower_5, stem_6 = tokens.clone(), stem.clone()
    tower_5[0, 5] += some(D, seed=2)
    stem_6[0, 6] += some(D, seed=3)
    for at, (tower, of_stem) in ((5, (tower_5, stem)), (6, (tokens, stem_6))):
        moved = (queries(tower, MIDDLE, of_stem)["evidence"] - own).abs().amax(1)[0]
        assert moved[at] > 1e-3
        assert moved.sum() - moved[at] < rounding(4, additions(queries)) * PATCHES, "read of that patch alone"


def test_how_much_patches_count_lies_between_the_strongest_alone_and_all_alike(make):
    queries, tokens = make(), some(2, PATCHES + 1, D)
    with torch.no_grad():
        queries.even.fill_(20.0)
        alike = queries(tokens, MIDDLE)["share"]
        queries.even.fill_(-20.0)
        queries.sharpness.fill_(1e4)
        one = queries(tokens, MIDDLE)
    torch.testing.assert_close(alike, torch.full_like(alike, 1 / PATCHES), rtol=0, atol=1e-6)
    assert torch.equal(one["share"].argmax(-1), one["evidence"].argmax(-1))


def test_films_do_not_depend_on_their_neighbours(make):
    queries, tokens = make(), some(3, PATCHES + 1, D)
    together, alone = queries(tokens, MIDDLE)["logits"][1:2], queries(tokens[1:2], MIDDLE)["logits"]
    torch.testing.assert_close(together, alone, rtol=0, atol=rounding(4, additions(queries)))


@pytest.mark.parametrize("stem", [False, True])
def test_lung_borders_are_four_times_as_fine_as_patches(build, images, stem):
    assert build(queries=True, stem=stem).see(images).lungs.shape == (3, 2, 4 * GRID, 4 * GRID)


def test_a_tower_without_queries_saw_its_tokens_and_no_finding(tiny, images):
    seen = tiny.see(images)
    assert torch.equal(seen.tokens, tiny.visual_encoder(images[:, 0]))
    assert seen.logits.shape == (3, 0)
    assert tiny.encode(images).findings == ()


# ------------------------------------------------------------------------------------------------------------ places

FINE = 12  # patches along a side, so that every zone has rows


def chest() -> torch.Tensor:
    """Lung borders (1, 2, 48, 48): the right lung at columns 4 to 20, the left at 28 to 44, both at rows 6 to 42."""
    lungs = torch.full((1, 2, 48, 48), -9.0)
    lungs[0, 0, 6:42, 4:20] = 9.0
    lungs[0, 1, 6:42, 28:44] = 9.0
    return lungs


@pytest.mark.parametrize(
    ("row", "column", "side", "zone"),
    [
        (2, 2, 0, 0),
        (5, 3, 0, 1),
        (9, 4, 0, 2),
        (2, 9, 1, 0),
        (6, 8, 1, 1),
        (9, 10, 1, 2),
        (0, 2, 0, 0),  # above the lungs, and below them: the nearest zone
        (11, 9, 1, 2),
        (5, 0, 0, 1),  # beside them: by the midline
        (5, 11, 1, 1),
    ],
)
def test_a_finding_is_in_the_lung_and_the_zone_of_its_patch(row, column, side, zone):
    evidence = torch.full((1, len(LABELS), FINE, FINE), -5.0)
    evidence[0, OPACITY, row, column] = 3.0
    regions = seen_of(evidence=evidence.flatten(2), lungs=chest()).regions()
    assert regions.shape == (1, len(LABELS), 2, 3)
    expected = torch.full((2, 3), -5.0)
    expected[side, zone] = 3.0
    assert torch.equal(regions[0, OPACITY], expected)
    assert (regions[0, :OPACITY] == -5).all()


def test_where_no_lung_is_seen_the_film_is_parted_in_the_middle_and_in_thirds():
    evidence = torch.full((1, 1, FINE, FINE), -5.0)
    evidence[0, 0, 1, 7] = 3.0
    regions = seen_of(evidence=evidence.flatten(2), lungs=torch.full((1, 2, 48, 48), -9.0)).regions()
    assert regions[0, 0].argmax() == 3  # left, upper
    assert regions.isfinite().all()


def test_the_lungs_of_a_patch_are_the_share_of_it_that_they_cover():
    lungs = seen_of(evidence=torch.zeros(1, 1, FINE**2), lungs=chest()).patch_lungs().view(FINE, FINE, 2)
    assert lungs[5, 2, 0] > 0.99
    assert lungs[1, 2, 0] == pytest.approx(0.5, abs=0.01)  # rows 4 to 8, of which 6 and 7 are lung
    assert lungs[5, 2, 1] < 0.01
    assert lungs[5, 6].max() < 0.01


def test_some_of_the_films_may_be_taken():
    seen = seen_of(evidence=some(3, 2, PATCHES))
    one = seen.select(torch.tensor([2, 0]))
    assert torch.equal(one.evidence, seen.evidence[[2, 0]])
    assert torch.equal(one.bias, seen.bias)
