"""The one door: films in, a draft out, with its evidence, its warnings and where it came from."""

import inspect
import json
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from app import example_film
from emrrg_core import DecodeConfig, Film, FilmError, Reporter, gate_figure, heat_map
from emrrg_core.config import StudyConfig
from emrrg_core.errors import CheckpointError, ConfigError, EmrrgError, LanguageModelError
from emrrg_core.explain.faithfulness import masked
from emrrg_core.films.film import model_input
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.finding_tokens import NAMES, Finding, Presence, ratios_of
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.draft import compose, sections
from emrrg_core.report.report import Report
from emrrg_core.report.told import Said, spoken, switched, told
from emrrg_core.reporter import differences
from emrrg_core.text.labeler import LABELS
from tests.phantom import make_phantom
from tests.rounding import additions, rounding

SHORT = DecodeConfig(max_new_tokens=12)


@pytest.fixture(scope="module")
def reporter(checkpoint) -> Reporter:
    return Reporter.load(checkpoint, download=False)


@pytest.fixture(scope="module")
def films(tmp_path_factory, reporter) -> list[Film]:
    """Two views: a PNG that is wider than tall, and a DICOM that is taller than wide."""
    folder = tmp_path_factory.mktemp("films")
    make_phantom(1, height=140, width=190).save_png(folder / "Doe^Jane.png")
    make_phantom(2, height=200, width=150).save_dicom(folder / "two.dcm", view="PA")
    return [reporter.read(folder / name, name=f"Film {i}") for i, name in enumerate(["Doe^Jane.png", "two.dcm"], 1)]


def test_a_draft_knows_its_films_its_models_and_its_seed(reporter, films, checkpoint, language_folder):
    draft = reporter.draft(films, replace(SHORT, seed=11))
    assert [(f.name, f.format, f.height, f.width, f.view) for f in draft.films] == [
        ("Film 1", "PNG", 140, 190, None),
        ("Film 2", "DICOM", 200, 150, "PA"),
    ]
    assert [f.sha256 for f in draft.films] == [f.sha256 for f in films]
    assert all(record.steps == film.steps for record, film in zip(draft.films, films, strict=True))
    assert draft.model["checkpoint"] == checkpoint.name
    assert draft.model["checkpoint_sha256"] == checkpoints.fingerprint(checkpoint)
    assert draft.model["language_model"] == language_folder.name
    assert len(draft.model["language_model_sha256"]) == 64
    assert draft.decoding["seed"] == 11
    assert set(draft.timings) == {"encode", "write", "total"}
    assert draft.timings["total"] == pytest.approx(draft.timings["encode"] + draft.timings["write"])
    assert (draft.layers, draft.grid) == ((0, 2), 4)


def test_a_draft_as_json_names_neither_path_nor_patient(reporter, films):
    text = json.dumps(reporter.draft(films, SHORT).to_dict(), allow_nan=False)
    assert [word for word in ("Doe", "Jane", "Phantom", "PHANTOM", "/tmp", "two.dcm") if word in text] == []


def test_every_token_of_a_draft_can_be_laid_over_every_film(reporter, films):
    draft = reporter.draft(films, SHORT)
    assert draft.tokens
    for film, record in enumerate(draft.films):
        for t in range(len(draft.tokens)):
            heat = heat_map(draft, film, (t, t + 1))
            assert heat.shape == (record.height, record.width) == films[film].pixels.shape
            assert heat.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
    assert gate_figure(draft).axes[0].images


def test_a_draft_is_streamed_token_by_token_and_ends_whole(reporter, films):
    drafts = list(reporter.stream(films[:1], SHORT))
    lengths = [len(draft.tokens) for draft in drafts]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] == lengths[-2] == len(reporter.draft(films[:1], SHORT).tokens)
    assert all(draft.timings == {} and draft.warnings == () for draft in drafts[:-1])
    assert drafts[-1].timings
    assert drafts[-1].tokens[0].text == drafts[0].tokens[0].text


def test_drafting_can_be_abandoned_midway(reporter, films):
    stream = reporter.stream(films[:1], SHORT)
    next(stream)
    stream.close()
    assert reporter.draft(films[:1], SHORT).tokens


def test_a_reader_who_stops_is_told_no_more_even_before_the_first_word(reporter, films):
    assert list(reporter.stream(films, stopped=lambda: True)) == []
    told = []
    for draft in reporter.stream(films, stopped=lambda: len(told) >= 2):
        told.append(draft)
    assert len(told) == 2
    assert all(draft.timings == {} for draft in told)  # none of them is said to be whole


