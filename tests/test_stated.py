"""Facts: readings become the fewest statements that say them, and stand in the prompt as words do."""

from dataclasses import replace

import pytest
import torch

from emrrg_core import checkpoint as checkpoints
from emrrg_core.config import DecodeConfig, SignsConfig, Stem
from emrrg_core.decode import write
from emrrg_core.errors import ConfigError
from emrrg_core.findings import LABELS, NO_FINDING
from emrrg_core.model import Emrrg
from emrrg_core.signs import PLACES, Signs
from emrrg_core.stated import (
    IN_ANY_FILM,
    LIMITS,
    NAMES,
    SIDES,
    THIRDS,
    Fact,
    FactTokens,
    codes,
    differences,
    facts,
    named,
    placed,
    vocabulary,
)
from tests.conftest import TINY

GRID = 8
HALF = torch.full((len(LIMITS),), 0.5)
SIGNS = SignsConfig(tokens=2, facts=2, appearance=5, dropout=0.5)
LOW, HIGH = -3.0, 3.0


def film(spots: dict[tuple[int, int, int], float] | None = None, **said: float) -> Signs:
    """Readings of one film with a right lung (the image's left) and a left one over all rows. spots: (row, column, channel) -> logit."""
    places = torch.full((1, GRID, GRID, len(PLACES)), -8.0)
    places[0, :, 1:3, 0] = places[0, :, 5:7, 1] = 8
    places[0, :, :4, 0] += 1
    places[0, :, 4:, 1] += 1
    for (row, column, channel), logit in (spots or {}).items():
        places[0, row, column, 2 + channel] = logit
    known = {name.replace(" ", "_"): i for i, name in enumerate(LABELS)}
    labels = torch.full((1, len(LABELS)), LOW)
    labels[0, known["No_Finding"]] = HIGH
    for name, logit in said.items():
        labels[0, known[name]] = logit
    return Signs(labels, places.flatten(1, 2), torch.zeros(1, 5))


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("positive", "told"),
    [
        (set(), []),
        ({"Lung Opacity"}, ["opacity"]),
        ({"Lung Opacity", "Pneumonia"}, ["pneumonia"]),
        ({"Lung Opacity", "Edema"}, ["edema"]),
        ({"Lung Opacity", "Pleural Effusion"}, ["effusion", "opacity"]),
        ({"Cardiomegaly", "Pneumonia", "Lung Lesion"}, ["pneumonia", "nodule", "heart"]),
        ({"Support Devices"}, []),
    ],
)
def test_labels_are_stated_once_and_an_opacity_by_its_own_name(positive, told):
    assert named(positive) == told


# --------------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("name", "read", "side", "third"),
    [
        ("nodule", {(0, 1, 0): 0.9}, "left", "upper"),
        ("pneumonia", {(1, 0, 2): 0.9, (1, 0, 1): 0.6}, "right", "mid and lower"),
        ("nodule", {(0, 0, 2): 0.9, (0, 0, 1): 0.6}, "right", ""),  # which is in one of them
        ("effusion", {(2, 0, 2): 0.9, (2, 1, 2): 0.6}, "bilateral", "lower"),
        ("opacity", {(1, 0, 0): 0.9, (1, 0, 2): 0.9}, "right", ""),  # thirds that do not touch
        ("opacity", {(1, 1, 1): 0.45}, "left", ""),  # enough for a side, not for a third
        ("opacity", {(1, 1, 1): 0.3}, "", ""),
        ("opacity", {(0, 1, 1): 0.9}, "", ""),  # a nodule there says nothing of it
        ("heart", {(1, 1, 1): 0.9}, "", ""),
    ],
)
def test_a_finding_lies_where_its_own_channel_is_read(name, read, side, third):
    regions = torch.full((3, 2, 3), 0.02)
    for place, probability in read.items():
        regions[place] = probability
    assert placed(name, regions) == (side, third)


# ---------------------------------------------------------------------------------------------------------------- facts


def test_a_film_that_is_read_as_normal_has_no_fact():
    assert facts(film(), HALF, 3) == [[]]
    assert facts(film(Pneumonia=2.0, Edema=1.0), HALF, 3) == [[]]  # No Finding decides


def test_an_abnormal_film_states_every_label_above_its_limit_the_surest_first():
    read = film({(1, 1, 1): 1.0}, No_Finding=-1.0, Lung_Opacity=2.0, Pneumonia=1.0, Edema=0.5, Fracture=2.5)
    assert facts(read, HALF, 3) == [[Fact("fracture"), Fact("pneumonia", "right", "upper"), Fact("edema")]]
    assert facts(read, HALF, 1) == [[Fact("fracture")]]
    strict = HALF.clone()
    strict[LABELS.index("Fracture")] = 0.95
    assert facts(read, strict, 3)[0][0].name == "pneumonia"


