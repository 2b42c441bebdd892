"""The detector of chest films: what it refuses a reader may overrule, and what it doubts stands in the draft."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file

from emrrg_core import DecodeConfig, Draft, Film, FilmError, Reporter, read_film
from emrrg_core.__main__ import main as command_line
from emrrg_core.config import StudyConfig
from emrrg_core.errors import CheckpointError
from emrrg_core.films.film_check import FILE, KINDS, Detector, FilmCheck
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.reporter import DEFAULT_CHECKPOINT
from tests import tiny
from tests.phantom import make_phantom
from train import film_check as fitting
from train.film_check import Picture, fit, limit

SHORT = DecodeConfig(max_new_tokens=12)
PATCHES, WIDTH = 16, 16  # of the tiny tower


def clouds(seed: int, each: int = 40) -> tuple[torch.Tensor, list[Picture]]:
    """Patch tokens that differ by kind, as pictures of each kind would have them: (kinds · each, PATCHES, WIDTH)."""
    centres = torch.randn(len(KINDS), PATCHES, WIDTH, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(len(KINDS), each, PATCHES, WIDTH, generator=torch.Generator().manual_seed(seed))
    found = [
        Picture(kind, f"films, {kind}" if kind != "other" else "noise", np.zeros((1, 1), np.uint8)) for kind in KINDS
    ]
    return (centres[:, None] + 0.4 * noise).flatten(0, 1), [picture for picture in found for _ in range(each)]


@pytest.fixture(scope="module")
def detector() -> Detector:
    made = fit(*clouds(1), weights="0" * 64)
    limit(made, *clouds(2))
    return made


def at(checkpoint: Path, folder: Path, made: Detector | None) -> Reporter:
    """A reporter of the same weights, with that detector beside them."""
    home = folder / "with-looks"
    home.mkdir()
    for file in ("config.json", "model.safetensors"):
        (home / file).symlink_to(checkpoint / file)
    if made:
        made.save(home / FILE)
    return Reporter.load(home, download=False)


def taking_all_for(kind: str, checkpoint: Path) -> Detector:
    """A detector of the tiny checkpoint that sees one kind everywhere."""
    made = fit(*clouds(1), weights=checkpoints.fingerprint(checkpoint))
    made.tensors["weight"] = torch.zeros_like(made.tensors["weight"])
    made.tensors["bias"] = 20.0 * (torch.arange(len(KINDS)) == KINDS.index(kind)).float()
    made.tensors["limits"] = torch.full((len(KINDS) + 1,), 0.5)
    made.tensors["limits"][-1] = torch.inf
    return made


@pytest.fixture
def film(tmp_path) -> Film:
    make_phantom(1, height=160, width=140).save_png(tmp_path / "film.png")
    return read_film(tmp_path / "film.png", name="Film 1")


# ------------------------------------------------------------------------------------------------------- the detector


def test_each_kind_is_told_from_every_other_one(detector):
    tokens, found = clouds(3)
    judged = detector(tokens)
    assert np.mean([looks.kind == picture.kind for looks, picture in zip(judged, found, strict=True)]) > 0.97
    assert all(looks.chest is (looks.kind != "other") for looks in judged)
    assert all(sum(looks.chances.values()) == pytest.approx(1, abs=1e-5) for looks in judged)


def test_what_was_never_seen_and_lies_far_from_every_chest_film_is_refused(detector):
    strange = 6 * torch.randn(20, PATCHES, WIDTH, generator=torch.Generator().manual_seed(9))
    assert not any(looks.chest for looks in detector(strange))


def test_a_doubt_below_the_limit_is_no_doubt():
    made = fit(*clouds(1), weights="")
    made.tensors["limits"] = torch.full((len(KINDS) + 1,), torch.inf)
    assert {looks.kind for looks in made(clouds(3)[0])} == {"frontal"}


def test_limits_leave_nearly_every_chest_film_alone(detector):
    tokens, found = clouds(2)
    refused = [
        not looks.chest for looks, picture in zip(detector(tokens), found, strict=True) if picture.kind != "other"
    ]
    assert np.mean(refused) <= 0.02
    assert (detector.tensors["limits"][1:-1] >= 0.5).all()


def test_a_detector_comes_back_as_it_was_saved(detector, tmp_path):
    detector.save(tmp_path / FILE)
    again = Detector.load(tmp_path)
    assert again.weights == detector.weights
    assert len(again.sha256) == 64
    tokens, _ = clouds(4)
    assert [looks.chances for looks in again(tokens)] == [looks.chances for looks in detector(tokens)]
    assert Detector.load(tmp_path / "nowhere") is None


def test_a_damaged_detector_says_what_to_do(detector, tmp_path):
    detector.save(tmp_path / FILE)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"Fit it again with train\.film_check"):
        Detector.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_words(kind):
    looks = FilmCheck(dict.fromkeys(KINDS, 0.0), kind, kind != "other")
    assert looks.verdict
    words = looks.warning("Film 2")
    assert (words is None) is (kind == "frontal")
    assert words is None or words.startswith("Film 2 ")


def test_a_mirrored_film_is_not_to_be_flipped_for_that_alone():
    words = FilmCheck({}, "mirrored", True).warning("Film 1")
    assert "dextrocardia" in words
    assert "side marker" in words


# -------------------------------------------------------------------------------------------------------- the reporter


def test_what_is_no_chest_film_is_refused_and_a_reader_may_overrule_it(checkpoint, film, tmp_path):
    reporter = at(checkpoint, tmp_path, taking_all_for("other", checkpoint))
    with pytest.raises(FilmError, match="does not look like a chest film") as caught:
        reporter.read(tmp_path / "film.png")
    assert caught.value.rule == "looks"
    assert caught.value.overridable
    taken = reporter.read(tmp_path / "film.png", anyway=["looks"])
    assert taken.overridden == ("looks",)
    assert any("rule looks overridden" in step for step in taken.steps)
    assert reporter.check(taken) is taken, "asked once is enough"
    draft = reporter.draft([taken], SHORT)
    assert draft.films[0].overridden == ("looks",)
    assert json.loads(json.dumps(draft.to_dict()))["films"][0]["overridden"] == ["looks"]
    assert any("refused (looks)" in warning for warning in draft.warnings)
    assert Draft.load(*draft.dump()).films == draft.films


def test_a_draft_kept_before_there_were_overrides_is_still_read(checkpoint, film, tmp_path):
    record, numbers = at(checkpoint, tmp_path, None).draft([film], SHORT).dump()
    del record["films"][0]["overridden"]
    assert Draft.load(record, numbers).films[0].overridden == ()


@pytest.mark.parametrize("kind", KINDS)
def test_doubts_stand_in_the_draft(checkpoint, film, tmp_path, kind):
    reporter = at(checkpoint, tmp_path, taking_all_for(kind, checkpoint))
    looks = reporter.check_film(film)
    assert looks.kind == kind
    words = looks.warning("Film 1")
    warnings = reporter.draft([film], SHORT, StudyConfig(laterals=True)).warnings
    assert words is None or words in warnings
    assert kind != "frontal" or not any("Film 1 " in warning for warning in warnings)


def test_a_header_that_says_lateral_is_not_doubted_again(checkpoint, film, tmp_path):
    reporter = at(checkpoint, tmp_path, taking_all_for("mirrored", checkpoint))
    warnings = reporter.draft([replace(film, view="LATERAL")], SHORT, StudyConfig(laterals=True)).warnings
    assert sum("lateral" in warning for warning in warnings) == 1
    assert not any("mirrored" in warning for warning in warnings)


def test_without_a_detector_nothing_is_checked_and_the_names_say_so(checkpoint, film, tmp_path):
    reporter = at(checkpoint, tmp_path, None)
    assert reporter.check_film(film) is None
    assert reporter.check(film) is film
    assert "looks_sha256" not in reporter.names


def test_the_detector_has_a_hash_of_its_own_and_leaves_that_of_the_weights_alone(checkpoint, tmp_path):
    reporter = at(checkpoint, tmp_path, taking_all_for("frontal", checkpoint))
    assert reporter.names["checkpoint_sha256"] == checkpoints.fingerprint(checkpoint)
    assert len(reporter.names["looks_sha256"]) == 64


def test_a_detector_of_other_weights_is_not_used_and_the_draft_says_so(checkpoint, film, tmp_path, detector):
    reporter = at(checkpoint, tmp_path, detector)
    assert reporter.check_film(film) is None
    assert "looks_sha256" not in reporter.names
    assert any("Not checked" in warning for warning in reporter.draft([film], SHORT).warnings)


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    rows = [(make_phantom(i, height=128, width=128), {"split": "train" if i < 12 else "val"}) for i in range(28)]
    rows[3][1]["view"] = rows[20][1]["view"] = "LATERAL"
    return tiny.film_set(tmp_path_factory.mktemp("set"), rows)


def test_the_command_fits_saves_and_writes_its_table(checkpoint, listing, tmp_path, monkeypatch, capsys):
    few = {"frontal": 4, "upside down": 1, "sideways": 1, "mirrored": 1, "other": 2, "phantom": 2}
    monkeypatch.setattr(fitting, "FITTED", few)
    monkeypatch.setattr(fitting, "JUDGED", few)
    document = tmp_path / "refusals.md"
    document.write_text("before\n<!-- looks -->\nold\n<!-- /looks -->\nafter\n", encoding="utf-8")
    asked = ["--checkpoint", str(checkpoint), "--films", str(listing), "--cache", str(tmp_path), "--threads", "1"]
    asked += ["--out", str(tmp_path / FILE), "--docs", str(document)]
    assert fitting.main(asked) == 0
    assert Detector.load(tmp_path).weights == checkpoints.fingerprint(checkpoint)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for row in ("films, frontal", "films, lateral", "phantoms", "CT slices", "limbs and hips", "photographs"):
        assert f"| {row}" in text
    assert "of 2 |" in next(line for line in text.splitlines() if line.startswith("| films, lateral"))
    capsys.readouterr()
    (tmp_path / "refusals.md").write_text("no place for a table", encoding="utf-8")
    assert fitting.main(asked) == 2
    assert capsys.readouterr().err.startswith("emrrg: ")


def test_the_command_line_hints_at_the_override_and_records_it(checkpoint, tmp_path, capsys):
    leg = get_testdata_file("RG3_UNCR.dcm", download=False)
    asked = ["draft", leg, "--json", "--checkpoint", str(checkpoint)]
    assert command_line(asked) == 2
    assert "add --anyway" in capsys.readouterr().err
    assert command_line([*asked, "--anyway"]) == 0
    assert json.loads(capsys.readouterr().out)["films"][0]["overridden"] == ["body-part"]


def test_a_batch_takes_the_override_for_every_film(checkpoint, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "leg.dcm").symlink_to(get_testdata_file("RG3_UNCR.dcm", download=False))
    for out, more in (("refused.jsonl", []), ("taken.jsonl", ["--anyway"])):
        command_line(
            ["batch", str(tmp_path / "films"), "--out", str(tmp_path / out), "--checkpoint", str(checkpoint), *more]
        )
    refused, taken = (json.loads((tmp_path / name).read_text()) for name in ("refused.jsonl", "taken.jsonl"))
    assert "EXTREMITY" in refused["error"]
    assert taken["error"] is None
    assert taken["films"][0]["overridden"] == ["body-part"]


# ------------------------------------------------------------------------------------------------ the shipped detector


@pytest.fixture(scope="module")
def shipped() -> Reporter:
    if not (DEFAULT_CHECKPOINT / FILE).is_file():
        pytest.skip("no detector lies beside the shipped checkpoint")
    return Reporter.load()


def test_the_shipped_detector_is_that_of_the_shipped_weights(shipped):
    assert "looks_sha256" in shipped.names


def test_the_shipped_detector_knows_chests_from_what_is_none(shipped):
    chest = shipped.read(get_testdata_file("RG1_UNCR.dcm", download=False))
    assert shipped.check_film(chest).chest
    for name in ("RG3_UNCR.dcm", "CT_small.dcm", "MR2_J2KR.dcm", "mlut_18.dcm"):
        with pytest.raises(FilmError) as caught:
            shipped.read(get_testdata_file(name, download=False), anyway=["modality", "body-part"])
        assert caught.value.rule == "looks"
    noise = replace(chest, pixels=np.random.default_rng(0).random((300, 260)).astype(np.float32))
    assert not shipped.check_film(noise).chest


def test_the_shipped_detector_sees_which_way_up_a_real_film_hangs(shipped):
    film = shipped.read(get_testdata_file("RG1_UNCR.dcm", download=False))
    for turned, kind in ((film.pixels[::-1, ::-1], "upside down"), (film.pixels.T, "sideways")):
        assert shipped.check_film(replace(film, pixels=np.ascontiguousarray(turned))).kind == kind


def test_the_shipped_detector_takes_phantoms_for_chest_films(shipped):
    """They are the examples of the teaching room, and drawn to look so."""
    for seed in range(4):
        assert shipped.check_film(Film("Film 1", make_phantom(seed).pixels, None, None, (), "0", "PNG")).chest
