"""The prior film: what has changed is told with one and only with one, and only where it agrees with what was read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emrrg_core import DecodeConfig, Film, FilmError, Reporter
from emrrg_core.__main__ import main
from emrrg_core.config import StudyConfig, Views
from emrrg_core.errors import CheckpointError, EmrrgError
from emrrg_core.films.synthetic_findings import Sign, draw
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model import prior_film
from emrrg_core.model.emrrg import PRIOR, Emrrg, FilmTokens
from emrrg_core.model.finding_tokens import NAMES, Earlier, Finding, Presence
from emrrg_core.model.generation import write
from emrrg_core.model.prior_film import CHANGES, COMPARED, NUMBERS, ChangeReader, PriorFilm
from emrrg_core.report.draft import Draft, compose
from emrrg_core.report.told import told
from emrrg_core.reporter import differences
from emrrg_core.text.changes import Change, changes
from emrrg_core.text.labeler import LABELS
from tests.phantom import make_phantom
from train import prior as program
from train.finetune import said
from train.paths import changes as exchanges
from train.report_templates import made_up, tell, with_prior

SHORT = DecodeConfig(max_new_tokens=12)
PRESENT, ABSENT, OPEN = Presence.PRESENT, Presence.ABSENT, Presence.OPEN


@pytest.fixture
def comparing(reading) -> Emrrg:
    """A model that reads findings, with a prior film's part that has not learned, its weights moved so that nothing hides behind a start."""
    torch.manual_seed(4)
    reading.prior = (
        PriorFilm(reading.llm.config.hidden_size, reading.hybrid, reading.config.hybrid).eval().requires_grad_(False)
    )
    reading.prior.start(
        reading.hybrid, reading.finding_tokens, lambda word: torch.randn(reading.llm.config.hidden_size)
    )
    reading.prior.reader.least.fill_(0.0)
    return reading


def seen(model: Emrrg, images: torch.Tensor) -> tuple:
    """Two sets of films as seen: now, before."""
    with torch.no_grad():
        return model.see(images), model.see(images.flip(0))


def compared(model: Emrrg, images: torch.Tensor) -> FilmTokens:
    """Films in which everything is read, and of each finding some change."""
    now, before = seen(model, images)
    return model.project(now, model.compare(replace(now, logits=now.logits + 10), before))


# ------------------------------------------------------------------------------------------------- what the model sees


def test_without_a_prior_film_nothing_is_different(comparing, images):
    film = comparing.encode(images)
    assert film.prior_tokens is None
    ids = torch.tensor([[5, 9, 3]] * len(film))
    with torch.no_grad():
        own = comparing.log_probs(film, ids)
        comparing.prior = None
        assert torch.equal(comparing.log_probs(comparing.encode(images), ids), own)


def test_the_hybrid_layers_see_the_prior_films_findings_through_keys_of_their_own(comparing, images):
    film = compared(comparing, images)
    visual = comparing.precompute_keys_values(film)
    assert PRIOR not in visual.sizes
    assert visual.beside.sizes == {PRIOR: len(NAMES)}
    ids = torch.tensor([[5, 9, 3]] * len(film))
    own = comparing.log_probs(film, ids)
    assert (comparing.log_probs(film.without_prior(), ids) - own).abs().max() > 1e-4
    with torch.no_grad():  # the film's own layers are not theirs
        comparing.prior.layers["0"].kv_proj.weight.add_(1.0)
    assert (comparing.log_probs(film, ids) - own).abs().max() > 1e-4
    now, _ = seen(comparing, images)
    alone = comparing.project(replace(now, logits=now.logits + 10))
    assert torch.equal(comparing.log_probs(film.without_prior(), ids), comparing.log_probs(alone, ids))