def test_an_abnormal_film_without_a_sure_label_states_the_nearest():
    """Also where a label that no sentence tells would be nearer."""
    read = film(No_Finding=-0.1, Atelectasis=-0.5, Support_Devices=2.0)
    assert facts(read, HALF, 3) == [[Fact("atelectasis")]]


@pytest.mark.parametrize(("channel", "name"), [(0, "nodule"), (1, "opacity"), (2, "effusion")])
def test_a_sign_that_is_read_somewhere_counts_in_a_film_that_looks_normal(channel, name):
    read = film({(6, 6, channel): 2.0})
    assert facts(read, HALF, 3) == [[Fact(name, "left", "lower")]]
    strict = HALF.clone()
    strict[len(LABELS) + channel] = 0.9
    assert facts(read, strict, 3) == [[]]  # 0.88 is not enough


def test_a_large_heart_counts_in_a_film_that_looks_normal():
    assert facts(film(Cardiomegaly=0.5), HALF, 3) == [[Fact("heart")]]


def test_the_limit_of_no_finding_says_how_normal_a_film_must_look():
    """Below it a film is abnormal."""
    strict = HALF.clone()
    strict[LABELS.index(NO_FINDING)] = 0.97
    assert facts(film(Pneumonia=1.0), HALF, 3) == [[]]
    assert facts(film(Pneumonia=1.0), strict, 3) == [[Fact("pneumonia")]]  # 0.953 is not enough


def test_films_of_a_batch_do_not_mix():
    some = [film(), film({(6, 6, 0): 2.0}), film(No_Finding=-1.0, Edema=1.0)]
    both = Signs(*(torch.cat([getattr(s, name) for s in some]) for name in ("labels", "places", "appearance")))
    assert facts(both, HALF, 2) == [facts(one, HALF, 2)[0] for one in some]


# --------------------------------------------------------------------------------------------------------------- tokens


def test_every_fact_has_a_code_of_its_own():
    every = [Fact(name, side, third) for name in NAMES for side in SIDES for third in THIRDS]
    assert len({fact.code for fact in every} | {(0, 0, 0)}) == len(every) + 1
    made = codes([[every[5], every[7]], []], 3)
    assert made.tolist() == [[list(every[5].code), list(every[7].code), [0, 0, 0]], [[0, 0, 0]] * 3]
    assert codes([every], 2).shape == (1, 2, 3)


def test_a_fact_starts_as_the_words_that_name_it():
    tokens = FactTokens(4)
    words = {word: torch.full((4,), float(i)) for i, word in enumerate(vocabulary())}
    tokens.start(words)
    (row,) = tokens(codes([[Fact("effusion", "left", "mid and lower")]], 1))
    assert torch.equal(row, torch.stack([words[" effusion"], words[" left"], words[" mid and lower"]]))
    (none,) = tokens(codes([[]], 1))
    assert torch.equal(none, torch.stack([words[" normal"], words[","], words[","]]))


@pytest.fixture
def make(make_llm, tokenizer, open_gates):
    def made(*, signs: SignsConfig = SIGNS, language: str = "tiny", contrast: float = 0.0) -> Emrrg:
        torch.manual_seed(4)
        config = replace(TINY, signs=signs, language=language, contrast=contrast)
        return open_gates(Emrrg(config, make_llm(seed=2), tokenizer)).eval()

    return made


def test_facts_stand_in_the_prompt_behind_the_other_evidence(make, images):
    model = make()
    tokens = model.see(images)
    stated = codes([[Fact("effusion", "left")], [], [Fact("heart"), Fact("edema")]], 2)
    visual = model.project(tokens, stated)
    assert visual.shape == (3, 17 + 2 + 6, 32)
    assert torch.equal(visual[:, 19:], model.facts(stated))
    embeds, text = model.prompt(visual)
    assert torch.equal(embeds[~text].view(3, 5 + 8, 32)[:, 7:], visual[:, 19:])
    assert torch.equal(visual[:, :19], model.project(tokens)[:, :19])


def test_what_is_not_stated_is_read(make, images):
    model = make()
    with torch.no_grad():
        tokens = model.see(images)
        model.signs.labels.bias -= model.read_signs(tokens).labels.mean(0)  # what tells the films apart is what is read
        read = facts(model.read_signs(tokens), model.limits, 2)
        assert len({tuple(some) for some in read}) > 1  # or the films would all be told alike
        assert torch.equal(model.project(tokens), model.project(tokens, codes(read, 2)))


