"""Files with the keys and shapes of the released ones, spelled out here from docs/method.md 1.7 and 2.1, stand in for the downloads."""

import argparse
import json
import os
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from emrrg_core.__main__ import main
from emrrg_core.config import VISION_PRESETS, DecodeConfig
from emrrg_core.errors import CheckpointError
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model import convert as converter
from emrrg_core.model.convert import Stage, convert, load_tower, save_tower
from emrrg_core.model.emrrg import Emrrg
from emrrg_core.model.generation import write
from emrrg_core.model.pretraining import PRETRAINING_PRESETS, PretrainingConfig, to_tower
from emrrg_core.model.vision_mamba import VisionMamba
from tests.conftest import TINY

Shapes = dict[str, tuple[int, ...]]
WIDTH = 32  # of the tiny language model


def shapes(suffixes: tuple[str, ...], d: int, depth: int, r: int, h: int, n: int, patch: int) -> Shapes:
    """Patches and layers of a tower whose mixers have these directions."""
    made: Shapes = {"patch_embed.proj.weight": (d, 3, patch, patch), "patch_embed.proj.bias": (d,)}
    for i in range(depth):
        mixer, mlp = f"layers.{i}.mixer.", f"layers.{i}.mlp."
        for s in suffixes:
            made |= {f"{mixer}A{s}_log": (d, n), f"{mixer}D{s}": (d,), f"{mixer}x_proj{s}.weight": (r + 2 * n, d)}
            made |= {f"{mixer}conv1d{s}.weight": (d, 1, 4), f"{mixer}conv1d{s}.bias": (d,)}
            made |= {f"{mixer}dt_proj{s}.weight": (d, r), f"{mixer}dt_proj{s}.bias": (d,)}
        made |= {f"{mixer}in_proj.weight": (2 * d, d), f"{mixer}out_proj.weight": (d, d)}
        for w, out, into in (("w1", h, d), ("w2", h, d), ("w3", d, h)):
            made |= {f"{mlp}{w}.weight": (out, into), f"{mlp}{w}.bias": (out,)}
        made |= {f"layers.{i}.norm{k}.{leaf}": (d,) for k in (1, 2) for leaf in ("weight", "bias")}
    return made


def tower_shapes(d: int, depth: int, r: int, h: int, n: int, patch: int, tokens: int) -> Shapes:
    """docs/method.md 1.7."""
    made = shapes(("", "_b", "_c", "_c_b"), d, depth, r, h, n, patch)
    return made | {"cls_token": (1, 1, d), "pos_embed": (1, tokens, d), "norm_f.weight": (d,), "norm_f.bias": (d,)}


def pretrain_shapes(d: int, depth: int, r: int, h: int, n: int, patch: int, g: int, w: int, taps: int) -> Shapes:
    """docs/method.md 2.1, of g × g patches in clusters of 4 × 4, or of 2 × 2 where there are fewer than 8 × 8."""
    cluster = 4 if g >= 8 else 2
    asked = g * g - cluster * cluster
    made = shapes(("",), d, depth, r, h, n, patch)
    made |= {"pos_embed": (1, g * g, d), "dec_pos_embed": (1, g * g, w), "ar_token": (1, 1, w), "mask": (asked, asked)}
    made |= {"enc2dec.weight": (taps * w, taps * d), "enc2dec.bias": (taps * w,)}
    made |= {"ar_norm.weight": (w,), "ar_norm.bias": (w,)}
    made |= {"ar_pred.weight": (3 * patch**2, w), "ar_pred.bias": (3 * patch**2,)}
    for k in range(taps):
        made |= {f"norm_{k + 1}.weight": (d,), f"norm_{k + 1}.bias": (d,)}
        at = f"dec_block.{k}."
        linear = {"attn2.q": (w, w), "attn2.kv": (2 * w, w), "attn2.proj": (w, w)}
        linear |= {"mlp.fc1": (4 * w, w), "mlp.fc2": (w, 4 * w)}
        for name, (out, into) in linear.items():
            made |= {f"{at}{name}.weight": (out, into), f"{at}{name}.bias": (out,)}
        made |= {f"{at}{name}.{leaf}": (w,) for name in ("norm2_1", "norm2_2", "norm2") for leaf in ("weight", "bias")}
    return made