def test_a_study_with_a_prior_film_and_one_without_are_written_side_by_side_as_alone(comparing, images):
    with_one, without = compared(comparing, images).select([0]), comparing.encode(images).select([1])
    both = FilmTokens.join([without, with_one])
    assert both.prior_read.any(1).tolist() == [False, True]
    alone = [write(comparing, film, SHORT)[0].text for film in (without, with_one)]
    assert [w.text for w in write(comparing, both, SHORT)] == alone
    whole = comparing.precompute_keys_values(without).join(
        [comparing.precompute_keys_values(without), comparing.precompute_keys_values(with_one)]
    )
    assert whole.beside.mask[0].tolist() == [False] * len(NAMES), "nobody sees what is not there"


def test_it_can_be_exchanged_and_withheld(comparing, images):
    film = compared(comparing, images)
    made = exchanges(film, film.select([1, 2, 0]))
    assert film.prior_read.any(1).all()
    assert torch.equal(made["prior_other"].prior_tokens[0], film.prior_tokens[1])
    assert made["prior_other"].findings == film.findings
    assert made["prior_withheld"].prior_tokens is None
    assert torch.equal(made["hybrid_other"].prior_tokens[0], film.prior_tokens[1])


# ----------------------------------------------------------------------------------------------------- what has changed


def sure_of(change: Change, chance: float = 0.9) -> dict[Change, float]:
    rest = (1 - chance) / (len(CHANGES) - 1)
    return {each: chance if each is change else rest for each in CHANGES}


@pytest.mark.parametrize(
    ("now", "before", "read", "expected"),
    [
        (PRESENT, ABSENT, Change.NEW, Change.NEW),
        (PRESENT, OPEN, Change.NEW, Change.NEW),
        (PRESENT, PRESENT, Change.NEW, None),  # it was there
        (PRESENT, PRESENT, Change.LARGER, Change.LARGER),
        (PRESENT, ABSENT, Change.UNCHANGED, None),  # it was not
        (PRESENT, PRESENT, Change.RESOLVED, None),  # it is there
        (ABSENT, PRESENT, Change.RESOLVED, Change.RESOLVED),
        (ABSENT, OPEN, Change.RESOLVED, None),
        (OPEN, PRESENT, Change.RESOLVED, None),  # what may not be denied has not resolved
        (ABSENT, ABSENT, Change.UNCHANGED, None),
    ],
)
def test_a_change_is_told_only_where_it_agrees_with_what_was_read(now, before, read, expected):
    change, sure = prior_film._told(now, before, sure_of(read), 0.5)
    assert change is expected
    assert sure == (0.9 if expected else 0.0)


def test_below_its_threshold_no_change_is_told():
    assert prior_film._told(PRESENT, PRESENT, sure_of(Change.LARGER, 0.6), 0.7) == (None, 0.0)


def test_only_findings_that_were_taught_have_a_change_and_all_say_what_was_read_before(comparing, images):
    now, before = seen(comparing, images)
    earlier = {f.name: f for f in comparing.compare(before, now)[0]}
    for finding in comparing.compare(now, before)[0]:
        assert finding.earlier.presence is earlier[finding.name].presence
        assert finding.earlier.side == earlier[finding.name].side
        assert finding.change is None or finding.name in COMPARED
    there, gone = (replace(now, logits=now.logits + shift) for shift in (10.0, -10.0))
    told_ = {f.change for mine in comparing.compare(there, there) for f in mine if f.name in COMPARED}
    assert told_ <= {Change.LARGER, Change.SMALLER, Change.UNCHANGED}
    assert None not in told_
    assert {f.change for mine in comparing.compare(gone, there) for f in mine if f.name in COMPARED} == {
        Change.RESOLVED
    }


def test_a_checkpoint_that_has_not_learned_it_says_so(reading, images):
    now, before = seen(reading, images)
    with pytest.raises(RuntimeError, match=r"prior\.safetensors"):
        reading.compare(now, before)


