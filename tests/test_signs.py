"""What the tower alone says: signs are read where they are, and stand in the prompt as evidence that cross-attention does not see."""

from dataclasses import replace

import pytest
import torch

from emrrg_core import checkpoint as checkpoints
from emrrg_core.config import DecodeConfig, PromptTokens, SignsConfig
from emrrg_core.decode import write
from emrrg_core.findings import LABELS
from emrrg_core.hybrid import Look
from emrrg_core.model import Emrrg
from emrrg_core.signs import PLACES, REGIONS, SignReader, Signs, width_of
from tests.conftest import TINY

GRID = 8
SIGNS = SignsConfig(tokens=3, appearance=5, dropout=0.5)


def lungs_at(right: tuple[int, int], left: tuple[int, int]) -> torch.Tensor:
    """Logits (1, g², 5) of two lungs, each from its first to its last row, in the outer columns; nothing else."""
    places = torch.full((1, GRID, GRID, len(PLACES)), -8.0)
    places[0, right[0] : right[1] + 1, 1:3, 0] = 8
    places[0, left[0] : left[1] + 1, 5:7, 1] = 8
    # between and beside the lungs the reader still leans to the nearer one
    places[0, :, :4, 0] += 1
    places[0, :, 4:, 1] += 1
    return places.flatten(1, 2)


def signs_of(places: torch.Tensor) -> Signs:
    return Signs(torch.zeros(len(places), len(LABELS)), places, torch.zeros(len(places), 5))


# -------------------------------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize(
    ("row", "column", "side", "zone"),
    [
        (0, 1, 0, 0),
        (3, 2, 0, 1),
        (5, 2, 0, 2),
        (2, 6, 1, 0),
        (4, 5, 1, 1),
        (7, 6, 1, 2),
    ],
)
def test_a_sign_appears_at_its_lung_and_third_and_nowhere_else(channel, row, column, side, zone):
    """The right lung (the image's left) reaches over rows 0 to 5, the left one over 2 to 7."""
    places = lungs_at((0, 5), (2, 7))
    places[0, row * GRID + column, 2 + channel] = 5
    regions = signs_of(places).regions()
    assert regions.shape == (1, 3, 2, 3)
    expected = torch.full((3, 2, 3), -8.0)
    expected[channel, side, zone] = 5
    torch.testing.assert_close(regions[0], expected)


def test_thirds_follow_each_lungs_own_height():
    """Row 3 is the right lung's base and the left lung's apex."""
    places = lungs_at((0, 3), (3, 7))
    places[0, 3 * GRID + 2, 2] = places[0, 3 * GRID + 6, 2] = 5
    regions = signs_of(places).regions()[0, 0]
    assert (regions > 0).nonzero().tolist() == [[0, 2], [1, 0]]


def test_regions_of_a_film_do_not_depend_on_its_neighbours():
    one, other = lungs_at((0, 5), (2, 7)), lungs_at((1, 7), (0, 4)).flip(1)
    other[0, 9, 3] = 7
    both = signs_of(torch.cat([one, other])).regions()
    torch.testing.assert_close(both[:1], signs_of(one).regions())
    torch.testing.assert_close(both[1:], signs_of(other).regions())


def test_a_film_without_any_lung_still_has_regions():
    places = torch.full((1, GRID**2, len(PLACES)), -8.0)
    places[0, -1, 4] = 3
    regions = signs_of(places).regions()
    assert torch.isfinite(regions).all()
    assert regions.max() == 3


def test_the_vector_holds_labels_regions_and_appearance_as_probabilities():
    torch.manual_seed(0)
    signs = Signs(torch.randn(2, 14), torch.randn(2, 16, 5), torch.randn(2, 5))
    vector = signs.vector()
    assert vector.shape == (2, width_of(5)) == (2, len(LABELS) + REGIONS + 5)
    torch.testing.assert_close(vector[:, :14], signs.labels.sigmoid())
    torch.testing.assert_close(vector[:, 14:32].view(2, 3, 2, 3), signs.regions().sigmoid())
    torch.testing.assert_close(vector[:, 32:], signs.appearance.sigmoid())