def test_beside_facts_the_other_evidence_says_only_how_a_film_looks(make, images):
    model = make()
    with torch.no_grad():
        tokens = model.see(images)
        before = model.project(tokens, codes([[]] * 3, 2))
        model.signs.labels.weight.normal_(std=2.0)
        model.signs.places.weight.normal_(std=2.0)
        assert torch.equal(before, model.project(tokens, codes([[]] * 3, 2)))
        assert not torch.equal(before[0, 17:19], before[1, 17:19])


def test_facts_are_withheld_together_with_the_other_evidence(make, images):
    model = make().train()
    with torch.no_grad():
        varied = model.project(model.see(images).repeat(40, 1, 1), codes([[Fact("edema")]] * 120, 2))
    silent = (varied[:, 17:] == 0).all(2)
    assert torch.equal(silent.any(1), silent.all(1))
    assert 0.3 < silent.all(1).float().mean() < 0.7


def test_facts_learn_from_the_words_and_limits_do_not_learn(make, images):
    model = make(signs=replace(SIGNS, dropout=0.0)).train()
    model(images, None, torch.tensor([[5, 9, 200, 2]] * 3)).backward()
    for table in (model.facts.name, model.facts.side, model.facts.third):
        assert table.weight.grad.any()
    assert "limits" not in dict(model.named_parameters())


def test_a_model_with_facts_is_saved_loaded_and_drafts_as_before(make, images, language_folder, tmp_path):
    model = make(language=str(language_folder), contrast=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half().float())
        model.limits.copy_(torch.linspace(0.25, 0.75, len(LIMITS)).half().float())
        model.average_film.copy_(model.encode(images).mean(0).half().float())
    checkpoints.save(model, tmp_path / "saved", language={"name": "tiny"}, training={})
    back, _ = checkpoints.load(tmp_path / "saved")
    assert back.config == model.config
    assert torch.equal(back.limits, model.limits)
    config = DecodeConfig(max_new_tokens=6)
    ours, theirs = (write(m, m.encode(images), config) for m in (model, back))
    assert [w.text for w in ours] == [w.text for w in theirs]


def test_facts_need_readers():
    with pytest.raises(ConfigError, match=r"signs\.tokens"):
        SignsConfig(facts=1)
    with pytest.raises(ConfigError, match="facts"):
        SignsConfig(tokens=1, facts=-1)


# ---------------------------------------------------------------------------------------------------- text against facts


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        ([], "The lungs are clear.", []),
        ([Fact("effusion", "left")], "There is a small left pleural effusion.", []),
        ([Fact("effusion", "left")], "There is a pleural effusion.", []),  # it leaves the side open
        ([Fact("pneumonia", "left", "lower")], "Airspace opacity is seen in the left lower lung.", []),
        ([Fact("edema")], "Opacities in both lungs are consistent with edema.", []),
        (
            [Fact("effusion", "left")],
            "The lungs are clear.",
            ["Read in the film, but not stated by the draft: pleural effusion, left lung."],
        ),
        (
            [Fact("nodule", "left", "upper")],
            "There is a nodule in the right upper lung.",
            ["Read in the film: nodule, left upper lung. The draft names another side."],
        ),
        (
            [],
            "There is a nodule in the right upper lung.",
            ["Stated by the draft, but not read in the film: Lung Lesion."],
        ),
        ([], "There is no pleural effusion. A pacemaker is seen.", []),
        (
            [Fact("heart")],
            "The heart is enlarged. Possible pneumonia.",
            ["Stated by the draft, but not read in the film: Pneumonia."],
        ),
    ],
)
def test_a_text_that_states_other_things_than_were_read_is_told_apart(read, text, said):
    assert differences(read, text) == said


def test_a_fact_reads_as_a_reader_would_note_it():
    facts = [
        Fact("nodule", "left", "upper"),
        Fact("opacity", "bilateral", "mid and lower"),
        Fact("effusion", "right"),
        Fact("heart"),
    ]
    assert [str(fact) for fact in facts] == [
        "nodule, left upper lung",
        "airspace opacity, both mid and lower lungs",
        "pleural effusion, right lung",
        "enlarged heart",
    ]


# --------------------------------------------------------------------------------------------------------- second reader


@pytest.fixture
def doubled(make_llm, tokenizer, open_gates) -> Emrrg:
    """A tiny model with a second reader."""
    torch.manual_seed(4)
    vision = replace(TINY.vision, d_model=64, stem=Stem.CONVOLUTION)
    config = replace(TINY, vision=vision, signs=replace(SIGNS, second=True))
    return open_gates(Emrrg(config, make_llm(seed=2), tokenizer)).eval()