def test_the_reader_of_changes_learns_and_knows_when_it_is_not_sure():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(len(CHANGES), (400,), generator=generator)
    found = torch.randn(400, NUMBERS, generator=generator)
    found[:200, : len(CHANGES)] += 6.0 * torch.eye(len(CHANGES))[target[:200]]  # half of them clear, half noise
    reader = ChangeReader()
    rows = torch.randperm(400, generator=generator)
    result = program.fit(
        reader, (found[rows[:300]], target[rows[:300]]), (found[rows[300:]], target[rows[300:]]), steps=300
    )
    assert 0.1 < result["told"] < 0.9
    with torch.no_grad():
        sure, said_ = reader(found[rows[300:]]).softmax(-1).max(-1)
    right = (said_ == target[rows[300:]])[sure >= reader.least]
    assert float(right.float().mean()) >= program.RIGHT


# ---------------------------------------------------------------------------------------------------- the drawn pairs


@pytest.mark.parametrize("sign", program.SIGNS)
def test_one_generator_draws_the_same_finding_smaller_and_larger(sign):
    phantom = make_phantom(3, height=224, width=224)
    film = np.round(phantom.pixels.astype(np.float32) / phantom.pixels.max() * 255)
    lungs = phantom.lungs > 0
    small, usual, large = (draw(film, lungs, sign, np.random.default_rng(5), growth)[1] for growth in (0.7, 1.0, 1.4))
    assert small.mask.sum() < usual.mask.sum() < large.mask.sum()
    assert small.side is usual.side is large.side
    again = draw(film, lungs, sign, np.random.default_rng(5))[1]
    assert np.array_equal(again.mask, usual.mask)
    if sign is not Sign.EFFUSION:
        centre = [np.argwhere(d.mask > 0.5).mean(0) for d in (small, large)]
        assert np.abs(centre[0] - centre[1]).max() < 8


def test_a_drawn_pair_shows_its_finding_where_its_change_says():
    phantom = make_phantom(3, height=224, width=224)
    film = np.round(phantom.pixels.astype(np.float32) / phantom.pixels.max() * 255)
    found = {}
    for seed in range(40):
        pair = program.drawn_pair([film, film], [phantom.lungs > 0] * 2, [seed])
        found[pair.change] = found.get(pair.change, 0) + 1
        assert pair.now.shape == film.shape
        assert pair.name in COMPARED
    assert set(found) == set(CHANGES)


# ----------------------------------------------------------------------------------------------------------- the words


def test_every_change_is_told_in_words_that_are_read_as_it():
    rng = np.random.default_rng(0)
    names = [*NAMES]
    for _ in range(200):
        findings = with_prior(made_up(names, rng), rng)
        text = compose(*(" ".join(part) for part in tell(findings, rng)))
        assert program.follows(findings, text), text
        assert differences(findings, said(text)) == [], text


def test_without_a_prior_film_no_word_speaks_of_a_change():
    rng = np.random.default_rng(0)
    for _ in range(100):
        findings, impression = tell(made_up([*NAMES], rng), rng)
        assert changes(" ".join([*findings, *impression])) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The left pleural effusion has increased since the last film.", [("Pleural Effusion", Change.LARGER)]),
        ("Stable cardiomegaly.", [("Cardiomegaly", Change.UNCHANGED)]),
        ("No new opacity.", [("Lung Opacity", Change.NEW)]),
        ("The nodule is no longer seen.", [("Lung Lesion", Change.RESOLVED)]),
        ("A nodule larger than 2 cm.", []),
        ("The heart is normal.", []),
    ],
)
def test_words_of_change_are_read(text, expected):
    assert changes(text) == expected


OPACITY = Finding(
    "opacity", PRESENT, 0.9, 0.5, "right", "lower", earlier=Earlier(PRESENT, "right", "lower", Change.LARGER, 0.9)
)
EFFUSION = Finding("effusion", ABSENT, 0.01, 0.5, earlier=Earlier(PRESENT, "left", "", Change.RESOLVED, 0.8))


