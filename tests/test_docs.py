"""The documents: their Python runs as written, their commands exist with every option, and every link and path leads somewhere."""

import contextlib
import functools
import importlib.util
import io
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import emrrg_core.reporter
from docs.screenshots import make
from emrrg_core import DISCLAIMER, Reporter
from emrrg_core.report.draft import compose
from emrrg_core.report.macros import Macros
from emrrg_core.report.report import Report
from emrrg_core.teaching.cases import read_case
from tests import test_report as written
from tests.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
PAGES = [ROOT / name for name in LISTED.stdout.split() if (ROOT / name).is_file()]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
ELSEWHERE = {  # pages whose Python needs more than a film, and the tests that run it
    "docs/api.md": "tests/test_api.py",
    "docs/datasets.md": "tests/test_annotations.py",
}


class Block(NamedTuple):
    page: str
    number: int  # in its page
    language: str  # "" of plain and of indented ones
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks() -> Iterator[Block]:
    """Every block of code: fenced ones, and indented ones as "sh"."""
    for page, text in TEXTS.items():
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        indented = re.findall(r"(?:\A|\n\n)((?: {4}\S.*\n)+)", rest)
        for number, (language, code) in enumerate([*fenced, *(("sh", code) for code in indented)]):
            yield Block(page, number, language, code)


BLOCKS = list(blocks())


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


# ------------------------------------------------------------------------------------------------------------------ links


def anchors(text: str) -> set[str]:
    """Of a Markdown page's headings, as GitHub names them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", each) for each in found]
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_and_picture_leads_somewhere(page: str) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_path_and_every_name_of_ours_exists(page: str) -> None:
    code = re.findall(r"`([^`\n]+)`", TEXTS[page])
    rooms = r"(?:emrrg_core|ui|train|tests|docs|benchmarks|assets|cases)"
    paths = {each for text in code for each in re.findall(rf"^{rooms}/[\w./-]*\w", text) if "NAME" not in each}
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
    for name in {each for text in code for each in re.findall(r"^(?:emrrg_core|train)(?:\.[A-Za-z_]\w*)+", text)}:
        pkgutil.resolve_name(name)


def test_every_picture_is_shown_small_and_one_that_the_command_makes() -> None:
    shown = {name for text in TEXTS.values() for name in re.findall(r"screenshots/([\w-]+\.png)", text)}
    there = sorted(make.HERE.glob("*.png"))
    assert {path.name for path in there} == shown
    for path in there:
        assert path.stat().st_size <= make.MOST_BYTES, path.name
        with Image.open(path) as picture:
            assert picture.width <= 1920
    source = Path(make.__file__).read_text(encoding="utf-8")
    made = re.findall(r'shoot\(page, "(\w+)"(.*)\)', source)
    sizes = [(name, next((size for size in ("390", "1920") if size in more), "1440")) for name, more in made]
    assert {f"{name}-{size}.png" for name, size in sizes} == shown


# ----------------------------------------------------------------------------------------------------------------- Python


def names_of(page: str, reporter: Reporter, folder: Path) -> dict[str, Any]:
    """What a page's Python takes for granted: a film, a draft of four sentences about it, and a reader's report."""
    path = folder / "film.png"
    film = reporter.read(path)
    drafted = reporter.draft([film])
    parts = written.cut(compose(written.FINDINGS, written.IMPRESSION), 5)
    draft = written.draft(parts)
    sentences = tuple(replace(sentence, findings=()) for sentence in draft.sentences)
    assert len(sentences) == 4
    draft = replace(draft, sentences=sentences, films=drafted.films, model=drafted.model, decoding=drafted.decoding)
    picture = np.zeros((40, 30, 3), np.uint8)
    section = {"findings": "There is a left effusion.", "impression": "No effusion."}
    more = section if page == "docs/findings.md" else {"report": Report.of(draft)}
    return {"film": film, "draft": draft, "path": path, "picture": picture, **more}


@pytest.mark.parametrize("page", sorted({block.page for block in of("python")} - ELSEWHERE.keys()))
def test_python_runs_as_written(
    page: str, reading_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emrrg_core.reporter, "DEFAULT_CHECKPOINT", reading_checkpoint)
    monkeypatch.setenv("EMRRG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    phantom = make_phantom(1, height=160, width=140)
    phantom.save_png(tmp_path / "film.png")
    phantom.save_png(tmp_path / "film.dcm")  # told by its content
    (tmp_path / "assets/checkpoints").mkdir(parents=True)
    (tmp_path / "assets/checkpoints/small").symlink_to(reading_checkpoint)
    (tmp_path / "cases").symlink_to(ROOT / "cases")
    names = names_of(page, Reporter.load(), tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for block in of("python"):
            if block.page == page:
                exec(compile(block.text, str(block), "exec"), names)
    if page in ("README.md", "MODEL_CARD.md"):
        assert DISCLAIMER in said.getvalue()


@pytest.mark.parametrize("block", [block for block in of("python") if block.page in ELSEWHERE], ids=str)
def test_python_that_other_tests_run_can_be_compiled(block: Block) -> None:
    assert Path(block.page).name in (ROOT / ELSEWHERE[block.page]).read_text(encoding="utf-8")
    compile(block.text, str(block), "exec")


# ------------------------------------------------------------------------------------------------------------ TOML and JSON


@pytest.mark.parametrize("block", [block for block in of("toml") if block.page == "docs/macros.md"], ids=str)
def test_the_documented_macros_are_macros(block: Block) -> None:
    found = Macros.from_toml(block.text)
    assert found.macros
    assert found.templates


@pytest.mark.parametrize("block", [block for block in of("toml") if block.page != "docs/macros.md"], ids=str)
def test_the_documented_case_is_a_case(block: Block, tmp_path: Path) -> None:
    for film in tomllib.loads(block.text)["films"]:
        make_phantom(1, height=140, width=130).save_png(tmp_path / film)
    (tmp_path / "case.toml").write_text(block.text)
    case = read_case(tmp_path / "case.toml")
    assert case.findings
    assert case.labels
    assert case.points


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_can_be_read(block: Block) -> None:
    json.loads(block.text)


# --------------------------------------------------------------------------------------------------------------- commands


def commands() -> Iterator[tuple[str, str]]:
    """Every command line of the pages, in blocks and between backticks, with its page."""
    starts = r"(?:python[\d.]*|make|bash|pip|accelerate|radeval/\S+) "
    for block in of("", "sh", "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if re.match(starts, line.strip()):
                yield block.page, line.strip()
    for page, text in TEXTS.items():
        rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for line in re.findall(rf"`({starts}[^`]+)`", rest):
            yield page, " ".join(line.split())


COMMANDS = sorted(set(commands()))


def module_of(name: str) -> ModuleType:
    """A module by its name, or a program by its path."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def options(program: str, *subcommand: str) -> set[str]:
    """Every long option that a program's --help knows."""
    if program == "accelerate":
        help_of = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--help"]
        return set(re.findall(r"--[a-z][\w-]*", subprocess.run(help_of, capture_output=True, text=True).stdout))
    said, argv = io.StringIO(), sys.argv
    name = "emrrg_core.__main__" if program == "emrrg_core" else program
    module = module_of(name)
    try:
        sys.argv = [program, *subcommand, "--help"]
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as left:
            module.main()
    finally:
        sys.argv = argv
    assert left.value.code == 0, said.getvalue()
    return set(re.findall(r"--[a-z][\w-]*", said.getvalue()))


