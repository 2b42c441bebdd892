"""Training speed of every stage, in one run, on this machine: python benchmarks/train.py [--films FILMS.jsonl] [--json]

stages      films a second of a whole step (drawing films, forward, backward, optimizer), each stage with the program, the recipe and the loop that
            train it, at the shipped sizes. Three of them also otherwise:
                heads, tell, projector kept     what the frozen tower sees comes from the disk (`ways = 1`), each film seen before
                tell recompute                  the language model's layers are computed again in the backward pass
memory      of `tell` with and without recompute, each in a process of its own: what it held before its first three steps, and the most during them
processes   seconds of a step in one process with one thread, in two with one thread each (accelerate launch, train/accelerate/cpu.yaml), and in one
            with two threads: the same batch

Each repeat takes one step of every form, after a round that is not counted; numbers are medians. Processes take turns for --rounds, the first two
steps of each not counted. A step has --batch films, not the recipe's number. Without --films, on drawn chests with drawn findings. Near copies are
not looked for, and thresholds are not fitted: they are the shipped checkpoint's. Set OMP_WAIT_POLICY=passive, as train/small.sh does.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scan import machine, milliseconds
from emrrg_core.explain.faithfulness import drawn_chest
from emrrg_core.films.synthetic_findings import LABEL_OF, Sign, draw
from train import contrast, finetune, loop, pretrain, tower
from train.loop import Part, Run, Steps

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "assets" / "checkpoints" / "small"
RECIPES = ROOT / "train" / "recipes"
# form: the program, the section of its recipe, and what that says otherwise
FORMS: dict[str, tuple[Any, str, str]] = {
    "contrast": (contrast, "contrast", ""),
    "pretrain": (pretrain, "pretrain", ""),
    "tower": (tower, "tower", ""),
    "finetune": (finetune, "finetune", ""),
    "heads": (finetune, "heads", "ways = 0"),
    "heads kept": (finetune, "heads", "ways = 1"),
    "tell": (finetune, "tell", "ways = 0"),
    "tell kept": (finetune, "tell", "ways = 1"),
    "tell recompute": (finetune, "tell", "recompute = true"),
    "projector": (finetune, "projector", "tower = false"),
    "projector kept": (finetune, "projector", "tower = false\nways = 1"),
}
# of films without a report of their own: what a recipe without queries learns to write
WORDS = {
    "findings": "The heart is of normal size. The lungs are clear. There is no pleural effusion. The bones are intact.",
    "impression": "No acute disease.",
}
MEMORY = ("tell", "tell recompute")
WAYS = {"one process, one thread": (1, 1), "two processes, one thread each": (2, 1), "one process, two threads": (1, 2)}


# ------------------------------------------------------------------------------------------------------------ what from


def draw_films(folder: Path, count: int) -> Path:
    """A film set of drawn chests, half of them normal with a lung mask, half with a drawn finding."""
    rng, rows = np.random.default_rng(0), []
    y, x = np.mgrid[:256, :256] / 256
    lungs = np.zeros((256, 256), bool)
    for middle in (0.31, 0.69):
        lungs |= ((x - middle) / 0.13) ** 2 + ((y - 0.45) / 0.28) ** 2 < 1
    cv2.imwrite(str(folder / "lungs.png"), lungs.astype(np.uint8) * 255)
    signs = list(Sign)
    for i in range(count):
        film, labels = 255 * drawn_chest(256, rng), dict.fromkeys(LABEL_OF.values(), 0) | {"No Finding": 1}
        row: dict[str, Any] = {"id": f"{i}", "source": "drawn", "split": "train", "files": [f"{i}.png"]}
        if i % 2:
            sign = signs[i // 2 % len(signs)]
            film, _ = draw(film, lungs, sign, rng)
            labels |= {LABEL_OF[sign]: 1, "No Finding": 0}
        else:
            row["lung_mask"] = "lungs.png"
        cv2.imwrite(str(folder / f"{i}.png"), film.round().astype(np.uint8))
        rows.append(row | {"labels": labels})
    return _write(folder, rows)


def some_films(folder: Path, path: Path, count: int) -> Path:
    """About so many training films of a film set, from all over it."""
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["split"] == "train"]
    rows = rows[:: max(1, len(rows) // count)]
    for row in rows:
        row["files"] = [str((path.parent / file).absolute()) for file in row["files"]]
        if row.get("lung_mask"):
            row["lung_mask"] = str((path.parent / row["lung_mask"]).absolute())
    return _write(folder, rows)


def _write(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    rows = [WORDS | row for row in rows]
    (folder / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "films.jsonl"


def prepare(folder: Path, films: Path | None, count: int) -> None:
    """Films, and the shipped tower as each stage starts from it."""
    made = some_films(folder, films, count) if films else draw_films(folder, count)
    sources = sorted({json.loads(line)["source"] for line in made.read_text().splitlines()})
    (folder / "sources.json").write_text(json.dumps(sources))
    weights = {n: v.float() for n, v in load_file(CHECKPOINT / "model.safetensors").items() if ".lora." not in n}
    parts = ("visual_encoder.", "disease.", "lungs.")
    save_file({n: v for n, v in weights.items() if n.startswith(parts)}, folder / "eye.safetensors")
    stem = "visual_encoder.patch_embed."
    save_file(
        {f"stem.{n.removeprefix(stem)}": v for n, v in weights.items() if n.startswith(stem)},
        folder / "reader.safetensors",
    )


def recipe(folder: Path, form: str, batch: int, steps: int) -> Path:
    """The shipped recipe of a form, with these films' sources, and other numbers of films and steps."""
    program, section, more = FORMS[form]
    name = "pretrain" if program is pretrain else "projector" if section == "projector" else "small"
    text = (RECIPES / f"{name}.toml").read_text()
    sources = ", ".join(f'"{source}" = 1.0' for source in json.loads((folder / "sources.json").read_text()))
    text = re.sub(r"^epochs = .*$", f"steps = {steps}", text, flags=re.M)
    text = re.sub(r"^warmup_epochs = .*$", "", text, flags=re.M)
    for setting, value in {"steps": steps, "batch": batch, "save_every": steps}.items():
        text = re.sub(rf"^{setting} = .*$", f"{setting} = {value}", text, flags=re.M)
    text = re.sub(r"^sources = .*$", f"sources = {{ {sources} }}", text, flags=re.M)
    heading = "[finetune]" if section == "projector" else f"[{section}]"
    text = text.replace(f"{heading}\n", f"{heading}\n{more}\n", 1)
    path = folder / f"{form.replace(' ', '-')}.toml"
    path.write_text(text)
    return path


