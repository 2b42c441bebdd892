"""The training loop of every stage. accelerate places the model, uses bfloat16 where that is faster, accumulates and clips gradients.

A step is `Run.batch` films over all processes. Every process takes as many parts of it as gradients are accumulated. The losses of the parts add up
to the loss of the step, so one process and many learn the same. All random numbers of step n come from (seed, n), so a resumed run draws the same
films as one that was never stopped.

    out/
        run.json            settings, number of processes, precision
        log.csv             a row for each step
        scores.jsonl        a row for each call of `after`
        last.pt             the trained weights and the optimizer's state, to resume from
        best.safetensors    the trained weights with the highest `Run.select`
        tensorboard/        if `Run.tensorboard` is set
"""

import csv
import dataclasses
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.utils import GradientAccumulationPlugin, reduce
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from emrrg_core.config import Settings
from emrrg_core.errors import CheckpointError, ConfigError, EmrrgError
from emrrg_core.model.language_model import prefers_bfloat16

T = TypeVar("T")
Own = TypeVar("Own", bound=Settings)
Scores = Mapping[str, float | None]  # by name; None is what could not be computed

log = logging.getLogger(__name__)

_TERM = re.compile(r"\s*([+-]?)\s*(?:(\d+(?:\.\d+)?)\s*\*\s*)?([A-Za-z_][\w./@]*)\s*")
# settings that may change when a run is resumed: they change no film that is drawn
_FREE = ("stop", "accumulate", "tensorboard")


