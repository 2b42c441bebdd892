"""The house: imports point one way, every room keeps to what it may know, and the public names are there."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import emrrg_core
from ui import gradio_internals, lazy
from ui.gradio_internals import CHECKED_WITH

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "emrrg_core"

# the rooms, and which of them each may import; errors and config may be imported by all
ROOMS = {
    "errors": "",
    "config": "",
    "text": "",  # reports as text
    "films": "",  # files of films
    "data": "films text",  # film sets
    "model": "films text",  # the paper's model
    "report": "model text",  # draft, report, sessions
    "explain": "films model report",  # heat maps and their tests
    "export": "explain films report text",
    "teaching": "explain films model report text",  # cases and classes
    "reporter": "explain films model report text",  # films in, drafts out
    "memory": "model report text",  # cases that a site remembers
    "hospital": "export films model report reporter",  # a round trip with an archive
    "scale": "explain films model report reporter text",  # many films, many machines
    "__init__": "explain export films model report reporter teaching text",
    "__main__": "hospital memory scale explain films model report reporter text",
}
# within the model, lower parts know nothing of higher ones
MODEL = (
    "threads",
    "writing",
    "selective_scan",
    "vision_mamba",
    "other_towers",
    "partial_lora",
    "disease_queries",
    "finding_tokens",
    "hybrid_decoder",
    "associative_memory",
    "prior_film",
    "language_model",
    "emrrg",
    "pretraining",
    "parameter_count",
    "checkpoint",
    "convert",
    "inference",
    "decoding",
    "proposals",
    "generation",
    "engine",
)
# who may import which of the large libraries
OUTSIDE = {
    "gradio": "app.py ui/",
    "argparse": "emrrg_core/__main__.py emrrg_core/data/public_datasets.py app.py train/ benchmarks/ .ci/",
    "pydicom": "emrrg_core/films/ emrrg_core/export/ emrrg_core/hospital/ app.py benchmarks/",  # app.py: the example film comes with pydicom's data
    "pynetdicom": "emrrg_core/hospital/",
    "dicomweb_client": "emrrg_core/hospital/",
    "requests": "emrrg_core/hospital/",
    "mamba_ssm": "emrrg_core/model/selective_scan/ benchmarks/",
    "causal_conv1d": "emrrg_core/model/selective_scan/ benchmarks/",
    "train": "train/ benchmarks/",
    "ui": "app.py ui/ benchmarks/",
    "app": "app.py",
}


def sources() -> list[Path]:
    """Every Python file of the project, but for tests."""
    rooms = [
        path for name in ("emrrg_core", "ui", "train", "benchmarks") for path in sorted((ROOT / name).rglob("*.py"))
    ]
    return [*rooms, *(path for path in [ROOT / "app.py"] if path.exists())]


def ours() -> list[Path]:
    """Every text file that git knows or would take, as it lies here."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [path for path in files if b"\0" not in path.read_bytes()[:4096]]


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it; `from a import b` counts as a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)} has a relative import"
            found.add(node.module or "")
            if (node.module or "").split(".")[0] == "emrrg_core":
                folder = ROOT / Path(*(node.module or "").split("."))
                found |= {
                    f"{node.module}.{alias.name}"
                    for alias in node.names
                    if (folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir()
                }
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    """The room of a file of emrrg_core: its folder, or its name where it has none."""
    relative = path.relative_to(CORE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


# ------------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=name)
def test_imports_point_one_way(path):
    room = room_of(path)
    assert room in ROOMS, f"say in ROOMS what {room} may import"
    used = {dotted.split(".")[1] for dotted in imports(path) if dotted.startswith("emrrg_core.")}
    allowed = {"errors", "config", room, *ROOMS[room].split()} - ({"config"} if room == "errors" else set())
    assert used <= allowed, f"{room} may not import {sorted(used - allowed)}"


def test_the_arrows_have_no_cycle():
    todo = {room: set(used.split()) for room, used in ROOMS.items()}
    while todo:
        free = {room for room, used in todo.items() if not used & todo.keys()}
        assert free, f"a cycle among {sorted(todo)}"
        todo = {room: used for room, used in todo.items() if room not in free}


@pytest.mark.parametrize("path", sorted((CORE / "model").rglob("*.py")), ids=name)
def test_lower_parts_of_the_model_know_nothing_of_higher_ones(path):
    mine = path.relative_to(CORE / "model").parts[0].removesuffix(".py")
    if mine == "__init__":
        return
    used = {d.split(".")[2] for d in imports(path) if d.startswith("emrrg_core.model.")} - {mine}
    assert used <= set(MODEL[: MODEL.index(mine)]), (
        f"{mine} may not import {sorted(used - set(MODEL[: MODEL.index(mine)]))}"
    )


def test_the_core_has_at_most_a_dozen_rooms():
    rooms = {room_of(path) for path in CORE.rglob("*.py")} - {"__init__", "__main__", "errors", "config"}
    assert len(rooms) <= 12, sorted(rooms)


@pytest.mark.parametrize("path", sources(), ids=name)
def test_large_libraries_stay_in_their_rooms(path):
    for library, rooms in OUTSIDE.items():
        if any(dotted.split(".")[0] == library for dotted in imports(path)):
            assert name(path).startswith(tuple(rooms.split())), f"{name(path)} may not import {library}"


@pytest.mark.parametrize("path", [p for p in sources() if name(p) == "app.py" or name(p).startswith("ui/")], ids=name)
def test_screens_know_no_tensor_and_nothing_of_the_model_but_what_it_tells(path):
    used = imports(path)
    assert not {dotted for dotted in used if dotted.split(".")[0] in ("torch", "transformers", "train")}
    told = {f"emrrg_core.model.{part}" for part in ("finding_tokens", "parameter_count", "threads", "writing")}
    inner = {dotted for dotted in used if dotted.startswith("emrrg_core.model")} - told
    assert not inner, f"the screens ask the reporter, not {sorted(inner)}"


SCREENS = [path for path in sources() if name(path) == "app.py" or name(path).startswith("ui/")]
# what is laid out, connected or served; all the rest of ui/ can be called without Gradio
WITH_GRADIO = re.compile(
    r"app\.py|ui/(about|api|handlers|gradio_internals)\.py|ui/(read|teach)/(__init__|layout|wiring)\.py"
)
INTERNALS = "ui/gradio_internals.py"
LONGEST_FUNCTION = 80  # lines


@pytest.mark.parametrize("path", SCREENS, ids=name)
def test_view_functions_know_nothing_of_gradio(path):
    knows = any(dotted.split(".")[0] == "gradio" for dotted in imports(path))
    assert not knows or WITH_GRADIO.fullmatch(name(path)), "return names and values (ui/updates.py)"


@pytest.mark.parametrize("path", [path for path in SCREENS if name(path) != INTERNALS], ids=name)
def test_only_one_file_touches_the_insides_of_gradio(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {dotted for dotted in imports(path) if dotted.startswith("gradio.")}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"state_holder", "session_data", "time_last_used", "fns", "default_config"}
    private = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match(r"_[a-z]", node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "os"))
    }
    assert not private, f"private names of another: {sorted(private)}"
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not words & {"/upload", "/deep_link", "/file="}, "Gradio's routes"


