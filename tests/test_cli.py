"""The command line: one JSON object or plain text on stdout, status 0; status 2 with one line on stderr for what can be mended."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from emrrg_core import DISCLAIMER
from emrrg_core.__main__ import main
from emrrg_core.config import VISION_PRESETS
from emrrg_core.explain.heat_map import lay_over, patch_weights
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.finding_tokens import NAMES
from emrrg_core.model.language_model import language_status
from emrrg_core.model.selective_scan import cpu
from emrrg_core.reporter import Reporter
from tests.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("films")
    make_phantom(1, height=140, width=190).save_png(folder / "Doe^Jane.png")
    make_phantom(2, height=201, width=150).save_dicom(folder / "two", monochrome1=True)
    return [str(folder / "Doe^Jane.png"), str(folder / "two")]


@pytest.fixture
def run(capsys):
    """Runs the command line here: (status, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def json_of(result: tuple[int, str, str]) -> dict:
    status, out, err = result
    assert (status, err) == (0, "")
    return json.loads(out)


def refusal(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("emrrg: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1
    return err


# -------------------------------------------------------------------------------------------------------------- draft


def test_draft_why_adds_what_the_tests_found(run, films, checkpoint):
    found = json_of(run("draft", films[0], "--checkpoint", checkpoint, "--why", "--json"))
    assert {"blank", "noise", "swapped", "moved", "threshold", "looks", "gate", "verdict"} <= found["looking"].keys()
    assert [row["why"]["sentence"] for row in found["sentences"]] == list(range(len(found["sentences"])))
    assert all(len(row["why"]["random"]) >= 8 for row in found["sentences"])
    _, out, _ = run("draft", films[0], "--checkpoint", checkpoint, "--why")
    assert f"\nIs it looking? {found['looking']['verdict']}" in out
    assert out.count("\nWhy sentence ") == len(found["sentences"])


def test_draft_prints_the_text_and_the_warnings(run, films, checkpoint):
    status, out, err = run("draft", films[0], films[1], "--checkpoint", checkpoint)
    assert (status, err) == (0, "")
    assert out.startswith("FINDINGS:\n")
    assert DISCLAIMER in out
    assert "\nWarning: The views were averaged" in out
    assert "Doe" not in out


def test_draft_as_json_prints_one_object_with_everything_in_it(run, films, checkpoint):
    data = json_of(run("draft", *films, "--json", "--checkpoint", checkpoint))
    assert data["schema"] == "emrrg.draft/2"
    assert [film["name"] for film in data["films"]] == ["Film 1", "Film 2"]
    assert [(film["height"], film["width"]) for film in data["films"]] == [(140, 190), (201, 150)]
    assert any("MONOCHROME1" in step for step in data["films"][1]["steps"])
    assert data["model"]["checkpoint_sha256"] == checkpoints.fingerprint(checkpoint)
    assert data["model"]["settings_sha256"] == checkpoints.settings_fingerprint(checkpoint)
    assert data["seed"] == data["decoding"]["seed"] == 0
    assert set(data["timings"]) == {"encode", "write", "total"}
    assert data["sentences"]
    for sentence in data["sentences"]:
        assert data[sentence["section"]][sentence["start"] : sentence["end"]] == sentence["text"]
        assert 0 < sentence["confidence"] <= 1
        assert set(sentence["gates"]) == {"0", "2"}
        assert (sentence["map"], sentence["maps"]) == (None, [])


def test_draft_as_json_says_of_every_finding_how_probable_it_is_from_when_it_is_stated_and_where(
    run, films, reading_checkpoint
):
    data = json_of(run("draft", *films, "--json", "--checkpoint", reading_checkpoint))
    assert [row["name"] for row in data["read"]] == [name for name in NAMES if name != "fracture"]
    assert data["not_assessed"] == ["Fracture", "Support Devices"]
    for row in data["read"]:
        assert (row["presence"] == "present") == (row["probability"] >= row["threshold"])
        maps = np.array(row["maps"])
        assert maps.shape == (2, 4, 4)  # a map of each film
        np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-3)
        assert {"side", "zone", "severity", "label", "pneumonia"} < row.keys()


def test_the_draft_is_the_reporters(run, films, checkpoint):
    data = json_of(run("draft", films[0], "--json", "--memory", "off", "--checkpoint", checkpoint))
    assert data.pop("remembered") == []
    reporter = Reporter.load(checkpoint, download=False)
    draft = reporter.draft([reporter.read(films[0], name="Film 1")])
    expected = json.loads(json.dumps(draft.to_dict()))
    assert {**data, "timings": None} == {**expected, "timings": None}


def test_maps_are_float32_files_in_the_films_own_size_whose_sum_is_1(run, films, checkpoint, tmp_path):
    folder = tmp_path / "new" / "maps"
    data = json_of(run("draft", *films, "--json", "--maps", folder, "--checkpoint", checkpoint))
    written = set()
    for sentence in data["sentences"]:
        assert sentence["map"] == sentence["maps"][0]
        assert len(sentence["maps"]) == 2
        for path, film in zip(sentence["maps"], data["films"], strict=True):
            heat = np.load(path, allow_pickle=False)
            assert (heat.dtype, heat.shape) == (np.float32, (film["height"], film["width"]))
            assert heat.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)
            assert (heat >= 0).all()
            written.add(Path(path))
    assert written == set(folder.iterdir())
    assert len(written) == 2 * len(data["sentences"])


def test_a_map_is_that_of_its_sentences_tokens(run, films, checkpoint, tmp_path):
    data = json_of(run("draft", films[0], "--json", "--maps", tmp_path, "--checkpoint", checkpoint))
    reporter = Reporter.load(checkpoint, download=False)
    draft = reporter.draft([reporter.read(films[0])])
    for row, sentence in zip(data["sentences"], draft.sentences, strict=True):
        weights = patch_weights(draft, sentence.tokens)
        expected = lay_over(weights / weights.sum(), draft.grid, 140, 190)
        np.testing.assert_allclose(np.load(row["map"]), expected, atol=1e-7)


def test_maps_without_json_are_named_in_the_text(run, films, checkpoint, tmp_path):
    status, out, _ = run("draft", films[0], "--maps", tmp_path, "--checkpoint", checkpoint)
    assert status == 0
    named = re.findall(r"^Map of sentence \d+: (.*)$", out, re.MULTILINE)
    assert named
    assert {Path(path) for path in named} == set(tmp_path.iterdir())


def test_a_sentence_without_a_look_has_no_map(run, films, build, language_folder, tmp_path):
    shut = checkpoints.save(build(seed=2), tmp_path / "shut", language={}, training={})
    maps = tmp_path / "maps"
    arguments = ["--maps", maps, "--checkpoint", shut, "--language-model", language_folder]
    data = json_of(run("draft", films[0], "--json", *arguments))
    assert data["sentences"]
    assert all((s["map"], s["maps"]) == (None, []) for s in data["sentences"])
    assert list(maps.iterdir()) == []


def test_beams_and_another_language_model_can_be_asked_for(run, films, checkpoint, language_folder):
    arguments = ["--beams", "3", "--checkpoint", checkpoint, "--language-model", language_folder]
    data = json_of(run("draft", films[0], "--json", *arguments))
    assert data["decoding"]["beams"] == 3
    assert data["model"]["language_model"] == language_folder.name


# ---------------------------------------------------------------------------------------------------- what is refused


def test_a_film_that_will_not_do_is_named_by_its_place_and_its_reason(run, films, checkpoint, tmp_path):
    (tmp_path / "Doe^John.txt").write_text("no film")
    for path, reason in [(tmp_path / "Doe^John.txt", "must be a DICOM"), (tmp_path / "none.dcm", "not found")]:
        said = refusal(run("draft", films[0], path, "--checkpoint", checkpoint))
        assert said.startswith("emrrg: Film 2: ")
        assert reason in said


def test_a_film_is_refused_before_any_model_is_loaded(run, tmp_path):
    said = refusal(run("draft", tmp_path / "none.dcm", "--checkpoint", tmp_path / "nowhere"))
    assert "Film 1" in said


def test_five_films_are_refused(run, films, checkpoint):
    assert "at most 4 films" in refusal(run("draft", *films[:1] * 5, "--checkpoint", checkpoint))


def test_a_checkpoint_that_is_not_there_is_refused(run, films, tmp_path):
    assert "no checkpoint" in refusal(run("draft", films[0], "--checkpoint", tmp_path))


def test_a_language_model_that_is_not_there_is_refused(run, films, checkpoint, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--language-model", tmp_path / "nowhere" / "at all"]
    assert "nowhere" in refusal(run("draft", films[0], *arguments))


def test_a_maps_folder_that_cannot_be_made_is_refused(run, films, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["--maps", tmp_path / "file", "--checkpoint", checkpoint]
    assert "maps cannot be written" in refusal(run("draft", films[0], *arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["drift"], "drift"),
        (["draft"], "FILE"),
        (["draft", "a.png", "--beams", "many"], "many"),
        (["draft", "a.png", "--beams", "0"], "beams must be from 1 to 16"),
        (["draft", "a.png", "--colour"], "--colour"),
        (["doctor", "a.png"], "a.png"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(run, arguments, said):
    assert said in refusal(run(*arguments))


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as done:
        main(["draft", "--help"])
    assert done.value.code == 0
    assert "--maps DIR" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_tells_what_runs_here(run, checkpoint, language_folder):
    data = json_of(run("doctor", "--json", "--checkpoint", checkpoint))
    assert data["schema"] == "emrrg.doctor/1"
    assert data["torch"] == torch.__version__
    assert data["threads"] == torch.get_num_threads()
    assert isinstance(data["bf16"], bool)
    assert "reference" in data["scan"]["available"]
    assert data["scan"]["in_use"] in data["scan"]["available"]
    assert data["checkpoint"]["found"]
    assert data["checkpoint"]["sha256"] == checkpoints.fingerprint(checkpoint)
    assert data["language_model"] == language_status(str(language_folder))
    assert data["language_model"]["found"]


def test_doctor_counts_the_towers(run, checkpoint):
    presets = json_of(run("doctor", "--json", "--checkpoint", checkpoint))["presets"]
    assert presets.keys() == VISION_PRESETS.keys()
    assert presets["base"] == {"tower_parameters": 84_262_656, "tower_tensors": 486}
    assert presets["large"] == {"tower_parameters": 296_010_720, "tower_tensors": 966}
    assert 5e6 < presets["small"]["tower_parameters"] < 10e6


def test_doctor_says_what_is_missing_and_downloads_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    data = json_of(run("doctor", "--json", "--checkpoint", tmp_path / "none"))
    assert not data["checkpoint"]["found"]
    assert "no checkpoint" in data["checkpoint"]["problem"]
    status, out, err = run("doctor", "--checkpoint", tmp_path / "none")
    assert (status, err) == (0, "")
    assert "There is no checkpoint" in out
    assert not list(tmp_path.glob("empty/models/*"))


def test_doctor_says_that_a_checkpoint_has_lost_its_weights(run, checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    data = json_of(run("doctor", "--json", "--checkpoint", tmp_path))
    assert not data["checkpoint"]["found"]
    assert "weights" in data["checkpoint"]["problem"]


@pytest.mark.parametrize(
    ("variable", "name"), [("EMRRG_SCAN", "fastest"), ("EMRRG_SCAN", "cuda"), ("EMRRG_SCAN_ISA", "mmx")]
)
def test_doctor_says_that_a_scan_backend_cannot_be_used(run, checkpoint, monkeypatch, variable, name):
    if variable == "EMRRG_SCAN_ISA" and not cpu.kernels():
        pytest.skip("no C compiler on this machine")
    monkeypatch.setenv(variable, name)
    scan = json_of(run("doctor", "--json", "--checkpoint", checkpoint))["scan"]
    assert (scan["in_use"], scan["isa"]) == (None, None)
    assert f"{variable} is '{name}'" in scan["problem"]


def test_doctor_tells_the_scans_instruction_set(run, checkpoint, monkeypatch):
    for isa in cpu.kernels():
        monkeypatch.setenv("EMRRG_SCAN_ISA", isa)
        assert json_of(run("doctor", "--json", "--checkpoint", checkpoint))["scan"]["isa"] == isa
        assert f"cpu with {isa}" in run("doctor", "--checkpoint", checkpoint)[1]


def test_doctor_in_words_names_everything(run, checkpoint):
    status, out, err = run("doctor", "--checkpoint", checkpoint)
    assert (status, err) == (0, "")
    for word in ("torch", "Scan:", "bfloat16:", checkpoints.fingerprint(checkpoint), "84,262,656", "966"):
        assert word in out


# -------------------------------------------------------------------------------------------------- as a real process


def test_the_module_runs_as_a_program_without_noise(films, checkpoint):
    """Nothing but the object on stdout and nothing at all on stderr, also of what the libraries would like to say."""
    command = [sys.executable, "-m", "emrrg_core", "draft", films[0], "--json", "--checkpoint", str(checkpoint)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["schema"] == "emrrg.draft/2"


def test_a_draft_keeps_the_keys_of_its_schema(run, films, checkpoint):
    """emrrg.draft/2 may gain keys; programs rely on these."""
    data = json_of(run("draft", films[0], "--json", "--why", "--checkpoint", checkpoint))
    schema = {
        "": "schema notice films findings impression sentences tokens finished closed read not_assessed cardiothoracic_ratio warnings timings "
        "model decoding seed looking",
        "films": "name format sha256 height width spacing view steps overridden",
        "sentences": "text section start end confidence gates findings map maps why",
        "tokens": "text log_prob gates forced",
        "model": "checkpoint checkpoint_sha256 settings_sha256 language_model language_model_sha256",
    }
    for part, keys in schema.items():
        found = data[part] if part else data
        assert set(keys.split()) <= (found[0] if isinstance(found, list) else found).keys(), part