class DivergedError(EmrrgError, FloatingPointError):
    """A loss or a gradient is not a number, or without end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """Settings of one stage."""

    steps: int
    batch: int  # films of a step, over all processes
    learning_rates: dict  # part of a parameter's name -> learning rate; the longest part that fits decides
    warmup: int = 50  # steps of linear warm-up, then a half cosine to a fiftieth
    weight_decay: float = 0.05  # on matrices only
    clip: float = 1.0  # of the gradient's norm
    seed: int = 0
    accumulate: int = 1  # parts that a process computes one after the other, for less memory: the same step
    save_every: int = 100
    select: str = (
        ""  # the best checkpoint by the scores that `after` returns: "0.8*bleu4 + 0.2*cider", "-loss"; "" keeps none
    )
    stop: int = 0  # end after this many steps, the schedule unfinished; 0 is all of them
    tensorboard: bool = False  # write there too, where it is installed
    sources: dict = dataclasses.field(default_factory=dict)  # source of the films -> share of the batches

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.accumulate < 1 or self.save_every < 1:
            raise ConfigError("steps, batch, accumulate and save_every must be at least 1")
        if self.select:
            _terms(self.select)

    @property
    def last(self) -> int:
        """How many steps are done when it ends."""
        return min(self.stop or self.steps, self.steps)


def apart(kind: type[Own], section: Mapping[str, Any]) -> tuple[Own, Run]:
    """A recipe's section as a stage's own settings and the loop's. Raises ConfigError for a setting that neither knows."""
    assert dataclasses.is_dataclass(kind), "a stage's settings are a dataclass"
    names = {field.name for field in dataclasses.fields(kind)}
    return (
        kind.from_dict({name: value for name, value in section.items() if name in names}),
        Run.from_dict({name: value for name, value in section.items() if name not in names}),
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """What a process computes at once of a step: its share of the batch. One process that does not accumulate has one part, the whole step."""

    step: int  # from 0
    index: int  # of this part in the step, from 0
    count: int  # parts of a step, over all processes
    device: torch.device
    turns: int = 1  # parts that each process computes, one after the other

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This part's share of what was drawn for the whole step: as many for every part, in order. Also of arrays and tensors, by rows."""
        size, rest = divmod(len(items), self.count)
        if rest:
            raise ValueError(f"{len(items)} cannot be divided evenly among the {self.count} parts of a step")
        return items[self.index * size : (self.index + 1) * size]

    def share(self, weight: float) -> float:
        """What a mean over this part's tokens, say, must be multiplied by for the parts' means to add up to the mean over the step.

        weight: what this part divided by, its number of tokens or the sum of their weights; where it is 0, so is the share. Exact over processes,
        which must all ask for the same shares in the same order. Parts still to come have not been drawn yet: with `turns` they are taken to weigh
        as much as those of this turn. Who knows the weight of the whole step, by drawing it, may divide by that and needs no share.
        """
        total = weight
        if self.count > self.turns:
            total = reduce(torch.tensor(float(weight), device=self.device), "sum").item()
        return weight / total / self.turns if weight else 0.0


Numbers = Mapping[str, float | Tensor]  # for the log
LossOf = Callable[[Part], tuple[Tensor, Numbers]]


def groups(model: nn.Module, run: Run) -> list[dict[str, Any]]:
    """Every trainable tensor in exactly one optimizer group. Raises ConfigError for one that no learning rate names."""
    made: dict[tuple[float, bool], list[nn.Parameter]] = {}
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("nothing of this model is trainable: unfreeze a part of it, or give it adapters")
    for name, parameter in trainable:
        fitting = [part for part in run.learning_rates if part in name]
        if not fitting:
            raise ConfigError(f"no learning rate is given for {name}")
        rate = float(run.learning_rates[max(fitting, key=len)])
        made.setdefault((rate, parameter.dim() >= 2 and not name.endswith("_log")), []).append(parameter)
    grouped = [id(parameter) for parameters in made.values() for parameter in parameters]
    assert sorted(grouped) == sorted(id(parameter) for _, parameter in trainable), "a tensor in no group, or in two"
    return [
        {"params": parameters, "lr": rate, "weight_decay": run.weight_decay if decays else 0.0}
        for (rate, decays), parameters in made.items()
    ]


def schedule(step: int, run: Run) -> float:
    """Factor on every learning rate at a step (from 0)."""
    if step < run.warmup:
        return (step + 1) / run.warmup
    done = (step - run.warmup) / max(run.steps - run.warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """What the torch generator is set to before a part of a step: parts must not drop out the same units."""
    return (seed * 1_000_003 + step + part * 7_368_787) % 2**31


def score(select: str, scores: Scores) -> float:
    """The one number that `select` makes of named scores: "0.8*bleu4 + 0.2*cider" (docs/method.md 5.4). Raises ConfigError for a
    score that is not there."""
    total = 0.0
    for name, factor in _terms(select).items():
        value = scores.get(name)
        if value is None:
            what = "could not be computed" if name in scores else f"is none of {sorted(scores)}"
            raise ConfigError(f"the best checkpoint is to be selected by {name}, which {what}: change `select`")
        total += factor * value
    return total


def _terms(select: str) -> dict[str, float]:
    terms, at = {}, 0
    while at < len(select):
        found = _TERM.match(select, at)
        if found is None or (at > 0 and not found[1]):
            raise ConfigError(f"select must be a sum of named scores, such as 0.8*bleu4 + 0.2*cider, not {select!r}")
        terms[found[3]] = float(found[2] or 1) * (-1 if found[1] == "-" else 1)
        at = found.end()
    return terms


def load_trained(model: nn.Module, path: Path) -> None:
    """Put what a run has trained (its last.pt or best.safetensors) into a model built as that run built it.

    Raises CheckpointError where the file cannot be read, or holds other tensors than this model trains.
    """
    try:
        whole = {} if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        trained = whole["trained"] if whole else load_file(path)
    except Exception as error:  # torch and safetensors raise whatever the bytes lead them to
        raise CheckpointError(f"{path} is no checkpoint of a training run: {error}") from error
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shapes = {name: parameter.shape for name, parameter in own.items()}
    if different := sorted({*shapes.items()} ^ {(name, value.shape) for name, value in trained.items()}):
        raise CheckpointError(
            f"{path} was trained with another model: {different[0][0]} differs, of {len(different)}. "
            "Of a run that taught a part only, take the folder `checkpoint`, which holds the rest too."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(trained[name])


def train(
    model: nn.Module,
    run: Run,
    loss_of: LossOf,
    out: Path,
    *,
    after: Callable[[int], Scores | None] = lambda step: None,
) -> None:
    """Run all steps, or those that a stopped run in `out` left over. Every process calls this, with a model built alike.

    loss_of(part) draws the step's batch, the same in every process, takes its films with `part.of`, and returns the part's loss and numbers for
    the log. The losses of all parts must add up to the loss of the step: a mean over the part is multiplied by `part.share`. The numbers are
    averaged over the parts that have one (nan: none). In one process that does not accumulate, the part is the whole step, its share 1.

    after(step) is called once a step is saved, in the first process alone, and may return named scores. It is not called where the model's
    weights are spread over the processes (FSDP), since then no process can run the model alone: run the program once more in one process,
    when there is no step left to do, and it is called for the last one.

    Raises ConfigError where settings, processes or a folder's run do not go together, DivergedError when a loss or gradient is not finite.
    """
    steps = Steps(model, run, loss_of, out)
    keeper = _Keeper(steps.accelerator, steps.lesson, steps.optimizer, run, out, after)
    first, last = keeper.resume(), run.last
    lines = _Lines(steps.accelerator, run, out, first)
    begun = time.perf_counter()
    steps.lesson.train()
    watched = steps.accelerator.is_main_process and sys.stderr.isatty()
    for step in (bar := tqdm(range(first, last), initial=first, total=last, unit="step", disable=not watched)):
        row = steps(step)
        lines.add({**row, "seconds": time.perf_counter() - begun})
        bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
        if (step + 1) % run.save_every == 0 or step + 1 == last:
            keeper.save(step + 1)
            steps.lesson.train()
    lines.close()


class Steps:
    """A model, its optimizer and where both run, made ready; called with the number of a step, it does that step: what `train` does but for saving.

    Raises as `train` does.
    """

    def __init__(self, model: nn.Module, run: Run, loss_of: LossOf, out: Path) -> None:
        """out: for messages."""
        self._run, self._out = run, out
        self.accelerator = accelerator = _accelerator(run)
        self._count = count = accelerator.num_processes * run.accumulate
        if run.batch % count:
            raise ConfigError(
                f"a batch of {run.batch} cannot be divided evenly among {accelerator.num_processes} processes "
                f"that accumulate {run.accumulate} parts: make it a multiple of {count}"
            )
        optimizer = torch.optim.AdamW(groups(model, run), lr=0.0, betas=(0.9, 0.95))
        self._base = [group["lr"] for group in optimizer.param_groups]
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        if deepspeed and accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ConfigError(
                "ZeRO-3 removes weights that the hybrid decoder needs between layers: train with fsdp.yaml"
            )
        if deepspeed:  # which clips and accumulates by itself: it is told what the recipe says
            accelerator.state.deepspeed_plugin.deepspeed_config.update(
                train_micro_batch_size_per_gpu=run.batch // count,
                gradient_accumulation_steps=run.accumulate,
                gradient_clipping=run.clip,
            )
        spread = deepspeed or accelerator.distributed_type == DistributedType.FSDP
        self.lesson: Any
        self.optimizer: Any
        self.lesson, self.optimizer = accelerator.prepare(_Lesson(model, loss_of, reach_all=spread), optimizer)

    def __call__(self, step: int) -> dict[str, float]:
        """Step number `step`, from 0: its number, loss, gradient norm, and the means of the parts' numbers."""
        run, accelerator = self._run, self.accelerator
        for group, rate in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = rate * schedule(step, run)
        total, norm, names, rows = 0.0, 0.0, [], []
        for turn in range(run.accumulate):
            index = accelerator.process_index * run.accumulate + turn
            part = Part(step, index, self._count, accelerator.device, run.accumulate)
            torch.manual_seed(step_seed(run.seed, step, part.index))
            with accelerator.accumulate(self.lesson):
                loss, numbers = self.lesson(part)
                names = list(numbers)
                row = torch.stack(
                    [torch.as_tensor(n, device=accelerator.device) for n in (loss.detach(), *numbers.values())]
                )
                rows.append(accelerator.gather(row.float().unsqueeze(0)).cpu())
                total += rows[-1][:, 0].sum().item()
                # known in every process at once, before any gradient: none waits for one that has given up
                _require_finite("loss", total, step, self._out)
                # accelerate takes the mean of the parts' gradients: their sum is `count` times as much
                accelerator.backward(loss * self._count)
                if accelerator.sync_gradients:
                    # all parameters, frozen ones too: a sharded model is recognised by them; DeepSpeed clips by itself
                    norm = float(accelerator.clip_grad_norm_(self.lesson.parameters(), run.clip) or 0.0)
                    _require_finite("gradient", norm, step, self._out)
                self.optimizer.step()
                self.optimizer.zero_grad()
        means = dict(zip(names, torch.cat(rows)[:, 1:].nanmean(0).tolist(), strict=True))
        return {"step": step, "loss": total, "norm": norm, **means}


class _Lesson(nn.Module):
    """A model and its loss as one module, so that whatever accelerate wraps around it sees every use of the model.

    reach_all: give also the tensors that this part does not use a gradient, of zeros. FSDP and DeepSpeed would else reduce other tensors in one
    process than in another; DDP finds them by itself.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf, *, reach_all: bool) -> None:
        super().__init__()
        self.model, self._loss_of, self._reach_all = model, loss_of, reach_all

    def forward(self, part: Part) -> tuple[Tensor, Numbers]:
        loss, numbers = self._loss_of(part)
        if self._reach_all:
            # those that are spread out at this moment belong to a wrapped layer, which is always used
            whole = (p for p in self.parameters() if p.requires_grad and p.numel() and not isinstance(p, DTensor))
            loss = loss + 0.0 * sum(p.float().sum() for p in whole)
        return loss, numbers


def precision() -> str:
    """Of a run, as accelerate names it: what a launcher's configuration says, else bf16 where that is fast, else no."""
    fast = prefers_bfloat16("cuda" if torch.cuda.is_available() else "cpu")
    return os.environ.get("ACCELERATE_MIXED_PRECISION") or ("bf16" if fast else "no")


def _accelerator(run: Run) -> Accelerator:
    """CUDA or the CPU, for which the scan has kernels. What a launcher's configuration says about precision holds; else what is fast here."""
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=precision(),
        # not gradient_accumulation_steps: a launcher's environment would overrule it
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=run.accumulate),
        kwargs_handlers=[
            # a part need not use every tensor: a batch without lung masks trains no reader of lungs
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # the others wait while the first process writes drafts for the score
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),
        ],
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigError(f"train in bf16 or without mixed precision: {accelerator.mixed_precision} is not supported")
    return accelerator


def _require_finite(what: str, value: float, step: int, out: Path) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"The {what} of step {step} is non-finite ({value}), so training stopped. What was saved in {out} is intact. "
            "Look at the films of that step, or take lower learning rates or a longer warm-up in another folder."
        )