TINY_TOWER = tower_shapes(d=16, depth=2, r=1, h=42, n=4, patch=16, tokens=17)
TINY_PRETRAIN = pretrain_shapes(d=16, depth=2, r=1, h=42, n=4, patch=16, g=4, w=64, taps=2)
HEAD: Shapes = {
    "llama_proj.weight": (WIDTH, 16),
    "llama_proj.bias": (WIDTH,),
    "layer_norm.weight": (WIDTH,),
    "layer_norm.bias": (WIDTH,),
}
CONTRASTIVE: Shapes = {
    "logit_scale": (),
    "vision_proj.weight": (8, 16),
    "vision_proj.bias": (8,),
    "text_proj.weight": (8, 12),
    "text_proj.bias": (8,),
    "text_encoder.embeddings.word_embeddings.weight": (20, 12),
    "text_encoder.encoder.layer.0.attention.self.query.weight": (12, 12),
    "text_encoder.pooler.dense.bias": (12,),
}


@pytest.fixture(autouse=True)
def published(monkeypatch, language_folder) -> None:
    """As if tiny sizes were published too, and a tiny language model."""
    monkeypatch.setitem(VISION_PRESETS, "tiny", TINY.vision)
    small = PretrainingConfig(vision=TINY.vision, image_size=64, cluster=2, taps=(1, 2), width=64)
    monkeypatch.setitem(PRETRAINING_PRESETS, "tiny", small)
    monkeypatch.setitem(converter._LANGUAGE, WIDTH, str(language_folder))