# --------------------------------------------------------------------------------------------------------------- a stage


@dataclass(frozen=True)
class Lesson:
    """What a program hands to the loop."""

    model: torch.nn.Module
    run: Run
    loss_of: loop.LossOf
    out: Path


def lesson_of(form: str, folder: Path, batch: int, steps: int, out: Path) -> Lesson:
    """A stage's program, up to its first step."""
    program, section, _ = FORMS[form]
    given = ["--recipe", f"{recipe(folder, form, batch, steps)}", "--films", f"{folder / 'films.jsonl'}"]
    given += ["--cache", f"{folder / 'cache'}", "--out", f"{out}", "--threads", f"{torch.get_num_threads()}"]
    if program in (tower, finetune):
        given += ["--start", f"{folder}"]
    if section == "projector":
        given += ["--design", "projector"]
    elif program is finetune:
        given += ["--section", section, "--begin", f"{CHECKPOINT}"]
    taken: list[Lesson] = []

    def take(model: torch.nn.Module, run: Run, loss_of: loop.LossOf, out: Path, **_: Any) -> None:
        taken.append(Lesson(model, run, loss_of, out))

    with (
        mock.patch.object(program, "train", take),
        mock.patch.object(tower, "near_copies", return_value=set()),
        mock.patch.object(finetune, "near_copies", return_value=set()),
        mock.patch.object(finetune.FindingLessons, "_calibrate", return_value={}),
        mock.patch.object(sys, "stdout", sys.stderr),
    ):
        program.main(given)
    return taken[0]


def stepping(lesson: Lesson, repeats: int) -> Callable[[], object]:
    """Its next step, of as many as are repeated; films that are kept have been seen."""
    steps = Steps(lesson.model, lesson.run, lesson.loss_of, lesson.out)
    steps.lesson.train()
    with torch.no_grad():
        for step in range(repeats + 1) if "kept" in lesson.out.name else ():
            steps.lesson(Part(step, 0, 1, steps.accelerator.device))
    numbers = iter(range(repeats + 1))
    return lambda: steps(next(numbers))


def measure_stages(forms: Sequence[str], folder: Path, batch: int, repeats: int) -> dict[str, Any]:
    steps = {
        form: stepping(lesson_of(form, folder, batch, repeats + 1, folder / form.replace(" ", "-")), repeats)
        for form in forms
    }
    taken = milliseconds(steps, repeats)
    return {form: {"films_per_s": batch / ms * 1e3, "step_ms": ms} for form, ms in taken.items()}


