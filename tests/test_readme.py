"""What the README shows must run as it stands."""

import json
import re
from pathlib import Path

import pytest
from phantom import make_phantom

import emrrg_core.reporter
from emrrg_core.model.checkpoint import fingerprint, settings_fingerprint
from train import results

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_readmes_python_runs_as_written(block, reading_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(emrrg_core.reporter, "DEFAULT_CHECKPOINT", reading_checkpoint)
    monkeypatch.chdir(tmp_path)
    make_phantom(1, height=160, width=140).save_png(tmp_path / "film.png")
    exec(compile(block, "README.md", "exec"), {})
    assert "not a medical device" in capsys.readouterr().out


def test_the_readme_has_an_example_and_names_both_commands():
    text = README.read_text(encoding="utf-8")
    assert BLOCKS
    assert "make demo" in text
    assert "make test" in text


def test_every_file_that_the_documents_link_to_exists():
    for document in [README, *README.parent.glob("docs/*.md"), README.parent / "MODEL_CARD.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_page_of_results_is_printed_from_the_card_of_the_shipped_checkpoint():
    card = json.loads((ROOT / "docs/results/small.json").read_text())
    shipped = ROOT / "assets/checkpoints/small"
    assert card["checkpoint_sha256"] == fingerprint(shipped)
    assert card["settings_sha256"] == settings_fingerprint(shipped)
    assert results.tables(card) in (ROOT / "docs/results.md").read_text()