def test_a_second_reader_reads_the_labels_but_for_those_that_are_drawn(doubled, images):
    with torch.no_grad():
        tokens = doubled.see(images)
        assert tokens.shape == (3, 17 + 2, 64)
        before = doubled.read_signs(tokens)
        doubled.second.labels.bias += 1
        after = doubled.read_signs(tokens)
        moved = (after.labels - before.labels).abs() > 1e-3
    heart = [label in IN_ANY_FILM for label in LABELS]
    assert moved.tolist() == [[not drawn for drawn in heart]] * 3
    assert torch.equal(after.places, before.places)
    torch.testing.assert_close(after.labels[:, heart], doubled.signs(doubled.patches(tokens)).labels[:, heart])


def test_the_language_model_and_the_patches_know_nothing_of_the_second_reader(doubled, images):
    with torch.no_grad():
        tokens = doubled.see(images)
        other = tokens.clone()
        other[:, 17:] = torch.randn(3, 2, 64)
        stated = codes([[]] * 3, 2)
        assert torch.equal(doubled.project(tokens, stated), doubled.project(other, stated))
        assert torch.equal(doubled.patches(tokens), doubled.patches(other))
        assert doubled.patches(tokens).shape == (3, 16, 64)


def test_a_second_reader_reads_a_study_from_its_views_together(doubled):
    with torch.no_grad():
        views = torch.randn(1, 2, 3, 64, 64)
        both = doubled.see(views)
        torch.testing.assert_close(both[0, 17:], doubled.second(views[0]).mean(0), rtol=1e-4, atol=1e-5)


def test_a_second_reader_reads_a_mirrored_film_alike(doubled):
    """A label is not of a side. Only the third of the reading that leaves the border out may tell the two apart."""
    with torch.no_grad():
        film = torch.randn(2, 3, 64, 64)
        read = doubled.second(film), doubled.second(film.flip(-1))
        stem = [doubled.second.stems[0](one).mean(1) for one in (film, film.flip(-1))]
    assert not torch.allclose(*stem, atol=1e-3)
    apart = (read[0][:, 0] - read[1][:, 0]).abs().mean()
    assert apart < 0.5 * (stem[0] - stem[1]).abs().mean()


def test_a_second_reader_is_frozen_and_needs_facts(doubled):
    assert not {name for name in doubled.learns if name.startswith("second.")}
    with pytest.raises(ConfigError, match="second"):
        SignsConfig(tokens=1, second=True)


# ---------------------------------------------------------------------------------------------- read twice: film and mirror


def twice(own: Signs, other: Signs) -> Signs:
    return replace(own, places_mirrored=other.places)


def test_what_leans_to_one_side_in_both_readings_is_told_on_neither():
    """The film reads right by 3, and so does its mirror image, which put back reads left by 3."""
    right = film({(6, 1, 1): 2.5, (6, 6, 1): -0.5}, No_Finding=LOW, Pneumonia=HIGH)
    left = film({(6, 1, 1): -0.5, (6, 6, 1): 2.5}, No_Finding=LOW, Pneumonia=HIGH)
    limits = HALF.clone()
    limits[len(LABELS) :] = 0.99  # no sign by itself
    assert [str(fact) for fact in facts(right, limits, 3)[0]] == ["pneumonia, right lower lung"]
    assert [str(fact) for fact in facts(twice(right, left), limits, 3)[0]] == ["pneumonia, both lower lungs"]
    assert [str(fact) for fact in facts(twice(right, right), limits, 3)[0]] == ["pneumonia, right lower lung"]


def test_both_lungs_are_named_only_where_they_read_alike():
    both = film({(6, 1, 1): 2.5, (6, 6, 1): 0.5}, No_Finding=LOW, Pneumonia=HIGH)
    limits = HALF.clone()
    limits[len(LABELS) :] = 0.99
    assert facts(both, limits, 3)[0][0].side == "bilateral"
    assert facts(twice(both, both), limits, 3)[0][0].side == "right"
    alike = film({(6, 1, 1): 1.4, (6, 6, 1): 0.5}, No_Finding=LOW, Pneumonia=HIGH)
    assert facts(twice(alike, alike), limits, 3)[0][0].side == "bilateral"


def test_whether_something_is_there_is_asked_of_the_film_alone():
    """The limits were chosen on single readings."""
    there, nothing = film({(3, 1, 0): HIGH}), film()
    assert [str(fact) for fact in facts(twice(there, nothing), HALF, 3)[0]] == ["nodule"]
    assert facts(twice(nothing, there), HALF, 3)[0] == []


@pytest.mark.parametrize("apart", [torch.inf, 1.0])
def test_lungs_that_are_read_as_surely_as_a_number_can_say_are_both_named(apart):
    """A probability of 1 has no finite logit, and the difference of two of them is no number."""
    assert placed("pneumonia", torch.ones(3, 2, 3), apart) == ("bilateral", "")