def test_a_draft_that_says_otherwise_than_was_read_is_warned_of():
    silent = "There is an airspace opacity in the right lower lung. No pleural effusion."
    found = differences([OPACITY, EFFUSION], said(compose(silent, "")))
    assert [words for words in found if "opacity, right lower lung is larger. The draft does not say so" in words]
    assert [words for words in found if "is resolved. The draft does not say so" in words]
    wrong = differences([OPACITY], said(compose("There is a new opacity in the right lower lung.", "")))
    assert [words for words in wrong if "The draft says: new" in words]
    made = differences(
        [replace(OPACITY, earlier=None)], said(compose("There is a new opacity in the right lower lung.", ""))
    )
    assert made == ["The draft says of Lung Opacity: new. No change of it was read."]


def test_an_impression_tells_the_changes_of_the_readers_words_alone():
    found = {f.name: f for f in told([OPACITY, EFFUSION], "Right opacity, new. No effusion.", changes_too=True)[0]}
    assert found["opacity"].change is Change.NEW
    assert found["opacity"].earlier.presence is ABSENT
    assert found["effusion"].change is None
    found = {f.name: f for f in told([OPACITY], "Right opacity.", changes_too=True)[0]}
    assert found["opacity"].earlier is None
    assert told([OPACITY], "Right opacity, new.")[0][0].earlier is None, "of a checkpoint that does not compare"


# ------------------------------------------------------------------------------------------------- files and the one door