def values(of: Shapes, prefix: str = "", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {prefix + name: torch.randn(shape, generator=generator).to(dtype) for name, shape in of.items()}


def aligned(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    ids = {"text_encoder.embeddings.position_ids": torch.arange(20)[None]}  # older transformers keep them
    return values(TINY_TOWER, "visual_encoder.", dtype) | values(CONTRASTIVE) | ids


def finetuned() -> dict[str, Tensor]:
    return values(TINY_TOWER, "visual_encoder.") | values(HEAD)


def pretrained() -> dict[str, Tensor]:
    return values(TINY_PRETRAIN) | {"mask": torch.zeros(12, 12).fill_diagonal_(float("-inf"))}


@pytest.fixture
def released(tmp_path) -> Callable[..., Path]:
    """Writes the container of a released file: `model` beside settings, epoch and step (docs/method.md 1.7, 5.4)."""

    def write(state: dict[str, Any], name: str = "weights.pth", config: Any = None) -> Path:
        path = tmp_path / name
        torch.save({"model": state, "config": config, "epoch": 3, "step": 1200}, path)
        return path

    return write


def refused(path: Path, out: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        convert(path, out)
    assert str(caught.value).endswith(".")
    assert not out.exists()


# ------------------------------------------------------------------------------------------------------ what comes of it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stage_2_becomes_a_tower_bit_for_bit_and_the_text_side_is_named_as_left_out(released, tmp_path, dtype):
    state = aligned(dtype)
    done = convert(released(state), tmp_path / "out")
    assert (done.stage, done.size, done.fresh) == (Stage.ALIGNED, "tiny", ())
    tower = load_file(tmp_path / "out" / "tower.safetensors")
    assert set(tower) == set(TINY_TOWER)
    assert all(torch.equal(value, state[f"visual_encoder.{name}"]) for name, value in tower.items())
    assert all(value.dtype is dtype for value in tower.values())
    assert set(done.placed) == {f"visual_encoder.{name}" for name in TINY_TOWER}
    assert set(done.placed) | set(done.left_out) == set(state)
    assert "Bio_ClinicalBERT" in done.left_out["text_encoder.pooler.dense.bias"]
    assert "stage 2" in done.left_out["logit_scale"]


def test_the_training_stages_start_from_a_converted_tower(released, tmp_path):
    state = aligned(torch.bfloat16)
    convert(released(state), tmp_path / "out")
    tower = load_tower(tmp_path / "out")
    assert tower.config == TINY.vision
    kept = tower.layers[1].mixer.A_c_b_log
    assert kept.dtype is torch.float32  # also where the file was not (docs/method.md 1.7)
    assert torch.equal(kept, state["visual_encoder.layers.1.mixer.A_c_b_log"].float())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["training"]["converted_from"] == "weights.pth"


def test_a_tower_is_loaded_strictly(tmp_path):
    with pytest.raises(CheckpointError, match="holds no tower: it needs"):
        load_tower(tmp_path)
    state = VisionMamba(TINY.vision).state_dict()
    save_tower(tmp_path / "whole", state, TINY.vision, {})
    assert all(torch.equal(value, state[name]) for name, value in load_tower(tmp_path / "whole").state_dict().items())
    del state["layers.1.mixer.D_b"]
    save_tower(tmp_path / "lacking", state, TINY.vision, {})
    with pytest.raises(CheckpointError, match=r"cannot be used.*layers\.1\.mixer\.D_b"):
        load_tower(tmp_path / "lacking")
    (tmp_path / "whole" / "tower.safetensors").write_bytes(b"spoilt")
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_tower(tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no tower"):
        load_tower(tmp_path / "whole")


def test_stage_3_becomes_a_checkpoint_that_drafts_without_adapters_and_hybrid_layers(released, tmp_path, images):
    state = finetuned()
    done = convert(released(state), tmp_path / "out")
    assert (done.stage, done.left_out, set(done.placed)) == (Stage.FINETUNED, {}, set(state))
    model, _ = checkpoints.load(tmp_path / "out")
    assert isinstance(model, Emrrg)
    own = model.own_state()
    assert set(own) == set(state)
    assert all(torch.equal(own[name], value) for name, value in state.items())
    assert model.config.prompt.tokens == "all"
    assert not list(model.hybrid.items())
    with torch.inference_mode():
        drafts = write(model, model.encode(images), DecodeConfig(max_new_tokens=4))
    assert len(drafts) == len(images)


def test_stage_1_becomes_the_tower_of_the_published_conversion(released, tmp_path):
    state = pretrained()
    done = convert(released(state), tmp_path / "out")
    assert (done.stage, done.size) == (Stage.PRETRAINED, "tiny")
    made = load_file(tmp_path / "out" / "tower.safetensors")
    expected = to_tower(state, TINY.vision)
    assert set(made) == set(expected)
    assert all(torch.equal(made[name], value) for name, value in expected.items())
    VisionMamba(TINY.vision).load_state_dict(made, strict=True)
    assert done.fresh == ("cls_token", "norm_f.bias", "norm_f.weight")
    assert set(done.placed) | set(done.left_out) == set(state)
    assert set(done.left_out) == {
        name for name in state if name.startswith(("dec_", "ar_", "enc2dec.", "norm_")) or name == "mask"
    }


def test_the_true_base_size_is_placed_key_by_key(tmp_path):
    base = tower_shapes(d=768, depth=12, r=48, h=2048, n=16, patch=16, tokens=197)
    assert len(base) == 486
    zero = torch.zeros(1, dtype=torch.bfloat16)  # one number on disk for each tensor, however large
    state = {f"visual_encoder.{name}": zero.expand(shape) for name, shape in base.items()}
    torch.save({"model": state}, tmp_path / "MambaXrayCLIP-B.pth")
    done = convert(tmp_path / "MambaXrayCLIP-B.pth", tmp_path / "out")
    assert (done.stage, done.size, len(done.placed)) == (Stage.ALIGNED, "base", 486)
    made = load_file(tmp_path / "out" / "tower.safetensors")
    assert {name: tuple(value.shape) for name, value in made.items()} == base
    assert sum(value.numel() for value in made.values()) == 84_262_656


def test_the_true_base_size_of_stage_1_is_placed_key_by_key(tmp_path):
    base = pretrain_shapes(d=768, depth=12, r=48, h=2048, n=16, patch=16, g=12, w=512, taps=4)
    zero = torch.zeros(1, dtype=torch.bfloat16)
    torch.save({"model": {name: zero.expand(shape) for name, shape in base.items()}}, tmp_path / "Pretrain-B.pth")
    done = convert(tmp_path / "Pretrain-B.pth", tmp_path / "out")
    assert (done.stage, done.size, len(done.placed) + len(done.left_out)) == (Stage.PRETRAINED, "base", len(base))
    made = load_file(tmp_path / "out" / "tower.safetensors")
    assert len(made) == 486
    assert made["pos_embed"].shape == (1, 197, 768)


def test_a_file_of_weights_alone_is_read_too(tmp_path):
    torch.save(pretrained(), tmp_path / "bare.pth")
    assert convert(tmp_path / "bare.pth", tmp_path / "out").stage is Stage.PRETRAINED


# ------------------------------------------------------------------------------------------------------ pickled settings


def lightning(module: str, monkeypatch) -> type:
    """Lightning's AttributeDict, which is not installed here, where a released file would name it."""
    made = type("AttributeDict", (dict,), {"__module__": module})
    parts = module.split(".")
    for i in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    sys.modules[module].AttributeDict = made  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("module", ["lightning.fabric.utilities.data", "pytorch_lightning.utilities.parsing"])
def test_the_pickled_settings_are_read_without_lightning(released, tmp_path, monkeypatch, module):
    table = lightning(module, monkeypatch)
    path = released(aligned(), config=table(batch_size=6, freeze_vm=False, savedmodel_path=Path("save")))
    for name in [name for name in sys.modules if name.startswith(module.partition(".")[0])]:
        monkeypatch.delitem(sys.modules, name)
    assert convert(path, tmp_path / "out").stage is Stage.ALIGNED


def test_a_pickled_namespace_is_read(released, tmp_path):
    args = argparse.Namespace(lr=1.5e-4, output_dir=Path("out"), betas=(0.9, 0.95), resume=None)
    assert convert(released(pretrained(), config=args), tmp_path / "out").stage is Stage.PRETRAINED


class Runs:
    """Pickled as a call that would leave a file behind."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


def test_a_file_that_would_run_code_is_refused_by_name_and_runs_nothing(released, tmp_path):
    trace = tmp_path / "trace"
    refused(released(aligned(), config=Runs(os.mkdir, str(trace))), tmp_path / "out", r"asks for \w+\.mkdir")
    refused(released(aligned(), config=Runs(eval, f"open({str(trace)!r}, 'w')")), tmp_path / "out", "asks for eval")
    assert not trace.exists()


def test_settings_of_an_unknown_kind_are_refused_by_name(released, tmp_path):
    refused(released(aligned(), config=TINY), tmp_path / "out", r"asks for emrrg_core\.config\.ModelConfig")


# --------------------------------------------------------------------------------------------------------- refused files


def test_adapters_of_half_width_are_refused_with_the_reason(released, tmp_path):
    updates: Shapes = {}
    for i in range(2):
        at = f"visual_encoder.layers.{i}.mixer.lora_X.adapter_"
        updates |= {f"{at}down.weight": (3, 16), f"{at}up.weight": (8, 3)}
    path = released(finetuned() | values(updates), "EMRRG-CXP.pth")
    refused(path, tmp_path / "out", r"2 adapters of half width .*8 rows where LoRA_p\(X\) has 16.*E1, E2.*E3")


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ("visual_encoder.base_model.model.layers.0.mixer.x_proj.lora_A.default.weight", "E8"),
        ("llama_model.model.layers.0.self_attn.q_proj.bias", "E15, E16"),
        ("visual_encoder.layers.0.mixer.norm.weight", r"1 weights without a place: visual_encoder\.layers\.0\.mixer"),
        ("optimizer", "without a place: optimizer"),
    ],
)
def test_a_key_that_cannot_be_placed_is_refused_by_name(released, tmp_path, extra, match):
    refused(released(finetuned() | {extra: torch.zeros(2, 2)}), tmp_path / "out", match)


@pytest.mark.parametrize("state", [aligned, finetuned, pretrained])
def test_a_missing_weight_is_refused_by_name(released, tmp_path, state):
    kept = state()
    lost = next(name for name in kept if name.endswith("layers.1.mixer.D"))
    del kept[lost]
    refused(released(kept), tmp_path / "out", f"lacks 1 weights: {lost}")


@pytest.mark.parametrize("state", [aligned, finetuned, pretrained])
def test_a_weight_of_another_shape_is_refused_by_name(released, tmp_path, state):
    kept = state()
    name = next(name for name in kept if name.endswith("layers.1.mlp.w1.bias"))
    kept[name] = torch.zeros(41)
    refused(released(kept), tmp_path / "out", rf"{name} has shape \(41,\), but \(42,\) is needed")


@pytest.mark.parametrize("bad", [torch.full((16,), float("nan")), torch.zeros(16, dtype=torch.long)])
def test_a_weight_that_is_not_finite_or_no_fraction_is_refused_by_name(released, tmp_path, bad):
    kept = aligned() | {"visual_encoder.norm_f.bias": bad}
    refused(released(kept), tmp_path / "out", r"visual_encoder\.norm_f\.bias holds values")


def test_another_size_is_refused_with_the_published_ones(released, tmp_path):
    other = values(tower_shapes(d=48, depth=3, r=3, h=128, n=16, patch=16, tokens=197), "visual_encoder.")
    refused(released(other), tmp_path / "out", r"3 layers and positions of width 48; .*base \(12 layers of 768\)")


def test_a_projector_for_an_unknown_language_model_is_refused(released, tmp_path):
    head: Shapes = {"llama_proj.weight": (99, 16), "layer_norm.weight": (99,)}
    refused(released(finetuned() | values(head)), tmp_path / "out", r"width 99; .*llama2-7b \(4096\)")


def test_a_projector_without_its_tower_is_refused(released, tmp_path):
    refused(released(values(HEAD)), tmp_path / "out", "without its tower")


def test_weights_of_another_model_are_refused(released, tmp_path):
    refused(released({"conv1.weight": torch.zeros(2)}), tmp_path / "out", "no layout that is known here.*conv1")


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"model": 3}, {"model": {"a": 1}}, {"epoch": 3}])
def test_a_pickle_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", tmp_path / "out", "is not a checkpoint of MambaXray-VL or EMRRG")


def test_damaged_files_are_refused_in_one_sentence(released, tmp_path):
    whole = released(aligned())
    data = whole.read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(data[: len(data) // 2])
    refused(cut, tmp_path / "out", "cut.pth is not a PyTorch checkpoint, or it has been cut short")
    text = tmp_path / "text.pth"
    text.write_text("Not Found\n")
    refused(text, tmp_path / "out", "is not a PyTorch checkpoint")
    archive = tmp_path / "archive.pth"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "hello")
    refused(archive, tmp_path / "out", "archive.pth is damaged")
    spoilt = tmp_path / "spoilt.pth"
    at = data.index(b"visual_encoder.") - 20
    spoilt.write_bytes(data[:at] + b"\xff" * 40 + data[at + 40 :])
    refused(spoilt, tmp_path / "out", "spoilt.pth is damaged")
    refused(tmp_path / "absent.pth", tmp_path / "out", "There is no file")
    refused(tmp_path, tmp_path / "out", "There is no file")


def test_a_folder_with_something_in_it_is_left_alone(released, tmp_path):
    path, out = released(aligned()), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    with pytest.raises(CheckpointError, match="name a new folder"):
        convert(path, out)
    assert [file.name for file in out.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_said(released, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        convert(released(aligned()), tmp_path / "file" / "out")


# ------------------------------------------------------------------------------------------------------ the command line


def test_the_command_as_json_names_every_key(released, tmp_path, capsys):
    assert main(["convert", str(released(aligned())), "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["stage"], said["size"], said["folder"]) == ("aligned", "tiny", str(tmp_path / "out"))
    assert {*said["placed"], *said["left_out"]} == set(aligned())
    assert all(said["left_out"].values())


def test_the_command_says_in_words_what_it_left_out_and_why(released, tmp_path, capsys):
    assert main(["convert", str(released(aligned())), "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{len(TINY_TOWER)} weights placed" in out
    assert "Left out text_encoder.embeddings.position_ids, " in out
    assert "and 1 more (--json names all): Bio_ClinicalBERT" in out


def test_the_command_says_what_starts_anew(released, tmp_path, capsys):
    assert main(["convert", str(released(pretrained())), "--out", str(tmp_path / "out")]) == 0
    assert "started anew: cls_token, norm_f.bias, norm_f.weight" in capsys.readouterr().out


def test_the_command_refuses_with_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 nothing")
    assert main(["convert", str(tmp_path / "x.pth"), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("emrrg: x.pth is not a PyTorch checkpoint")
    assert err.count("\n") == 1