def test_the_reader_reads_every_patch_for_itself_and_labels_from_all():
    torch.manual_seed(0)
    reader = SignReader(16, 5)
    patches = torch.randn(2, 16, 16)
    changed = patches.clone()
    changed[0, 3] += 10
    before, after = reader(patches), reader(changed)
    moved = (before.places - after.places).abs().amax(-1) > 1e-6
    assert moved.nonzero().tolist() == [[0, 3]]
    assert ((before.labels - after.labels).abs() > 1e-6).all(1).tolist() == [True, False]
    assert {name for name, p in reader.named_parameters() if not p.requires_grad} == {
        "appearance.weight",
        "appearance.bias",
    }
    assert (before.places.sigmoid().mean()) < 0.3  # most patches show nothing: so it starts


# ---------------------------------------------------------------------------------------------------------------- model


@pytest.fixture
def make(make_llm, tokenizer, open_gates):
    """A tiny model with evidence tokens: `make(tokens=PromptTokens.ALL)`."""

    def made(*, signs: SignsConfig = SIGNS, contrast: float = 0.0, language: str = "tiny", **prompt) -> Emrrg:
        torch.manual_seed(4)
        config = replace(TINY, signs=signs, contrast=contrast, prompt=replace(TINY.prompt, **prompt), language=language)
        return open_gates(Emrrg(config, make_llm(seed=2), tokenizer)).eval()

    return made


@pytest.mark.parametrize(("tokens", "tower"), [(PromptTokens.POOLED, 5), (PromptTokens.ALL, 17)])
def test_evidence_stands_in_the_prompt_behind_the_visual_tokens(make, images, tokens, tower):
    model = make(tokens=tokens)
    visual = model.encode(images)
    assert visual.shape == (3, 17 + 3, 32)
    embeds, text = model.prompt(visual)
    middle = embeds[~text].view(3, tower + 3, 32)
    assert torch.equal(middle[:, tower:], visual[:, 17:])
    without, _ = make(signs=SignsConfig(), tokens=tokens).prompt(visual[:, :17])
    assert embeds.shape[1] == without.shape[1] + 3


def test_cross_attention_does_not_see_the_evidence(make, images):
    model = make()
    visual = model.encode(images)
    other = visual.clone()
    other[:, 17:] = torch.randn(3, 3, 32)
    film, same = model.look_at(visual), model.look_at(other)
    assert len(film.keys_values) == 2
    for layer, (keys, values) in film.keys_values.items():
        assert keys.shape[2] == 17
        assert torch.equal(keys, same.keys_values[layer][0])
        assert torch.equal(values, same.keys_values[layer][1])
    assert not torch.equal(model.prompt(visual)[0], model.prompt(other)[0])
    looks: list[Look] = []
    ids = torch.tensor([[5, 6, 7]] * 3)
    one, two = model.log_probs(visual, ids, looks=looks), model.log_probs(other, ids)
    assert ((one - two).abs() > 1e-5).all()  # and yet it speaks
    assert [look.attention.shape for look in looks] == [(3, 3, 17)] * 2


def test_evidence_follows_what_is_read_and_is_normalised(make, images):
    model = make()
    tokens = model.see(images)
    evidence = model.project(tokens)[:, 17:]
    vector = 2 * model.read_signs(tokens).vector() - 1
    torch.testing.assert_close(evidence, model.sign_norm(model.sign_proj(vector).view(3, 3, 32)))
    assert not torch.allclose(evidence[0], evidence[1])


def test_signs_are_read_from_the_patches_without_the_class_token(make, images):
    model = make()
    tokens = model.see(images)
    other = tokens.clone()
    other[:, model.config.vision.class_position] = 100
    assert torch.equal(model.read_signs(tokens).vector(), model.read_signs(other).vector())


