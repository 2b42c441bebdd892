"""The calibration of *Is it looking?*: films, stand-ins and other films' texts are measured as the screen will, and compared."""

import json

import numpy as np
import pytest

from emrrg_core import Reporter
from emrrg_core.data.studies import read_studies
from emrrg_core.errors import DataError
from emrrg_core.model import checkpoint as checkpoints
from tests import tiny
from tests.phantom import make_phantom
from train.image_dependence import KINDS, calibrate, main, moves, separation


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    rows = [(make_phantom(i, height=128, width=128), {"split": "val"}) for i in range(4)]
    return tiny.film_set(tmp_path_factory.mktemp("set"), rows)


def test_a_draft_moves_as_far_as_the_screen_will_say(checkpoint, listing, monkeypatch):
    monkeypatch.setattr("train.evaluate.prefers_bfloat16", lambda: False)  # exactly, where the machine would round
    studies = read_studies(listing)
    model, _ = checkpoints.load(checkpoint)
    own, strange = moves(model, studies, batch=3, seed=5)
    assert own.shape == strange.shape == (4, len(KINDS))
    reporter = Reporter.load(checkpoint, download=False)
    film = reporter.read(studies[2].files[0])
    found = reporter.looking([film], reporter.draft([film]), seed=7)
    assert own[2] == pytest.approx([found.blank, found.noise, found.swapped], abs=1e-3)
    assert (own != strange).any(1).all()


def test_one_film_cannot_be_calibrated_on(checkpoint, listing):
    model, _ = checkpoints.load(checkpoint)
    with pytest.raises(DataError, match="two films"):
        moves(model, read_studies(listing)[:1])


def test_the_best_threshold_tells_drafts_from_texts_of_other_films():
    own, strange = np.array([[0.2], [0.3], [0.4], [0.05], [0.25]]), np.array([[0.0], [0.1], [0.02], [0.3]])
    found = calibrate(own.repeat(3, 1), strange.repeat(3, 1))
    assert found["best"] == {
        "threshold": pytest.approx(0.2),
        "drafts_flagged": 0.2,
        "strange_texts_flagged": 0.75,
    }
    assert found["quantiles"]["mean"]["drafts"]["0.5"] == pytest.approx(0.25)


def test_separation_is_one_for_kinds_apart_and_a_half_for_one_kind():
    assert separation(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert separation(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5


def test_the_command_prints_one_card_and_refuses_in_a_line(checkpoint, listing, capsys):
    asked = ["--checkpoint", str(checkpoint), "--films", str(listing), "--limit", "2", "--threads", "1"]
    assert main([*asked, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["n"] == 2
    assert card.keys() >= {
        "checkpoint_sha256",
        "settings_sha256",
        "split",
        "command",
        "quantiles",
        "separation",
        "best",
        "in_use",
    }
    assert main(asked) == 0
    assert "threshold" in capsys.readouterr().out
    assert main([*asked, "--split", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("emrrg: ")
