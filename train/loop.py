"""The one training loop: per-part learning rates, warm-up and cosine, clipping, bfloat16 where it is fast, a CSV log, and checkpoints that resume.

Everything random in step n comes from (seed, n), so a resumed run draws exactly what an unbroken one would.
"""

import csv
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emrrg_core.config import _Config
from emrrg_core.errors import ConfigError
from emrrg_core.language import prefers_bfloat16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(_Config):
    """Settings of one stage."""

    steps: int
    batch: int
    learning_rates: dict  # part of a parameter's name -> learning rate; the longest part that fits decides
    warmup: int = 50  # steps of linear warm-up, then a half cosine to a fiftieth
    weight_decay: float = 0.05  # on matrices only
    clip: float = 1.0  # of the gradient's norm
    seed: int = 0
    save_every: int = 100
    stop: int = 0  # end after this many steps, the schedule unfinished; 0 is all of them
    sources: dict = dataclasses.field(default_factory=dict)  # source of the films -> share of the batches

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ConfigError("steps and batch must be at least 1")


def groups(model: nn.Module, run: Run) -> list[dict[str, Any]]:
    """Every trainable tensor in exactly one optimizer group. Raises ConfigError for one that no learning rate names."""
    made: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fitting = [part for part in run.learning_rates if part in name]
        if not fitting:
            raise ConfigError(f"no learning rate is given for {name}")
        rate = float(run.learning_rates[max(fitting, key=len)])
        made.setdefault((rate, parameter.dim() >= 2 and not name.endswith("_log")), []).append(parameter)
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


def step_seed(seed: int, step: int) -> int:
    """What the torch generator is set to before a step."""
    return (seed * 1_000_003 + step) % 2**31


def train(
    model: nn.Module,
    run: Run,
    loss_of: Callable[[int], tuple[Tensor, Mapping[str, float]]],
    out: Path,
    *,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Run all steps, or those that a stopped run in `out` left over.

    loss_of(step) makes the batch of a step and returns its loss and numbers for the log. after(step) is called once a step is done.
    Raises FloatingPointError when a loss or gradient is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(groups(model, run), lr=0.0, betas=(0.9, 0.95))
    base = [group["lr"] for group in optimizer.param_groups]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state_path, log_path = out / "state.pt", out / "log.csv"
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state["run"] != run.to_dict():
            raise ConfigError(f"{out} holds a run with other settings; name another folder or delete it")
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    model.train()
    begun = time.perf_counter()
    last = run.stop or run.steps
    for step in range(first, last):
        torch.manual_seed(step_seed(run.seed, step))
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * schedule(step, run)
        with torch.autocast("cpu", torch.bfloat16, enabled=prefers_bfloat16()):
            loss, numbers = loss_of(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, run.clip, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        elapsed = time.perf_counter() - begun
        _log(log_path, {"step": step, "loss": loss.item(), "norm": norm.item(), **numbers, "seconds": elapsed})
        if (step + 1) % run.save_every == 0 or step + 1 == last:
            names = {name for name, p in model.named_parameters() if p.requires_grad}
            state = {
                "step": step + 1,
                "run": run.to_dict(),
                "model": {name: value for name, value in model.state_dict().items() if name in names},
                "optimizer": optimizer.state_dict(),
            }
            torch.save(state, out / "state.tmp")
            os.replace(out / "state.tmp", state_path)
            after(step + 1)
            model.train()


def _log(path: Path, row: Mapping[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(row)
        writer.writerow([f"{value:.6g}" for value in row.values()])


__all__ = ["Run", "groups", "schedule", "step_seed", "train"]
