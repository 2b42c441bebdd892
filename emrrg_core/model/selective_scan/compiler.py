"""Compiles kernels.c with the machine's own C compiler, once for each instruction set, into one library, and loads it.

The library lies in $EMRRG_HOME/kernels, or in `emrrg/kernels` under the user's cache folder ($XDG_CACHE_HOME or
~/.cache). Its name holds a hash of everything that can change it: the source, the flags, the compiler's version and the
architecture, but no processor: all that share the folder use one file, and cpu.py chooses at run time. It is written
aside and renamed, so several processes may start at once.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger("emrrg")

SOURCE = Path(__file__).with_name("kernels.c")
SECONDS = 120  # a compiler that has not answered by then never will; ours takes about one

# No -ffast-math: a NaN must come out as a NaN. These two only drop errno and floating point traps, which nobody reads,
# and without the second the comparisons in exponential() would not be vectorised.
_ALWAYS = ["-std=c11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
_TRIES = [["-fopenmp"], ["-fopenmp-simd"], []]  # best first: Apple's compiler has vectors, but no threads of OpenMP

_WIDE = ["-mavx2", "-mfma"]
_X86 = {"avx512": [*_WIDE, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"], "avx2": _WIDE}
_ARM = platform.machine().lower() in {"aarch64", "arm64"}
# instruction sets, best first; the last is what every processor of this architecture has, and must compile
ISAS: dict[str, list[str]] = {
    **(_X86 if platform.machine().lower() in {"x86_64", "amd64"} else {}),
    "neon" if _ARM else "baseline": [],
}


class CompileError(Exception):
    """No compiler, or none that could build the kernel. The text says what was tried."""


def build(definitions: dict[str, int]) -> ctypes.CDLL:
    """The loaded kernel library, from the cache if it was built before. Raises CompileError."""
    failures = []
    for compiler in _compilers():
        try:
            version = _run([*compiler, "--version"])
        except CompileError as error:
            failures.append(str(error))
            continue
        for flags in _TRIES:
            command = [*compiler, *_ALWAYS, *flags, *(f"-D{name}={value}" for name, value in definitions.items())]
            try:
                return _load_or_compile(command, version)
            except CompileError as error:
                failures.append(str(error))
    raise CompileError(failures[0] if failures else "no C compiler was found ($CC, cc, gcc and clang were looked for)")


def cache_folder() -> Path:
    """Where compiled kernels are kept between runs."""
    if home := os.environ.get("EMRRG_HOME"):
        return Path(home).expanduser() / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "emrrg" / "kernels"


def _compilers() -> list[list[str]]:
    """The commands to try, $CC first; it may hold arguments, as in CC="ccache gcc"."""
    wanted = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    return [words for words in wanted if words and shutil.which(words[0])]


def _load_or_compile(command: list[str], version: str) -> ctypes.CDLL:
    parts = [SOURCE.read_text(), *command, version, platform.machine(), repr(ISAS)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    path = cache_folder() / f"scan-{key}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            log.info("The compiled scan kernel %s cannot be loaded and is built again: %s", path, error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix="building-")
    except OSError as error:
        log.info(
            "The folder %s cannot be written, so the scan kernel is built anew in every run: %s", path.parent, error
        )
        return _compile_for_this_run(command)
    with folder as aside:
        built = _compile(command, Path(aside))
        library = _load(built)
        built.replace(path)  # atomic: another process sees no file or the whole file
    return library


def _compile_for_this_run(command: list[str]) -> ctypes.CDLL:
    try:
        folder = tempfile.TemporaryDirectory(prefix="emrrg-")
    except OSError as error:
        raise CompileError(
            f"neither the cache folder nor the folder for temporary files can be written: {error}"
        ) from error
    with folder as aside:  # private to this process, and gone as soon as the library is loaded
        return _load(_compile(command, Path(aside)))


def _compile(command: list[str], folder: Path) -> Path:
    """One object for each instruction set that this compiler knows, linked."""
    objects = []
    for isa, flags in ISAS.items():
        made = folder / f"{isa}.o"
        try:
            _run([*command, *flags, f"-DISA={isa}", "-c", str(SOURCE), "-o", str(made)])
        except CompileError as error:
            if not flags:
                raise
            log.info("The scan kernel is built without %s: %s", isa, error)
        else:
            objects.append(str(made))
    built = folder / "scan.so"
    _run([*command, "-shared", *objects, "-o", str(built)])
    return built


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # a folder mounted noexec, an OpenMP library that is not there at run time
        raise CompileError(f"the kernel was compiled but cannot be loaded: {error}") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{command[0]} could not be run: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["without a message"]
        raise CompileError(f"{command[0]} failed with status {done.returncode}: {lines[0]}")
    return done.stdout
