"""The phrasebook of a checkpoint: what it is asked to write about, and that it is kept."""

import numpy as np
import pytest

from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, PLACED_BY, SIDES, ZONES, Presence
from emrrg_core.model.proposals import FILE, Phrasebook, keys
from tests.conftest import surely
from train import phrases
from train.phrases import alone, learn, main, nothing, told
from train.report_templates import tell

OTHERS = ["opacity", "nodule", "effusion", "heart"]


def test_a_finding_alone_is_told_at_every_place_in_every_form():
    found = list(alone("opacity", OTHERS, ["nodule"]))
    forms = {(f.side, f.zone, f.pneumonia) for mine in found for f in mine if f.name == "opacity"}
    places = {(side, zone) for side in SIDES for zone in ZONES if side or not zone}
    assert forms == {(*place, pneumonia) for place in places for pneumonia in (False, True)}
    for mine in found:
        presence = {f.name: f.presence for f in mine}
        assert presence == {
            ABNORMAL: "present",
            "opacity": "present",
            "nodule": "absent",
            "effusion": "open",
            "heart": "open",
        }
    assert {f.severity for mine in alone("effusion", OTHERS, []) for f in mine if f.name == "effusion"} >= {
        "",
        "mild",
        "severe",
    }


def test_without_a_finding_every_choice_of_what_is_denied_is_told():
    found = list(nothing(OTHERS, ["opacity", "effusion"]))
    assert len(found) == 4 * 3
    assert len({tuple(f.presence for f in mine) for mine in found}) == 12


def test_what_is_told_covers_all_that_a_draft_can_say_of_one_finding(build):
    model = surely(build(queries=True))
    drafted = told(model, 5, np.random.default_rng(0))
    assessed = [name for name in NAMES if model.calibration.assessed(name) and name != ABNORMAL]
    stated = {f.name for mine in drafted for f in mine if f.presence is Presence.PRESENT}
    assert stated == {*assessed, ABNORMAL}
    assert {f.side for mine in drafted for f in mine if f.name in PLACED_BY} == set(SIDES)


def test_the_book_is_learned_from_what_the_model_writes_and_kept(build, monkeypatch, capsys, tmp_path):
    """A model of our own words: each draft is what the templates say of its findings."""
    model = surely(build(queries=True))
    rng = np.random.default_rng(0)
    drawn = []

    def writes(_model, film, _config, _book):
        drawn.append(len(film))
        found = [tell(mine, rng) for mine in film.findings]
        return [type("W", (), {"text": f"Findings: {' '.join(f)}\nImpression: {' '.join(i)}"}) for f, i in found]

    monkeypatch.setattr(phrases, "write", writes)
    films = [np.random.default_rng(i).standard_normal((3, 64, 64)).astype(np.float32) for i in range(3)]
    book = learn(model, 8, films)
    assert drawn[-1] == 3
    assert "drafts" in capsys.readouterr().out
    for mine in told(model, 0, rng):
        for section, wanted in keys(mine).items():
            for key in wanted:
                assert book.wordings[f"{section}: {key}"]
    book.save(tmp_path)
    assert Phrasebook.load(tmp_path, model.tokenizer) == book


@pytest.mark.slow
def test_the_program_writes_beside_the_weights(reading_checkpoint, tmp_path, monkeypatch):
    import shutil

    folder = shutil.copytree(reading_checkpoint, tmp_path / "copy")
    monkeypatch.setattr(phrases, "told", lambda model, count, rng: list(nothing(OTHERS, []))[:count])
    main(["--checkpoint", str(folder), "--random", "2"])
    assert (folder / FILE).is_file()