def test_the_same_films_give_the_same_draft_and_other_films_another(reporter, films):
    one, again, other = (reporter.draft(chosen, SHORT) for chosen in (films[:1], films[:1], films[1:]))
    assert [t.log_prob for t in one.tokens] == [t.log_prob for t in again.tokens]
    assert [t.log_prob for t in one.tokens] != [t.log_prob for t in other.tokens]


def test_the_order_of_the_views_does_not_change_the_draft(reporter, films):
    there, back = reporter.draft(films, SHORT), reporter.draft(films[::-1], SHORT)
    assert [t.id for t in there.tokens] == [t.id for t in back.tokens]
    assert [f.name for f in back.films] == ["Film 2", "Film 1"]


def test_beams_may_be_used(reporter, films):
    assert reporter.draft(films[:1], replace(SHORT, beams=3)).decoding["beams"] == 3


@pytest.mark.parametrize("count", [0, 5])
def test_none_or_more_than_four_films_are_refused(reporter, films, count):
    with pytest.raises(FilmError):
        reporter.draft(films[:1] * count, SHORT)


def test_four_films_are_not_too_many(reporter, films):
    assert len(reporter.draft(films * 2, SHORT).films) == 4


def said(reporter, films, **changes) -> str:
    return " ".join(reporter.draft(films, replace(SHORT, **changes)).warnings)


def test_a_draft_warns_of_what_a_reader_should_know(reporter, films):
    lateral = replace(films[1], view="LATERAL")
    assert "averaged" in said(reporter, films)
    assert "averaged" not in said(reporter, films[:1])
    assert "Film 2 is a lateral view" in said(reporter, [films[0], lateral])
    assert "lateral" not in said(reporter, films)
    assert "cut after 1 tokens" in said(reporter, films, max_new_tokens=1)
    assert "no Impression" in said(reporter, films, max_new_tokens=1)
    assert "gate" not in said(reporter, films)


def test_a_draft_that_began_to_repeat_itself_says_so(checkpoint, films):
    reporter = Reporter.load(checkpoint, download=False)
    model = reporter._model
    script = iter(model.tokenizer.encode("Findings: Clear. Clear.", add_special_tokens=False))
    model.llm.lm_head.register_forward_hook(
        lambda _m, _i, logits: (
            logits.index_fill(1, torch.tensor([token]), 99.0) if (token := next(script, None)) else None
        )
    )
    *partial, draft = reporter.stream(films[:1], replace(SHORT, max_new_tokens=24))
    assert draft.findings == "Clear."
    assert draft.closed == ("findings",)
    assert "The model began to repeat itself: Findings ended before the repeated sentence." in draft.warnings
    assert draft.to_dict()["closed"] == ["findings"]
    assert any("Clear. Clear" in shown.findings for shown in partial)


def test_a_draft_whose_gates_stayed_shut_says_so_and_has_no_map(tmp_path, build, language_folder, films):
    folder = checkpoints.save(build(seed=2), tmp_path / "shut", language={}, training={})
    draft = Reporter.load(folder, language_model=language_folder, download=False).draft(films[:1], SHORT)
    assert any("Every gate stayed shut" in warning for warning in draft.warnings)
    assert heat_map(draft, 0, (0, len(draft.tokens))) is None


def test_a_model_without_hybrid_layers_drafts_and_says_that_it_did_not_look(tmp_path, build, language_folder, films):
    folder = checkpoints.save(build(seed=2, hybrid={"every_n": 0}), tmp_path / "none", language={}, training={})
    draft = Reporter.load(folder, language_model=language_folder, download=False).draft(films[:1], SHORT)
    assert draft.layers == ()
    assert any("did not look at the film" in warning for warning in draft.warnings)
    assert json.dumps(draft.to_dict())