def test_the_insides_of_gradio_were_checked_with_the_version_that_is_pinned():
    pinned = re.search(r"^gradio==(\S+)$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert pinned[1] == CHECKED_WITH, "check each part of ui/gradio_internals.py again"
    public = [made for made in vars(gradio_internals).values() if inspect.isfunction(made)]
    mine = [made for made in public if made.__module__ == gradio_internals.__name__ and made.__name__[0] != "_"]
    assert len(mine) >= 8
    assert [made.__name__ for made in mine if made.__name__ not in (gradio_internals.__doc__ or "")] == []


@pytest.mark.parametrize("path", SCREENS, ids=name)
def test_no_function_of_the_screens_is_long(path):
    long = [
        (node.name, lines)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert long == []


def test_the_names_that_screens_fetch_late_are_at_home_where_they_are_said_to_be():
    for public, home in lazy.HOMES.items():
        module, _, there = home.partition(":")
        assert getattr(lazy, public) is getattr(importlib.import_module(f"emrrg_core.{module}"), there or public)
    with pytest.raises(AttributeError, match="add it to HOMES"):
        _ = lazy.nothing_like_it


def test_no_file_is_called_utils_or_common():
    assert [name(path) for path in sources() if path.stem in ("utils", "util", "common", "helpers", "misc")] == []


LONGEST = 80  # lines of a function


@pytest.mark.parametrize("path", [p for p in sources() if name(p).startswith("train/")], ids=name)
def test_no_function_is_longer_than_a_screen(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= LONGEST] == []


# -------------------------------------------------------------------------------------------------------- public names


def test_there_are_at_most_25_public_names():
    assert len(emrrg_core.__all__) <= 25


def test_every_public_name_can_be_imported_and_is_listed_once_in_order():
    assert all(hasattr(emrrg_core, public) for public in emrrg_core.__all__)
    assert len(set(emrrg_core.__all__)) == len(emrrg_core.__all__)


def test_nothing_else_is_public():
    modules = {path.stem for path in CORE.iterdir()}
    public = {public for public in vars(emrrg_core) if not public.startswith("_")} - modules
    assert public <= set(emrrg_core.__all__)


@pytest.mark.parametrize("public", emrrg_core.__all__)
def test_every_public_name_says_what_it_is(public):
    thing = getattr(emrrg_core, public)
    assert isinstance(thing, str) or (thing.__doc__ and not thing.__doc__.startswith(f"{public}("))


def test_the_library_does_not_bring_a_screen_or_a_plot_with_it():
    """matplotlib and gradio are slow to import and not everyone needs them."""
    code = (
        "import sys, emrrg_core; print([m for m in ('gradio', 'matplotlib.pyplot', 'train', 'ui') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------------------- what is not


def test_no_file_names_a_folder_of_the_machine_it_was_made_on():
    workplace = "/".join(["", "work", ""])  # put together here, so that this file does not name it
    found = [name(path) for path in ours() if re.search(rf"(?<![\w.]){workplace}", path.read_text(errors="replace"))]
    assert found == []


def test_no_debugger_is_left_in():
    left = re.compile(r"^\s*(breakpoint\(\)|import i?pdb)", re.MULTILINE)
    assert [name(path) for path in sources() if left.search(path.read_text(encoding="utf-8"))] == []