def asked(words: list[str]) -> set[str]:
    """The long options of a command; brackets are those of a usage line."""
    return {each for word in words for each in re.findall(r"^\[?(--[a-z][\w-]*)", word)}


def check_python(words: list[str]) -> None:
    """python's own arguments: a module or a program of ours with options that it knows, `-m venv`, or code after -c."""
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    elif words[:2] == ["-m", "venv"]:
        assert len(words) == 3
    else:
        program, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        if program == "docs.screenshots.make" or program == "docs/screenshots/make.py":  # has no options
            assert not asked(rest)
            return
        assert program.endswith(".py") or importlib.util.find_spec(program), program
        assert not program.endswith(".py") or (ROOT / program).is_file(), program
        subcommand = [rest[0]] if program == "emrrg_core" else []
        assert asked(rest) <= options(program, *subcommand), asked(rest) - options(program, *subcommand)


def check(words: list[str]) -> None:
    """A command can be given: its program exists, knows every option, and the files of ours that it names are here."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in rest if "=" not in word and word != "..."} <= set(targets)
    elif program == "bash":
        subprocess.run(["bash", "-n", rest[0]], cwd=ROOT, check=True)
    elif program == "pip" or program.endswith("/pip"):
        named = rest[1:]
        for i, word in enumerate(named):
            if word == "-r":
                assert (ROOT / named[i + 1]).is_file()
            elif not word.startswith("-") and named[i - 1] != "-r":
                Requirement(word)
    elif program == "accelerate":
        at = rest.index("-m")
        assert asked(rest[:at]) <= options("accelerate")
        if "..." not in rest:
            check_python(rest[at:])
    else:
        assert re.fullmatch(r"(radeval/bin/)?python[\d.]*", program), program
        check_python(rest)
    for word in words:
        if re.match(r"(train|docs|assets|benchmarks|tests|cases)/[\w./-]+\w$", word):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line[:60]}" for page, line in COMMANDS])
def test_a_command_exists_with_every_option(page: str, line: str) -> None:
    for part in re.split(r" && | \| ", line):
        words = shlex.split(part, comments=True)
        if ">" in words:
            words = words[: words.index(">")]
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "bash train/nowhere.sh",
        "pip install -r requirements-none.txt",
        "python -m train.nothing",
        "python -m train.results --nothing",
        "python -m emrrg_core draft film.png --nothing",
        "python -m train.evaluate --films docs/nowhere.jsonl",
        "accelerate launch --nothing 1 -m emrrg_core batch FOLDER",
        "curl example.org",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises((AssertionError, subprocess.CalledProcessError, ModuleNotFoundError)):
        check(shlex.split(line))


def test_the_documents_have_commands_and_python() -> None:
    assert len(COMMANDS) > 30
    assert len(of("python")) > 10
    assert {"make demo", "make test"} <= {re.sub(r" +#.*", "", line) for _, line in COMMANDS}