def test_loading_says_what_is_missing(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Reporter.load(tmp_path, download=False)
    with pytest.raises(LanguageModelError):
        Reporter.load(checkpoint, language_model=tmp_path / "nowhere", download=False)


def test_the_checkpoint_is_named_also_when_it_is_the_folder_one_stands_in(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert Reporter.load(Path(), download=False).names["checkpoint"] == checkpoint.name


def test_stream_is_lazy(reporter, films):
    assert inspect.isgenerator(reporter.stream(films, SHORT))


def test_a_reporter_keeps_nothing_of_a_film_or_a_draft(reporter, films):
    before = {name: id(value) for name, value in vars(reporter).items()}
    reporter.draft(films, SHORT)
    assert {name: id(value) for name, value in vars(reporter).items()} == before


def test_a_checkpoint_beside_other_language_weights_says_so_in_every_draft(checkpoint, tmp_path, films):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["language_model"]["sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    said = Reporter.load(folder).draft(films[:1], DecodeConfig(max_new_tokens=2)).warnings
    assert any("other weights" in warning for warning in said)
    unsaid = Reporter.load(checkpoint).draft(films[:1], DecodeConfig(max_new_tokens=2)).warnings
    assert not any("other weights" in warning for warning in unsaid)


# ------------------------------------------------------------------------------------------------------ what was read


@pytest.fixture(scope="module")
def reader(reading_checkpoint) -> Reporter:
    """Of a checkpoint that reads findings, as the one that comes with EMRRG."""
    return Reporter.load(reading_checkpoint, download=False)


def test_a_draft_carries_what_was_read_with_a_map_of_every_film(reader, films):
    draft = reader.draft(films, SHORT)
    assert [f.name for f in draft.read] == [name for name in NAMES if name != "fracture"]
    assert draft.not_assessed == ("Fracture", "Support Devices")
    assert len({f.presence for f in draft.read}) > 1
    for finding in draft.read:
        one, two = finding.maps
        assert one.shape == two.shape == (16,)
        assert (one.sum(), two.sum()) == pytest.approx((1, 1), abs=1e-5)
        assert not np.array_equal(one, two)
    assert json.dumps(draft.to_dict(), allow_nan=False)
    assert all((t.attention.shape, t.on_findings.shape) == ((2, 16), (2, len(NAMES))) for t in draft.tokens)


def test_what_is_read_of_a_study_is_what_its_views_say_on_average(reader, films):
    model = reader._model
    with torch.inference_mode():
        seen = model.see(torch.from_numpy(np.stack([model_input(film, 64) for film in films]))[:, None])
        p = model.calibration.probabilities(seen.study().logits, ratios_of(seen.study()))[0].tolist()
    draft = reader.draft(films, SHORT)
    most = rounding(1, additions(model.visual_encoder, model.disease))
    for finding in draft.read:
        expected = p[LABELS.index(finding.label)]
        expected = 1 - expected if finding.name == "abnormal" else expected
        assert finding.probability == pytest.approx(expected, abs=most)
    alone = reader.draft(films[:1], SHORT)
    assert [f.probability for f in alone.read] != [f.probability for f in draft.read]


@pytest.mark.parametrize("count", [1, 2])
def test_every_film_goes_through_the_tower_once_a_draft(reader, films, count):
    seen = []
    hook = reader._model.visual_encoder.layers[0].register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    reader.draft(films[:count], SHORT)
    hook.remove()
    assert sum(seen) == count


def test_a_sentence_says_what_it_speaks_of(reading_checkpoint, films):
    reader = Reporter.load(reading_checkpoint, download=False)
    model = reader._model
    script = iter(model.tokenizer.encode("Findings: No effusion. No fracture.", add_special_tokens=False))
    model.llm.lm_head.register_forward_hook(
        lambda _m, _i, logits: (
            logits.index_fill(1, torch.tensor([token]), 99.0) if (token := next(script, None)) else None
        )
    )
    draft = reader.draft(films[:1], replace(SHORT, max_new_tokens=30))
    assert [s.findings for s in draft.sentences[:2]] == [("effusion",), ("fracture",)]
    effusion = draft.finding("effusion")
    rows = draft.to_dict()["sentences"]
    assert rows[0]["findings"] == [
        {"name": "effusion", "probability": effusion.probability, "threshold": effusion.threshold}
    ]
    assert rows[1]["findings"] == []
    assert "Denied by the draft, but not ruled out by what was read: Fracture." in draft.warnings


def test_queries_and_finding_tokens_are_parts_of_their_own_and_words_teach_only_the_tokens(reader):
    counts = reader.parameters()
    assert {"queries", "finding tokens"} <= counts.all.keys()
    assert "finding tokens" in counts.trainable
    assert "queries" not in counts.trainable


def test_a_draft_of_a_model_that_reads_nothing_has_no_findings_and_warns_of_none(reporter, films):
    draft = reporter.draft(films[:1], SHORT)
    assert (draft.read, draft.ratio) == (None, None)
    assert "read in the film" not in " ".join(draft.warnings).lower()


PRESENT, OPEN, ABSENT = Presence.PRESENT, Presence.OPEN, Presence.ABSENT


def finding(name: str, presence: Presence = PRESENT, side: str = "", **more) -> Finding:
    return Finding(name, presence, 0.7, 0.5, side, **more)


def differ(text: str, *read: Finding) -> list[str]:
    """What is said of a draft of this text about a film in which this was read."""
    token = Token(0, compose(text, ""), -0.1, (0.1,), np.zeros((1, 4), np.float32), np.zeros((1, 0), np.float32))
    return differences(read, sections(Writing((token,), True, -0.1))[2])


def test_what_was_read_and_is_not_stated_is_said():
    nodule = finding("nodule", side="left", zone="upper")
    expected = ["Read in the film, but not stated by the draft: nodule or mass, left upper lung."]
    assert differ("The heart is normal.", nodule, finding("heart", ABSENT)) == expected
    assert differ("There is a nodule in the left upper lung.", nodule) == []
    # any abnormality is stated by whatever is stated
    assert differ("There is a nodule.", finding("abnormal"), nodule) == []


def test_what_is_stated_and_was_not_read_is_said():
    expected = ["Stated by the draft, but not read in the film: Pleural Effusion."]
    for presence in (OPEN, ABSENT):
        assert differ("There is a left pleural effusion.", finding("effusion", presence)) == expected
    assert differ("There is a left pleural effusion.") == expected  # nor is it assessed
    assert differ("There is a left pleural effusion.", finding("effusion")) == []


@pytest.mark.parametrize("read", [(finding("effusion", OPEN),), ()], ids=["open", "not assessed"])
def test_what_is_denied_although_it_was_not_ruled_out_is_said(read):
    expected = ["Denied by the draft, but not ruled out by what was read: Pleural Effusion."]
    assert differ("No pleural effusion.", *read) == expected
    assert differ("No pleural effusion.", finding("effusion", ABSENT)) == []


def test_what_is_denied_although_it_was_read_is_said_twice_over():
    said = differ("No pleural effusion.", finding("effusion"))
    assert [s.split(":")[0] for s in said] == [
        "Read in the film, but not stated by the draft",
        "Denied by the draft, but not ruled out by what was read",
    ]


def test_another_side_than_was_read_is_said():
    left = finding("effusion", side="left")
    assert differ("There is a right pleural effusion.", left) == [
        "Read in the film: pleural effusion, left. The draft names another side."
    ]
    assert differ("There is a pleural effusion.", left) == []


def test_a_pneumonia_may_be_named_where_an_opacity_may_be_one():
    expected = ["Stated by the draft, but not read in the film: Pneumonia."]
    text = "There is an opacity, which may be pneumonia."
    assert differ(text, finding("opacity")) == expected
    assert differ(text, finding("opacity", pneumonia=True)) == []
    assert differ("Findings may represent pneumonia.", finding("opacity", pneumonia=True)) == []


def test_an_enlarged_heart_on_an_ap_film_is_said_to_be_overestimated(reading_checkpoint, films):
    reader = Reporter.load(reading_checkpoint, download=False)
    model, heart = reader._model, LABELS.index("Cardiomegaly")
    model.lungs.forward = lambda patches, fine: drawn_lungs(len(patches))
    model.calibration.curve[heart] = torch.tensor([0.0, 0.0, 3.0])  # there is one in every film
    ap = replace(films[0], view="AP")
    assert "overestimates" in " ".join(reader.draft([ap], SHORT).warnings)
    assert "overestimates" not in " ".join(reader.draft(films[1:], SHORT).warnings)  # a PA film
    model.calibration.curve[heart, 2] = -3.0
    assert "overestimates" not in " ".join(reader.draft([ap], SHORT).warnings)


def drawn_lungs(films: int) -> torch.Tensor:
    """Logits (films, 2, 16, 16) of two lungs between which a heart of half the chest's width lies."""
    lungs = torch.full((films, 2, 16, 16), -9.0)
    lungs[:, 0, 2:14, 2:5] = 9.0
    lungs[:, 1, 2:14, 11:14] = 9.0
    return lungs


def test_the_ratio_of_a_draft_is_that_of_its_first_frontal_film(reading_checkpoint, films):
    reader = Reporter.load(reading_checkpoint, download=False)
    reader._model.lungs.forward = lambda patches, fine: drawn_lungs(len(patches))
    assert reader.draft(films, SHORT).ratio == pytest.approx(0.5)
    lateral = [replace(film, view="LATERAL") for film in films]
    assert reader.draft([lateral[0], films[1]], SHORT).ratio == pytest.approx(0.5)
    assert reader.draft(lateral, SHORT, StudyConfig(laterals=True)).ratio is None


# ------------------------------------------------------------------------------------------------ did the film matter?

DECIDES = 6  # patch (1, 2) of 4 × 4


class OnePatch(torch.nn.Module):
    """A tower that sees nothing but whether one patch has the grain of a film: 0.23 and more here, 0.07 where it was filled in."""

    def __init__(self, sees: bool) -> None:
        super().__init__()
        self.sees = sees

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        uneven = images[:, 0, 16:32, 32:48].diff(n=2, dim=-1).abs().mean((1, 2)) > 0.15
        direction = torch.randn(17, 16, generator=torch.Generator().manual_seed(1))
        return (uneven * self.sees)[:, None, None] * direction

    def with_fine(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self(images), None


@pytest.fixture(params=[True, False], ids=["one patch decides", "the film is ignored"])
def rigged(request, checkpoint, films) -> tuple[Reporter, bool]:
    reporter = Reporter.load(checkpoint, download=False)
    reporter._model.visual_encoder = OnePatch(request.param)
    return reporter, request.param


def looking_at(draft, patch: int):
    """The draft with all of its attention on one patch."""
    attention = np.zeros_like(draft.tokens[0].attention)
    attention[:, patch] = 1
    nothing = np.zeros_like(draft.tokens[0].on_findings)
    tokens = tuple(replace(token, attention=attention, on_findings=nothing) for token in draft.tokens)
    return replace(draft, tokens=tokens)


def test_the_place_that_decides_a_sentence_matters_and_no_other_does(rigged, films):
    reporter, sees = rigged
    draft = reporter.draft(films[:1], SHORT)
    right = reporter.why(films[:1], looking_at(draft, DECIDES), 0)
    assert right.patches == (DECIDES,)
    assert len(right.random) == 15  # every other patch
    most = 2 * rounding(right.log_prob, additions(reporter._model))  # two readings
    np.testing.assert_allclose(right.random, 0, atol=most)
    assert right.matters == sees
    assert (right.drop > 0.1) == sees
    wrong = reporter.why(films[:1], looking_at(draft, 0), 0)
    assert wrong.patches == (0,)
    assert wrong.drop == pytest.approx(0, abs=most)
    assert max(wrong.random) == pytest.approx(right.drop, abs=most)
    assert not wrong.matters


def test_a_text_is_told_from_one_that_ignores_its_film(rigged, films):
    reporter, sees = rigged
    found = reporter.looking(films[:1], reporter.draft(films[:1], SHORT))
    if sees:  # noise and another chest have their grain too
        assert found.blank > 0.05
        assert found.noise == pytest.approx(0, abs=1e-4)
    else:
        assert not found.looks
        assert (found.blank, found.noise, found.swapped) == pytest.approx((0, 0, 0), abs=1e-5)
        assert "barely depends on its film" in found.verdict


def read_alone(reporter, images: np.ndarray, draft, first: int, last: int, prompt: np.ndarray | None = None) -> float:
    """Log-probability of draft.tokens[first:last] under views (w, 3, s, s), read in the plainest way. prompt: the views that stand there."""
    model = reporter._model
    with torch.inference_mode():
        film = model.encode(torch.from_numpy(images)[None])
        if prompt is not None:
            film = replace(film, in_prompt=model.encode(torch.from_numpy(prompt)[None]).in_prompt)
        return float(model.log_probs(film, torch.tensor([[t.id for t in draft.tokens]]))[0, first:last].sum())


@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_every_view_is_masked_at_the_same_patches_and_the_same_words_are_read_again(
    reporter, reader, films, count, findings
):
    """What is hidden is hidden from the hybrid layers, and what is read of the film is read again; the prompt stays."""
    films, reporter = films[:count], reader if findings else reporter
    draft = reporter.draft(films, SHORT)
    first, last = draft.sentences[0].tokens
    found = reporter.why(films, draft, 0)
    region = np.isin(np.arange(16), found.patches)
    images = np.stack([model_input(film, 64) for film in films])
    hidden = masked(images, region)
    own, without = (read_alone(reporter, seen, draft, first, last, prompt=images) for seen in (images, hidden))
    assert found.log_prob == pytest.approx(own, abs=1e-3)
    assert found.log_prob == pytest.approx(sum(t.log_prob for t in draft.tokens[first:last]), abs=1e-3)
    assert found.drop == pytest.approx(own - without, abs=1e-3)
    assert found.whole == pytest.approx(own - read_alone(reporter, hidden, draft, first, last), abs=1e-3)
    assert (found.whole == found.drop) == findings  # there the prompt holds no film
    assert np.ptp(found.random) > 0


def test_why_tells_what_becomes_of_the_finding_that_the_sentence_speaks_of(reader, films):
    draft = reader.draft(films[:1], SHORT)

    def about(*names: str):
        sentence = replace(draft.sentences[0], findings=names)
        return reader.why(films[:1], replace(draft, sentences=(sentence,)), 0, regions=8)

    found = about("fracture", "heart")  # the first that is assessed
    assert found.finding == "heart"
    assert found.probability == pytest.approx(draft.finding("heart").probability, abs=1e-5)
    region = np.isin(np.arange(16), found.patches)
    with torch.inference_mode():
        film = reader._model.encode(torch.from_numpy(masked(model_input(films[0], 64), region))[None, None])
    (hidden,) = (f.probability for f in film.findings[0] if f.name == "heart")
    assert found.hidden == pytest.approx(hidden, abs=1e-5)
    assert found.hidden != found.probability != found.elsewhere
    assert "The probability of enlarged heart goes from" in found.verdict
    for none in (about("fracture"), about()):
        assert (none.finding, none.probability, none.hidden, none.elsewhere) == (None, None, None, None)
    assert about("fracture").drop == about().drop


def test_a_draft_of_a_model_that_reads_findings_can_be_asked_whether_it_looks(reader, films):
    found = reader.looking(films, reader.draft(films, SHORT))
    assert min(map(abs, (found.blank, found.noise, found.swapped))) > 1e-4
    assert found.gate > 0


def test_the_order_in_which_the_views_are_given_back_does_not_matter(reporter, films):
    draft = reporter.draft(films, SHORT)
    there, back = (reporter.why(given, draft, 0, regions=8) for given in (films, films[::-1]))
    assert there.drop == pytest.approx(back.drop, abs=1e-4)


def test_a_seed_repeats_the_tests_and_another_takes_other_places(reporter, films):
    draft = reporter.draft(films[:1], SHORT)
    for ask in (partial(reporter.why, sentence=0, regions=8), reporter.looking):
        one, again, other = (ask(films[:1], draft, seed=seed) for seed in (3, 3, 4))
        assert one == again != other


def test_tokens_that_the_model_did_not_choose_do_not_count(reporter, films):
    draft = reporter.draft(films[:1], SHORT)
    first, last = draft.sentences[0].tokens
    assert last - first > 1
    forced = replace(draft, tokens=tuple(replace(t, forced=i == first) for i, t in enumerate(draft.tokens)))
    whole, part = (reporter.why(films[:1], given, 0).log_prob for given in (draft, forced))
    assert whole - part == pytest.approx(draft.tokens[first].log_prob, abs=1e-3)
    counted, fewer = (reporter.looking(films[:1], given) for given in (draft, forced))
    assert (counted.tokens, fewer.tokens) == (len(draft.tokens), len(draft.tokens) - 1)
    assert counted.blank != fewer.blank
    none = replace(draft, tokens=tuple(replace(t, forced=True) for t in draft.tokens))
    with pytest.raises(EmrrgError, match="empty"):
        reporter.looking(films[:1], none)


def test_progress_is_told_up_to_the_last_reading(reporter, films):
    draft, told = reporter.draft(films[:1], SHORT), []
    reporter.why(films[:1], draft, 0, regions=12, progress=lambda done, of: told.append((done, of)))
    assert told == [(11, 14), (14, 14)]
    told.clear()
    reporter.looking(films[:1], draft, progress=lambda done, of: told.append((done, of)))
    assert told == [(4, 4)]


def test_a_sentence_without_a_map_cannot_be_tested(reporter, films):
    draft = reporter.draft(films[:1], SHORT)
    shut = replace(draft, tokens=tuple(replace(t, gates=(0.0, 0.0)) for t in draft.tokens))
    assert reporter.why(films[:1], shut, 0) is None
    assert reporter.looking(films[:1], shut).gate == 0


def test_what_cannot_be_tested_is_refused_with_what_to_do(reporter, films):
    draft = reporter.draft(films[:1], SHORT)
    for number in (-1, len(draft.sentences)):
        with pytest.raises(EmrrgError, match=f"there is no sentence {number}"):
            reporter.why(films[:1], draft, number)
    with pytest.raises(ConfigError, match="At least 8 random regions"):
        reporter.why(films[:1], draft, 0, regions=7)
    for given in (films[1:], films, []):
        for ask in (lambda given: reporter.why(given, draft, 0), lambda given: reporter.looking(given, draft)):
            with pytest.raises(FilmError, match="not the films that this draft was written about"):
                ask(given)
    for key in ("checkpoint_sha256", "language_model_sha256"):
        foreign = replace(draft, model=draft.model | {key: "0" * 64})
        with pytest.raises(EmrrgError, match="another checkpoint or language model"):
            reporter.looking(films[:1], foreign)


def test_what_the_tests_found_is_plain_data(reporter, films):
    draft = reporter.draft(films, SHORT)
    for found in (reporter.why(films, draft, 0), reporter.looking(films, draft)):
        again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert again == found.to_dict()
        assert again["verdict"] == found.verdict


# ------------------------------------------------------------------------------------------- Impression from these findings


def test_an_impression_is_written_about_what_the_text_says_and_not_about_what_was_read(
    reading_checkpoint, films, monkeypatch
):
    reader = Reporter.load(reading_checkpoint, download=False)
    draft = reader.draft(films, SHORT)
    asked, usual = [], reader._model.project
    monkeypatch.setattr(reader._model, "project", lambda seen, said=None: asked.append(said) or usual(seen, said))
    text = "There is a left pleural effusion. No nodule."
    with suppress(EmrrgError):  # a tiny model may find no words
        reader.impression(films[::-1], draft, text)
    assert asked == [[told(draft.read, text)[0]]]


def test_an_impression_needs_findings_the_drafts_films_and_a_checkpoint_that_reads(reading_checkpoint, reporter, films):
    reader = Reporter.load(reading_checkpoint, download=False)
    draft = reader.draft(films, SHORT)
    with pytest.raises(EmrrgError, match="Write the Findings first"):
        reader.impression(films, draft, " ")
    with pytest.raises(FilmError, match="not the films"):
        reader.impression(films[:1], draft, "Clear lungs.")
    with pytest.raises(EmrrgError, match="reads no findings"):
        reporter.impression(films, reporter.draft(films, SHORT), "Clear lungs.")


# --------------------------------------------------------------------------------------------------- findings are switched


def write_instead(reader: Reporter, *texts: str) -> None:
    """From now on the model writes these, one after the other, and then nothing, whatever it sees."""
    model = reader._model
    end = model.tokenizer.eos_token_id
    script = iter([t for text in texts for t in [*model.tokenizer.encode(text, add_special_tokens=False), end]])
    model.llm.lm_head.register_forward_hook(
        lambda _m, _i, logits: logits.index_fill(1, torch.tensor([next(script, end)]), 99.0)
    )


@pytest.mark.parametrize("findings", [None, "There is a nodule in the left lung."])
def test_a_draft_is_written_anew_about_what_the_reader_says_as_it_was_written(
    reading_checkpoint, films, monkeypatch, findings
):
    reader = Reporter.load(reading_checkpoint, download=False)
    draft = reader.draft(films, replace(SHORT, repetition_penalty=1.5))
    asked, usual = [], reader._model.project
    monkeypatch.setattr(reader._model, "project", lambda seen, said=None: asked.append(said) or usual(seen, said))
    streamed, engine = [], reader._engine.stream
    monkeypatch.setattr(
        reader._engine, "stream", lambda see, how, *a, **k: streamed.append(how) or engine(see, how, *a, **k)
    )
    write_instead(reader, "Findings: Right effusion. A nodule. No pneumothorax.\nImpression: Right effusion.")
    said = {"effusion": Said(True, "right"), "nodule": Said(None)}
    written = reader.rewrite(films[::-1], draft, said, findings)
    assert asked == [[switched(draft.read, said, findings)]]
    assert [(how.repetition_penalty, how.max_new_tokens) for how in streamed] == [(1.5, 160)]
    assert (written.findings, written.impression) == ("Right effusion. No pneumothorax.", "Right effusion.")
    assert (written.changed, written.missed) == (said, ())


def test_a_finding_that_the_model_passes_over_is_written_alone_and_then_without_its_side(
    reading_checkpoint, films, monkeypatch
):
    reader = Reporter.load(reading_checkpoint, download=False)
    draft = reader.draft(films, SHORT)
    asked, usual = [], reader._model.project
    monkeypatch.setattr(reader._model, "project", lambda seen, said=None: asked.append(said[0]) or usual(seen, said))
    texts = ("No effusion. Cardiomegaly.", "No effusion.", "There is an effusion. A nodule.")
    write_instead(reader, *(f"Findings: {text}\nImpression: {text}" for text in texts))
    written = reader.rewrite(films, draft, {"effusion": Said(True, "left")})
    assert (written.findings, written.impression) == ("There is an effusion. Cardiomegaly.",) * 2
    assert written.missed == ()
    told = [{f.name: (f.presence, f.side) for f in said if f.presence is not OPEN} for said in asked]
    assert told[1:] == [{"abnormal": (PRESENT, ""), "effusion": (PRESENT, side)} for side in ("left", "")]
    write_instead(reader)
    with pytest.raises(EmrrgError, match="wrote nothing"):
        reader.rewrite(films, draft, {"effusion": Said(True)})


def test_what_is_never_denied_is_not_told_to_be_absent(reading_checkpoint, films, monkeypatch):
    reader = Reporter.load(reading_checkpoint, download=False)
    reader._model.calibration.thresholds[LABELS.index("Cardiomegaly"), 2] = 0
    draft = reader.draft(films[:1], SHORT)
    asked, usual = [], reader._model.project
    monkeypatch.setattr(reader._model, "project", lambda seen, said=None: asked.append(said[0]) or usual(seen, said))
    write_instead(reader, "Findings: No effusion.")
    reader.rewrite(films[:1], draft, {"heart": Said(False), "effusion": Said(False)})
    told = {f.name: f.presence for f in asked[0]}
    assert (told["heart"], told["effusion"]) == (OPEN, ABSENT)


def test_what_the_model_reads_of_a_finding_that_is_switched_changes_what_it_writes(reading_checkpoint, films):
    reader = Reporter.load(reading_checkpoint, download=False)
    draft = reader.draft(films[:1], SHORT)
    same = {f.name: Said(f.presence is PRESENT, f.side) for f in draft.read if f.presence is not OPEN}
    there = {f.name: Said(f.presence is not PRESENT) for f in draft.read if f.name != "abnormal"}
    same.pop("abnormal", None)
    texts = []
    for said in (same, there):
        with suppress(EmrrgError):
            written = reader.rewrite(films[:1], draft, said)
            texts.append((written.findings, written.impression))
    assert len(set(texts)) == 2


def test_what_cannot_be_switched_is_refused_before_anything_is_written(
    reading_checkpoint, reporter, films, monkeypatch
):
    reader = Reporter.load(reading_checkpoint, download=False)
    draft = reader.draft(films, SHORT)
    monkeypatch.setattr(reader._engine, "stream", None)
    on = {"effusion": Said(True)}
    with pytest.raises(FilmError, match="not the films"):
        reader.rewrite(films[:1], draft, on)
    with pytest.raises(EmrrgError, match="does not assess fracture"):
        reader.rewrite(films, draft, {"fracture": Said(True)})
    with pytest.raises(EmrrgError, match="another checkpoint"):
        reporter.rewrite(films, draft, on)
    with pytest.raises(EmrrgError, match="does not write from findings"):
        reporter.rewrite(films, reporter.draft(films, SHORT), on)


@pytest.mark.slow
def test_the_shipped_checkpoint_writes_an_effusion_that_is_switched_on_into_both_sections_and_takes_it_out_again():
    reader = Reporter.load()
    film = reader.read(example_film())
    draft = reader.draft([film])
    report = Report.of(draft)
    texts = [(report.findings, report.impression)]
    for said in (Said(True, "left"), Said(False)):
        written = reader.rewrite([film], draft, {"effusion": said}, report.findings)
        assert written.missed == ()
        report = report.rewrite(written)
        texts.append((report.findings, report.impression))
    stated = [[spoken(text).get("Pleural Effusion") for text in pair] for pair in texts]
    assert not any(one and one.states for one in [*stated[0], *stated[2]])
    assert [(one.states, one.side) for one in stated[1]] == [(True, "left")] * 2
    others = [line.text for line in Report.of(draft).lines]
    assert all(line in pair[0] + pair[1] for pair in texts for line in others)