def test_evidence_is_withheld_from_some_films_and_only_in_training(make, images):
    model = make()
    tokens = model.see(images).repeat(40, 1, 1)
    with torch.no_grad():
        steady, same = model.project(tokens), model.project(tokens)
        assert torch.equal(steady, same)
        torch.manual_seed(0)
        varied = model.train().project(tokens)
    silent = (varied[:, 17:] == 0).all(2)
    assert torch.equal(silent.any(1), silent.all(1))  # a film's evidence goes as a whole
    assert 0.3 < silent.all(1).float().mean() < 0.7
    torch.testing.assert_close(varied[~silent.all(1)], steady[~silent.all(1)])
    torch.testing.assert_close(varied[:, :17], steady[:, :17])


def test_signs_of_a_study_are_those_of_its_views_together(make):
    model = make()
    views = torch.randn(1, 2, 3, 64, 64)
    both = model.encode(views)
    assert both.shape == (1, 20, 32)
    torch.testing.assert_close(both, model.encode(views.flip(1)), rtol=1e-4, atol=1e-5)
    mean = model.visual_encoder(views[0]).mean(0, keepdim=True)
    torch.testing.assert_close(both, model.project(mean), rtol=1e-4, atol=1e-5)
    twice = model.encode(views[:, :1].repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(twice, model.encode(views[:, :1]), rtol=1e-4, atol=1e-5)


def test_every_part_that_makes_evidence_learns_and_appearance_does_not(make, images):
    model = make(signs=replace(SIGNS, dropout=0.0)).train()
    model.signs.places.weight.data.normal_()
    model(images, None, torch.tensor([[5, 9, 200, 2]] * 3)).backward()
    parts = {n: p for n, p in model.named_parameters() if n.startswith(("signs.", "sign_proj.", "sign_norm."))}
    assert len(parts) == 10
    for name, parameter in parts.items():
        learns = parameter.grad is not None and bool(parameter.grad.any())
        assert learns is (".appearance." not in name), name


def test_a_model_with_signs_is_saved_loaded_and_drafts_as_before(make, images, language_folder, tmp_path):
    model = make(language=str(language_folder), contrast=0.5)
    assert model.average_film.shape == (17 + 3, 32)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half().float())
        model.average_film.copy_(model.encode(images).mean(0).half().float())
    checkpoints.save(model, tmp_path / "saved", language={"name": "tiny"}, training={})
    back, _ = checkpoints.load(tmp_path / "saved")
    assert back.config == model.config
    config = DecodeConfig(max_new_tokens=6)
    ours, theirs = (write(m, m.encode(images), config) for m in (model, back))
    assert [w.text for w in ours] == [w.text for w in theirs]
    own, state = model.own_state(), back.own_state()
    assert {n for n in own if n.startswith("sign")} == {
        *(f"signs.{part}.{leaf}" for part in ("labels", "places", "appearance") for leaf in ("weight", "bias")),
        *(f"{part}.{leaf}" for part in ("sign_proj", "sign_norm") for leaf in ("weight", "bias")),
    }
    assert all(torch.equal(value, state[name]) for name, value in own.items())


def test_the_evidence_may_carry_what_the_draft_is_contrasted_with(make, images):
    """Drafts against the average film: evidence tokens take part as the visual tokens do."""
    model = make(contrast=2.0)
    with torch.no_grad():
        visual = model.encode(images)
        model.average_film.copy_(visual.mean(0))
        one = write(model, visual, DecodeConfig(max_new_tokens=6))
        model.average_film[17:] = torch.randn(3, 32) * 3
        other = write(model, visual, DecodeConfig(max_new_tokens=6))
    assert [w.log_prob for w in one] != [w.log_prob for w in other]


def test_a_model_without_signs_has_no_trace_of_them(build, images):
    model = build()
    assert not [name for name in model.state_dict() if "sign" in name]
    assert model.encode(images).shape == (3, 17, 32)
    with pytest.raises(ValueError, match="no readers of signs"):
        model.read_signs(model.see(images))