class _Keeper:
    """Saves, scores and resumes a run."""

    def __init__(
        self,
        accelerator: Accelerator,
        lesson: Any,  # a _Lesson, or what accelerate has wrapped around it
        optimizer: Any,
        run: Run,
        out: Path,
        after: Callable[[int], Scores | None],
    ) -> None:
        self._accelerator, self._lesson, self._optimizer = accelerator, lesson, optimizer
        self._run, self._out, self._after = run, out, after
        self._deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self._sharded = accelerator.distributed_type == DistributedType.FSDP
        if self._sharded and run.select:
            raise ConfigError(
                "a model whose weights are spread over the processes cannot write drafts while it trains: "
                "leave `select` out and score what was saved, or train with ddp.yaml or deepspeed_zero2.yaml"
            )
        self._settings = {name: value for name, value in run.to_dict().items() if name not in _FREE}

    def resume(self) -> int:
        """The first step to do; weights and optimizer are then as they were left."""
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / "last.pt"
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        if other := sorted(k for k in {*state["run"], *self._settings} if state["run"].get(k) != self._settings.get(k)):
            raise ConfigError(
                f"{self._out} holds a run with other settings ({', '.join(other)}); name another folder or delete it"
            )
        step = int(state["step"])
        self._restore(state, left=self._run.last - step)
        scored = step in {row["step"] for row in self._scores()}
        self._accelerator.wait_for_everyone()
        if not scored:
            self._measure(step, self._trained())
        return step

    def save(self, step: int) -> None:
        """Write last.pt, then let `after` judge it."""
        trained = self._trained()
        state = {"step": step, "run": self._settings, "trained": trained, "optimizer": self._optimizer_state(step)}
        if self._accelerator.is_main_process:
            _replace(self._out / "last.pt", lambda path: torch.save(state, path))
            for old in (self._out / "deepspeed").glob("[0-9]*"):
                if old.name != str(step):
                    shutil.rmtree(old)
        self._measure(step, trained)

    def _measure(self, step: int, trained: dict[str, Tensor]) -> None:
        if self._accelerator.is_main_process and not self._sharded:
            scores, select = self._after(step), self._run.select
            row = {"step": step, **(scores or {})}
            if select and scores is not None:
                row["score"] = score(select, scores)
                self._keep_best(row, trained)
            with (self._out / "scores.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        self._accelerator.wait_for_everyone()

    def _keep_best(self, row: dict[str, Any], trained: dict[str, Tensor]) -> None:
        path, best = self._out / "best.safetensors", -math.inf
        if path.exists():
            with safe_open(path, framework="pt") as file:
                best = float(file.metadata()["score"])
        if row["score"] > best:
            about = {"step": str(row["step"]), "score": repr(row["score"]), "scores": json.dumps(row)}
            about |= {"select": self._run.select, "run": json.dumps(self._settings)}
            _replace(path, lambda path: save_file(trained, path, metadata=about))

    def _scores(self) -> list[dict[str, Any]]:
        path = self._out / "scores.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    # -- where the weights are ----------------------------------------------------------------------------------------

    def _trained(self) -> dict[str, Tensor]:
        """Every trained tensor, whole, on the CPU, under the model's own name; to be had in the first process."""
        if self._deepspeed:
            own = self._lesson.module.model.named_parameters()
            return {name: p.detach().float().cpu().clone() for name, p in own if p.requires_grad}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state: dict[str, Any] = get_model_state_dict(self._lesson, options=options)
        # a frozen tensor that has a second name, as tied embeddings have, is still in there under that one
        own = {name for name, p in self._accelerator.unwrap_model(self._lesson).named_parameters() if p.requires_grad}
        return {name.removeprefix("model."): value.contiguous() for name, value in state.items() if name in own}

    def _optimizer_state(self, step: int) -> dict[str, Any]:
        if self._deepspeed:  # whose state only it can put together again: a folder beside
            self._lesson.save_checkpoint(str(self._out / "deepspeed"), tag=str(step), exclude_frozen_parameters=True)
            return {}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(self._lesson, self._optimizer.optimizer, options=options)

    def _restore(self, state: dict[str, Any], left: int) -> None:
        if self._deepspeed:
            folder, tag = str(self._out / "deepspeed"), str(state["step"])
            found, _ = self._lesson.load_checkpoint(folder, tag=tag, load_module_strict=False)
            if found is None:
                raise ConfigError(f"{self._out} was not begun with DeepSpeed: go on without it, or name another folder")
            return
        if left > 0 and not state["optimizer"]:
            raise ConfigError(f"{self._out} was trained with DeepSpeed: go on with it, or name another folder")
        options = StateDictOptions(full_state_dict=True, strict=False)
        trained = {f"model.{name}": value for name, value in state["trained"].items()}
        set_model_state_dict(self._lesson, trained, options=options)
        if not state["optimizer"]:
            return
        optimizer = self._optimizer.optimizer
        set_optimizer_state_dict(self._lesson, optimizer, state["optimizer"], options=options)
        # torch gives a state, one step old, also to a tensor that had no gradient yet: its first step would be another one
        for name, parameter in self._accelerator.unwrap_model(self._lesson).named_parameters():
            if name not in state["optimizer"]["state"]:
                optimizer.state.pop(parameter, None)


class _Lines:
    """log.csv, run.json and TensorBoard, in the first process."""

    def __init__(self, accelerator: Accelerator, run: Run, out: Path, first: int) -> None:
        self._path, self._board = out / "log.csv", None
        self._writes = accelerator.is_main_process
        if not self._writes:
            return
        about = {"processes": accelerator.num_processes, "precision": accelerator.mixed_precision}
        about |= {"device": accelerator.device.type, "torch": torch.__version__}
        text = json.dumps({"run": run.to_dict(), **about}, indent=2) + "\n"
        _replace(out / "run.json", lambda path: path.write_text(text))
        self._forget(first)
        if run.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                log.warning("TensorBoard is asked for but not installed: pip install tensorboard. log.csv has it all.")
            else:
                self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first)

    def _forget(self, first: int) -> None:
        """Drop the rows of steps that were done after the last save, and will be done again."""
        if self._path.exists():
            with self._path.open(newline="") as file:
                header, *rows = csv.reader(file)
            kept = [header, *(row for row in rows if int(row[0]) < first)]
            text = "".join(",".join(row) + "\r\n" for row in kept)
            _replace(self._path, lambda path: path.write_text(text, newline=""))

    def add(self, row: Mapping[str, float]) -> None:
        if not self._writes:
            return
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(row)
            writer.writerow([value if isinstance(value, int) else f"{value:.6g}" for value in row.values()])
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all: written beside its place and put there at once."""
    beside = path.with_name(f"{path.name}.tmp")
    write(beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


__all__ = [
    "DivergedError",
    "Part",
    "Run",
    "Steps",
    "groups",
    "load_trained",
    "precision",
    "schedule",
    "score",
    "step_seed",
    "train",
]
