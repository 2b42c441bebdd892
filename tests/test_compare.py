"""Ways to write a report side by side: the same films, every way with what its drafts say, what learned, and what a draft costs."""

import json
from pathlib import Path

import pytest
import torch

from emrrg_core.config import MemoryConfig
from emrrg_core.errors import ConfigError
from emrrg_core.model import checkpoint as checkpoints
from tests import tiny
from tests.conftest import surely
from tests.phantom import make_phantom
from train import compare
from train.results import prior_page, ways_page


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    rows = []
    for i in range(24):
        phantom = make_phantom(i, height=128, width=128, lesion=("opacity", None)[i % 2])
        rows.append((phantom, {"split": ("train", "val")[i % 3 == 0], "patient": f"p{i}"}))
    return tiny.film_set(tmp_path_factory.mktemp("films"), rows)


@pytest.fixture(scope="module")
def remembering(tmp_path_factory, build, open_gates) -> Path:
    torch.manual_seed(0)
    memory = MemoryConfig(visual=6, report=4, report_width=12, heads=2, head_width=7)
    model = surely(open_gates(build(queries=True, told=False, memory=memory)))
    folder = tmp_path_factory.mktemp("models") / "am"
    return checkpoints.save(model, folder, language={"name": "tiny"}, training={})


@pytest.fixture(scope="module")
def card(films, remembering, checkpoint, language_folder, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("card") / "card.json"
    with out.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        arguments = [
            "--films",
            f"{films}",
            "--reports",
            f"{films.parent / 'reports.jsonl'}",
            "--count",
            "8",
            "--paths",
            "4",
        ]
        models = [f"plain={checkpoint}", f"AM-MRG={remembering}"]
        assert compare.main([*arguments, "--language-model", f"{language_folder}", "--json", *models]) == 0
    return json.loads(out.read_text())


def test_every_way_is_scored_on_the_same_films(card):
    assert card["films"] == 8
    assert set(card["rows"]) == {"plain", "AM-MRG", "report of the nearest film", "the same report always"}
    for row in card["rows"].values():
        assert row["scores"]["normal_balanced_accuracy"]["n"] == 8
        assert "texts" not in row, "a card holds no text"


def test_a_model_tells_what_learned_and_what_a_draft_costs_and_a_report_of_the_shelf_does_not(card):
    assert card["rows"]["plain"]["trainable"] > 0
    assert card["rows"]["plain"]["times"] == 1
    assert card["rows"]["AM-MRG"]["times"] > 0
    assert "times" not in card["rows"]["the same report always"]


def test_a_card_is_gone_on_with_on_the_same_films_only(
    card, films, remembering, checkpoint, language_folder, tmp_path, capsys
):
    (tmp_path / "card.json").write_text(json.dumps(card))
    arguments = ["--films", f"{films}", "--reports", f"{films.parent / 'reports.jsonl'}", "--paths", "4", "--json"]
    arguments += ["--language-model", f"{language_folder}", "--add", f"{tmp_path / 'card.json'}"]
    models = [f"plain={checkpoint}", f"another={checkpoint}"]
    assert compare.main([*arguments, "--count", "8", *models]) == 0
    more = json.loads(capsys.readouterr().out)
    assert [*more["rows"]] == [*card["rows"], "another"]
    assert more["rows"]["plain"] == card["rows"]["plain"]
    assert more["rows"]["another"]["times"] > 0
    assert more["rows"]["another"]["scores"] == card["rows"]["plain"]["scores"]
    with pytest.raises(ConfigError, match="other films"):
        compare.main([*arguments, "--count", "6", *models])


def test_what_the_memory_changes_is_in_the_card(card):
    assert {"memory_off", "memory_other", "disease_other", "gates_zero"} <= card["rows"]["AM-MRG"]["paths"].keys()
    assert "paths" not in card["rows"]["plain"]


def test_the_table_has_a_row_a_way_and_the_paths_of_the_memory(card):
    page = ways_page(card)
    assert page.count("\n| ") >= 1 + len(card["rows"]) + 5
    assert "| plain |" in page
    assert "1.0 ×" in page
    assert "| memory: off |" in page


def test_a_model_needs_a_name():
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        compare.main(["--films", "f", "--reports", "r", "folder"])
    with pytest.raises(ConfigError, match="at least one model"):
        compare.main([])


def test_the_page_of_a_prior_film_says_what_is_told_and_what_is_right():
    def score(value: float | None, n: int) -> dict:
        return {"value": value, "low": value, "high": value, "n": n}

    changes = ("new", "larger", "smaller", "unchanged", "resolved")
    drawn = {name: score(0.5, 40) for name in ("told", "right", "read", "told_of_read", "follows")}
    drawn |= {
        f"{kind}_{change}": score(None if change == "new" else 0.25, 8)
        for kind in ("told", "right")
        for change in changes
    }
    drawn["paths"] = {
        name: {k: score(0.1, 20) for k in ("kept", "of_other", "none")} for name in ("prior_other", "gates_zero")
    }
    real = {"new": {"pairs": 11, "new": 3, "resolved": 0, "neither": 8}}
    page = prior_page({"real": real, "pairs": 40, "drawn": drawn, "still": score(0.0, 6), "unpaired": score(0.0, 937)})
    assert "| new | – | – |" in page
    assert "937" in page
    assert "| new | 11 | 3 | 0 |" in page
    assert "another pair's prior film" in page