# ---------------------------------------------------------------------------------------------------------------- memory


def memory_of(form: str, folder: Path, batch: int) -> dict[str, float]:
    """MB of this process before its first three steps, and the most while it takes them; on a GPU, of its memory."""
    step = stepping(lesson_of(form, folder, batch, 3, folder / form.replace(" ", "-")), 2)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            step()
        return {"before_mb": before / 2**20, "peak_mb": torch.cuda.max_memory_allocated() / 2**20}
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far: that of loading
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return {"before_mb": before, "peak_mb": _status("VmHWM")}


def _status(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found, "this system does not tell what a process holds"
    return int(found[1]) / 1024


# ------------------------------------------------------------------------------------------------------------- processes


def work(form: str, folder: Path, batch: int, steps: int, out: Path) -> None:
    """One of some processes: all steps, and nothing after them."""
    lesson = lesson_of(form, folder, batch, steps, out)
    loop.train(lesson.model, lesson.run, lesson.loss_of, out)


def seconds_of_steps(form: str, folder: Path, batch: int, steps: int, processes: int, threads: int) -> list[float]:
    """Of a program that is started anew, but for its first two steps."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        mine = [str(Path(__file__).resolve()), "--work", form, "--folder", f"{folder}", "--out", out]
        mine += ["--batch", f"{batch}", "--steps", f"{steps}", "--threads", f"{threads}"]
        # of all alike, though only two processes need a launcher
        asked = {"ACCELERATE_MIXED_PRECISION": loop.precision(), "OMP_NUM_THREADS": f"{threads}"}
        asked |= {"OMP_WAIT_POLICY": "passive"}
        launch = ["-m", "accelerate.commands.launch", "--config_file", f"{ROOT}/train/accelerate/cpu.yaml"]
        launch += ["--num_processes", f"{processes}", "--mixed_precision", loop.precision()]
        command = [sys.executable, *(launch if processes > 1 else ()), *mine]
        subprocess.run(command, cwd=ROOT, env=os.environ | asked, check=True, stdout=sys.stderr)
        with (Path(out) / "log.csv").open(newline="") as file:
            ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    return [end - begin for begin, end in pairwise(ends[1:])]


def measure_processes(form: str, folder: Path, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, (processes, threads) in WAYS.items():
            taken[way] += seconds_of_steps(form, folder, batch, steps, processes, threads)
    found: dict[str, Any] = {way: statistics.median(times) for way, times in taken.items()}
    alone, two, threads = found.values()
    return found | {"two_over_one": alone / two, "two_over_two_threads": threads / two}


# --------------------------------------------------------------------------------------------------------------- program


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, help="a film set to take films from instead of drawing them")
    parser.add_argument("--count", type=int, default=160, help="films, about")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*FORMS], help="these forms, and no memory")
    parser.add_argument("--processes-of", nargs="*", choices=[*FORMS], default=["pretrain", "finetune"])
    parser.add_argument("--rounds", type=int, default=3, help="of processes that take turns; 0: none")
    parser.add_argument("--steps", type=int, default=6, help="of each process")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--json", action="store_true")
    # what the processes that this one starts are told
    for name in ("--work", "--memory", "--folder", "--out", "--threads"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(int(args.threads))
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    if args.work:
        work(args.work, Path(args.folder), args.batch, args.steps, Path(args.out))
        return
    if args.memory:
        print(json.dumps(memory_of(args.memory, Path(args.folder), args.batch)))
        return
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args.films, args.count)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
        found: dict[str, Any] = {
            "machine": device,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": loop.precision(),
            "batch": args.batch,
            "films": "drawn" if args.films is None else args.films.name,
            "stages": measure_stages(args.only or [*FORMS], folder, args.batch, args.repeats),
        }
        if not args.only:
            found["memory"] = {}
            for form in MEMORY:
                command = [sys.executable, __file__, "--memory", form, "--folder", name, "--batch", f"{args.batch}"]
                told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
                found["memory"][form] = json.loads(told.splitlines()[-1])
        if args.rounds:
            found["processes"] = {
                form: measure_processes(form, folder, args.batch, args.steps, args.rounds) for form in args.processes_of
            }
    found["seconds"] = time.perf_counter() - begun
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        if not isinstance(rows, dict):
            print(f"{title:32} {rows:.0f}" if isinstance(rows, float) else f"{title:32} {rows}")
            continue
        for form, numbers in rows.items():
            print(f"{title:10} {form:16}", *(f"{what}: {number:.2f} " for what, number in numbers.items()))


if __name__ == "__main__":
    main()