def test_it_is_kept_beside_the_weights_and_belongs_to_them(comparing, tmp_path):
    width, hybrid, config = comparing.llm.config.hidden_size, comparing.hybrid, comparing.config.hybrid
    comparing.prior.save(tmp_path, weights="abc")
    again = PriorFilm.load(tmp_path, width, hybrid, config, weights="abc")
    torch.testing.assert_close(again.tables[3].weight, comparing.prior.tables[3].weight, rtol=1e-3, atol=1e-3)
    assert PriorFilm.load(tmp_path, width, hybrid, config, weights="other") is None
    path = tmp_path / prior_film.FILE
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"train\.prior"):
        PriorFilm.load(tmp_path, width, hybrid, config, weights="abc")
    path.unlink()
    assert PriorFilm.load(tmp_path, width, hybrid, config, weights="abc") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reading_checkpoint) -> Path:
    """A checkpoint that compares, whatever it reads."""
    folder = tmp_path_factory.mktemp("comparing") / "c"
    shutil.copytree(reading_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights["calibration.thresholds"][LABELS.index("Lung Opacity")] = 0.0  # in every film, so something to compare
    save_file(weights, folder / "model.safetensors")
    model, _ = checkpoints.load(folder)
    torch.manual_seed(4)
    prior = PriorFilm(model.llm.config.hidden_size, model.hybrid, model.config.hybrid)
    prior.start(model.hybrid, model.finding_tokens, lambda word: torch.randn(model.llm.config.hidden_size))
    prior.reader.least.fill_(0.0)
    prior.save(folder, weights=checkpoints.fingerprint(folder))
    return folder


@pytest.fixture(scope="module")
def reporter(folder) -> Reporter:
    return Reporter.load(folder, download=False)


@pytest.fixture(scope="module")
def films(tmp_path_factory, reporter) -> list[Film]:
    folder = tmp_path_factory.mktemp("films")
    for i in range(3):
        make_phantom(i, height=160, width=160, lesion=("opacity", None, "effusion")[i]).save_png(folder / f"{i}.png")
    return [reporter.read(folder / f"{i}.png", name=f"Film {i}") for i in range(3)]


def test_a_draft_with_a_prior_film_names_it_and_says_what_was_read_in_it(reporter, films):
    assert reporter.reads_prior
    draft = reporter.draft(films[:1], SHORT, prior=films[1:2])
    assert [record.name for record in draft.prior] == ["Film 1"]
    assert draft.prior[0].read
    assert all(finding.earlier for finding in draft.read)
    rows = draft.to_dict()
    assert rows["prior"][0]["sha256"] == films[1].sha256
    assert {row["earlier"]["presence"] for row in rows["read"]} <= {"present", "absent", "open"}
    json.dumps(rows, allow_nan=False)
    alone = reporter.draft(films[:1], SHORT)
    assert alone.prior == ()
    assert not any(finding.earlier for finding in alone.read)
    kept = Draft.load(*(json.loads(json.dumps(part)) if isinstance(part, dict) else part for part in draft.dump()))
    assert kept.read == draft.read
    assert kept.prior == draft.prior


def test_stitched_films_are_compared_as_they_are_and_not_smaller_on_their_canvas(reporter, films, monkeypatch):
    compare, seen_of = reporter._model.compare, []

    def noted(now, *others):
        seen_of.append(now.logits.clone())
        return compare(now, *others)

    monkeypatch.setattr(reporter._model, "compare", noted)
    for views in Views:
        reporter.draft(films[:2], SHORT, StudyConfig(views=views), prior=films[2:])
    assert torch.equal(*seen_of)


def test_a_draft_kept_before_prior_films_were_read_can_be_opened(reporter, films):
    record, numbers = reporter.draft(films[:1], SHORT).dump()
    del record["prior"]
    for row in record["read"]:
        del row["earlier"]
    assert Draft.load(json.loads(json.dumps(record)), numbers).prior == ()


def test_what_is_asked_of_a_draft_later_is_asked_with_its_prior_film(reporter, films):
    tried = [(reporter.draft([a], SHORT, prior=[b]), a) for a in films for b in films if a is not b]
    draft, film = next((draft, film) for draft, film in tried if any(f.change for f in draft.read))
    ids = torch.tensor([[token.id for token in draft.tokens]])
    found = reporter._read(reporter._encode([reporter._images([film])], draft), draft, None)[0]
    written = np.array([token.log_prob for token in draft.tokens])
    np.testing.assert_allclose(found, written, atol=2e-3)
    blind = replace(draft, read=tuple(replace(f, earlier=None) for f in draft.read))
    other = reporter._read(reporter._encode([reporter._images([film])], blind), blind, None)[0]
    assert np.abs(other - written).max() > 1e-3, ids


def test_the_study_itself_and_too_many_are_refused_as_prior(reporter, films):
    with pytest.raises(FilmError, match="earlier than itself"):
        reporter.draft(films[:1], SHORT, prior=films[:1])
    with pytest.raises(FilmError, match="At most 4 prior films"):
        reporter.draft(films[:1], SHORT, prior=[films[1]] * 5)


def test_a_checkpoint_that_does_not_compare_shows_it_and_says_so(reading_checkpoint, films):
    plain = Reporter.load(reading_checkpoint, download=False)
    draft = plain.draft(films[:1], SHORT, prior=films[1:2])
    assert not draft.prior[0].read
    assert [words for words in draft.warnings if "not learned to compare" in words]
    assert draft.text() == plain.draft(films[:1], SHORT).text()


def test_a_prior_film_of_other_weights_is_said(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "c")
    model, _ = checkpoints.load(folder)
    model.prior.save(tmp_path / "c", weights="of others")
    other = Reporter.load(tmp_path / "c", download=False)
    assert not other.reads_prior
    assert [words for words in other._cautions if "Prior films are not read" in words]


def test_the_command_line_takes_a_prior_film(folder, tmp_path, capsys):
    for i in range(2):
        make_phantom(i, height=160, width=160).save_png(tmp_path / f"{i}.png")
    command = ["draft", f"{tmp_path / '0.png'}", "--checkpoint", f"{folder}", "--memory", "off", "--json"]
    assert main([*command, "--prior", f"{tmp_path / '1.png'}"]) == 0
    assert json.loads(capsys.readouterr().out)["prior"][0]["name"] == "Prior film 1"
    assert main([*command, "--prior", f"{tmp_path / 'none.png'}"]) == 2
    assert "Prior film 1:" in capsys.readouterr().err


def test_no_base_no_pairs():
    assert program.bases([]) == []
    with pytest.raises(EmrrgError, match="no normal films"):
        next(program.drawn_pairs(None, [], None, 4, 0))
