"""Checkpoints: whole or not there, loaded strictly, and a sentence that says what to do when they are not what they should be."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emrrg_core.errors import CheckpointError, LanguageModelError
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model.emrrg import IGNORED, Emrrg

NOTES = {"language": {"name": "tiny", "sha256": "0" * 64}, "training": {"steps": 3}}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path, checkpoint) -> Path:
    """A copy of a good checkpoint, to be spoilt."""
    return Path(shutil.copytree(checkpoint, tmp_path / "mine"))


def spoil(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path, language: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(folder, language_model=language, download=False)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said
    return said


# -------------------------------------------------------------------------------------------------------- round trip


def test_a_saved_model_comes_back_in_float16(tmp_path, build, open_gates, tokenizer, make_llm, images, language_folder):
    model = open_gates(build(seed=2))
    folder = checkpoints.save(model, tmp_path / "new" / "one", **NOTES)
    saved = load_file(folder / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    loaded, language = checkpoints.load(folder, language_model=language_folder, download=False)
    assert loaded.config == model.config
    assert language.folder == language_folder
    for name, value in loaded.own_state().items():
        assert torch.equal(value, model.own_state()[name].half().float()), name
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    reports = torch.tensor([[5, 9, 200, IGNORED]] * 3)
    torch.testing.assert_close(
        loaded.log_probs(loaded.encode(images), reports),
        model.log_probs(model.encode(images), reports),
        rtol=0.05,
        atol=0.05,
    )


def test_a_language_models_lora_is_saved_and_comes_back(tmp_path, build, open_gates, language_folder):
    model = open_gates(build(seed=2, lora=2))
    folder = checkpoints.save(model, tmp_path / "lora", **NOTES)
    loaded, _ = checkpoints.load(folder, language_model=language_folder, download=False)
    lora = {name: value for name, value in loaded.own_state().items() if ".lora_B" in name}
    assert len(lora) == 4 * 2
    assert all(torch.equal(value, model.own_state()[name].half().float()) for name, value in lora.items())
    assert all(value.any() for value in lora.values())


def test_a_checkpoint_holds_no_weight_of_the_frozen_language_model(checkpoint, make_llm):
    saved = load_file(checkpoint / "model.safetensors")
    assert not any(name.startswith("llm.") for name in saved)
    assert {name.split(".")[0] for name in saved} == {"visual_encoder", "llama_proj", "layer_norm", "hybrid"}


def test_a_checkpoint_is_a_folder_of_two_files_that_others_may_read(checkpoint):
    assert {path.name for path in checkpoint.iterdir()} == {"config.json", "model.safetensors"}
    assert all(path.stat().st_mode & stat.S_IROTH for path in (checkpoint, *checkpoint.iterdir()))


def test_config_and_notes_can_be_read_without_the_weights(folder):
    (folder / "model.safetensors").unlink()
    content = checkpoints.read_config(folder)
    assert content["schema"] == "emrrg.checkpoint/3"
    assert content["model"].vision.depth == 2
    assert (content["language_model"], content["training"]) == ({"name": "tiny-llama"}, {"steps": 0})


def test_the_fingerprint_is_that_of_the_weights(folder, checkpoint):
    assert checkpoints.fingerprint(folder) == checkpoints.fingerprint(checkpoint)
    tensors = load_file(folder / "model.safetensors")
    tensors["layer_norm.bias"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert checkpoints.fingerprint(folder) != checkpoints.fingerprint(checkpoint)


def test_the_settings_have_a_fingerprint_of_their_own(folder, checkpoint):
    """Of what is said of the model, in whatever order, and of nothing else: not of the recipe that trained it."""
    before = checkpoints.settings_fingerprint(checkpoint)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model": dict(reversed(config["model"].items())), "training": {"steps": 9}}))
    assert checkpoints.settings_fingerprint(folder) == before
    config["model"]["hybrid"]["warmup_start"] += 0.25
    path.write_text(json.dumps(config))
    assert checkpoints.settings_fingerprint(folder) != before
    assert checkpoints.fingerprint(folder) == checkpoints.fingerprint(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        checkpoints.settings_fingerprint(folder)


# ------------------------------------------------------------------------------------------------------------ atomic


def test_saving_again_replaces_the_folder_and_leaves_nothing_else(folder, build):
    checkpoints.save(build(), folder, language={}, training={"steps": 9})
    assert checkpoints.read_config(folder)["training"] == {"steps": 9}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_weight_that_float16_cannot_hold_is_refused_and_the_old_folder_stays(folder, build):
    before = files(folder)
    model = build()
    model.llama_proj.weight.data[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"llama_proj\.weight has values that float16 cannot hold"):
        checkpoints.save(model, folder, **NOTES)
    assert files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_notes_that_json_cannot_hold_leave_the_old_folder_as_it_was(folder, build):
    before = files(folder)
    with pytest.raises(TypeError):
        checkpoints.save(build(), folder, language={}, training={"when": object()})
    assert files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder_as_it_was(folder, build, monkeypatch, failing):
    before, renames = files(folder), []
    rename = os.replace

    def broken(source, target):
        renames.append(source)
        if len(renames) == failing:
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        checkpoints.save(build(), folder, **NOTES)
    assert files(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


# ---------------------------------------------------------------------------------------------------------- refusals


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    assert "no checkpoint" in refusal(tmp_path)
    assert "no checkpoint" in refusal(tmp_path / "nowhere")


def test_a_checkpoint_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"null", b'"small"'])
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("schema", ["emrrg.checkpoint/4", None, 1])
def test_a_checkpoint_of_another_form_is_refused(folder, schema):
    spoil(folder, schema=schema)
    assert "not of the form emrrg.checkpoint/3" in refusal(folder)


@pytest.mark.parametrize("schema", ["emrrg.checkpoint/1", "emrrg.checkpoint/2"])
def test_a_checkpoint_of_an_earlier_version_is_refused_with_what_to_do(folder, schema):
    """Also where its settings would be unknown here."""
    spoil(folder, schema=schema, model={"signs": {"tokens": 2}})
    said = refusal(folder)
    assert "an earlier version of this software, which read a film otherwise" in said
    assert "use the checkpoint that comes with this version, or train again" in said


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"vision": {"depht": 2}}, "depht"),
        ({"vision": {"depth": "two"}}, "VisionConfig.depth"),
        ({"colour": 1}, "colour"),
        (None, "table"),
        ({"vision": {"image_size": 100}}, "image_size 100"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_name(folder, model, said):
    spoil(folder, model=model)
    assert said in refusal(folder)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_damaged_weights_are_refused(folder, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert "damaged" in refusal(folder)


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_weight_is_refused_by_name(folder):
    rewrite(folder, lambda tensors: tensors.pop("hybrid.layers.0.kv_proj.weight"))
    assert "1 weights missing ['hybrid.layers.0.kv_proj.weight']" in refusal(folder)


def test_an_adapter_that_is_not_there_is_never_left_at_zero_silently(folder):
    """E21: a non-strict load once dropped the adapters without a word."""
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".lora." in name])
    assert "8 weights missing" in refusal(folder)


def test_an_unexpected_weight_is_refused_by_name(folder):
    rewrite(folder, lambda tensors: tensors.update({"llm.lm_head.weight": torch.zeros(2)}))
    assert "1 unexpected ['llm.lm_head.weight']" in refusal(folder)


def test_a_weight_of_another_shape_is_refused_by_name(folder):
    rewrite(folder, lambda tensors: tensors.update({"llama_proj.bias": torch.zeros(5)}))
    said = refusal(folder)
    assert "llama_proj.bias has shape (5,), but (32,) is needed" in said


def test_a_language_model_of_another_width_is_refused(folder, tmp_path, make_llm, tokenizer):
    wide = tmp_path / "wide"
    make_llm(hidden_size=64).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    assert "another language model" in refusal(folder, wide)


def test_lora_targets_that_the_language_model_does_not_have_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())["model"]
    spoil(folder, model=config | {"language_lora": {"rank": 2, "targets": ["kew_proj"]}})
    assert "cannot be built" in refusal(folder)


def test_a_language_model_that_is_not_there_is_a_language_model_error(folder, tmp_path):
    with pytest.raises(LanguageModelError):
        checkpoints.load(folder, language_model=tmp_path / "nowhere", download=False)


def test_a_loaded_checkpoint_is_an_emrrg_beside_the_language_model_it_names(checkpoint, language_folder):
    model, language = checkpoints.load(checkpoint, download=False)
    assert isinstance(model, Emrrg)
    assert model.llm is language.model
    assert language.folder == language_folder


def test_a_model_that_reads_findings_comes_back_with_its_calibration_to_the_last_digit(
    tmp_path, build, open_gates, images, language_folder
):
    """A threshold of 0.9998 in float16 would be 1: a finding that is never assessed."""
    model = open_gates(build(seed=2, queries=True))
    random = torch.Generator().manual_seed(0)
    model.calibration.curve.normal_(0, 5, generator=random)
    model.calibration.thresholds.uniform_(0.9997, 0.9999, generator=random)
    folder = checkpoints.save(model, tmp_path / "reading", **NOTES)
    saved = load_file(folder / "model.safetensors")
    assert {name for name, value in saved.items() if value.dtype == torch.float32} == {
        "calibration.curve",
        "calibration.thresholds",
    }
    loaded, _ = checkpoints.load(folder, language_model=language_folder, download=False)
    for name in ("curve", "thresholds"):
        assert torch.equal(getattr(loaded.calibration, name), getattr(model.calibration, name)), name
    assert loaded.config.queries == model.config.queries
    torch.testing.assert_close(loaded.see(images).logits, model.see(images).logits, rtol=0.02, atol=0.02)
    for missing in ("calibration.thresholds", "disease.queries", "finding_tokens.tables.0.weight", "lungs.lungs.bias"):
        rewrite(folder, lambda tensors, name=missing: tensors.pop(name))
        assert f"1 weights missing ['{missing}']" in refusal(folder, language_folder)
        save_file(saved, folder / "model.safetensors")
    model.calibration.curve[0, 0] = torch.inf
    with pytest.raises(CheckpointError, match=r"calibration\.curve has values that float32 cannot hold"):
        checkpoints.save(model, folder, **NOTES)
