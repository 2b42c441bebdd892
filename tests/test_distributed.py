"""Two processes learn what one does. The second half of this file is what each of them runs, started by `accelerate launch`."""

import csv
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from emrrg_core.config import AdapterConfig, LowRankConfig
from emrrg_core.errors import ConfigError
from emrrg_core.model.emrrg import IGNORED, Emrrg
from emrrg_core.model.language_model import load_language_model
from tests.conftest import TINY
from train import loop
from train.loop import DivergedError, Numbers, Part, Run, train

pytestmark = pytest.mark.slow


ROOT = Path(__file__).resolve().parent.parent
RATES = {"lora": 1e-2, "llama_proj": 1e-2, "layer_norm": 1e-2, "hybrid": 1e-2, "warm_up_gate": 2e-2, "side": 1e-2}
RUN = Run(steps=6, batch=8, learning_rates=RATES, warmup=2, seed=3, save_every=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, language_folder) -> Path:
    """What one process and what two of them left behind."""
    out = tmp_path_factory.mktemp("distributed")
    run_alone(language_folder, out / "one")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "train/accelerate/cpu.yaml"]
    command += ["-m", "tests.test_distributed", str(language_folder), str(out)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def log_of(out: Path) -> list[dict[str, float]]:
    with (out / "log.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_alike(out: Path, other: Path) -> None:
    """Losses, gradient norms, numbers and trained weights, but for the order in which floats were added."""
    for row, expected in zip(log_of(out), log_of(other), strict=True):
        for name in ("step", "loss", "norm", "spread"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4), (row["step"], name)
    mine, theirs = (torch.load(run / "last.pt", weights_only=True)["trained"] for run in (out, other))
    assert mine.keys() == theirs.keys()
    # a bias of all keys moves no attention: its gradient is rounding, which Adam makes whole steps of
    for name in mine.keys() - {n for n in mine if n.endswith("kv_proj.bias")}:
        value = mine[name]
        assert torch.allclose(value, theirs[name], atol=2e-4), name


@pytest.mark.parametrize("way", ["two", "two accumulating"])
def test_two_processes_learn_what_one_does_from_the_same_batch(folder, way):
    losses = [row["loss"] for row in log_of(folder / "one")]
    assert len(losses) == RUN.steps
    assert len({round(loss, 3) for loss in losses}) == RUN.steps  # or nothing would be compared
    assert_alike(folder / way, folder / "one")
    assert json.loads((folder / way / "run.json").read_text())["processes"] == 2


def test_the_mean_of_the_parts_means_would_be_another_loss(folder):
    """The parts of a step weigh differently: what is tested above can be got wrong."""
    _, _, weights = lesson_of_a_step(0)
    halves = [weights[:4].sum(), weights[4:].sum()]
    assert abs(halves[0] - halves[1]) > 0.1 * sum(halves)
    assert any(lesson_of_a_step(step)[1][half].sum() == 0 for step in range(6) for half in (slice(4), slice(4, 8)))


def test_two_processes_that_were_stopped_go_on_to_where_unbroken_ones_end(folder):
    assert (folder / "two broken" / "stopped").read_text() == "3"
    assert_alike(folder / "two broken", folder / "two")


def test_a_run_may_be_resumed_by_another_number_of_processes(folder, language_folder):
    run_alone(language_folder, folder / "two halfway")
    assert_alike(folder / "two halfway", folder / "one")


def test_only_the_first_process_scores_and_writes(folder):
    assert [json.loads(line)["step"] for line in (folder / "two" / "scores.jsonl").read_text().splitlines()] == [3, 6]
    assert (folder / "two" / "scored by").read_text() == "00"
    assert (folder / "two" / "best.safetensors").exists()


def test_a_loss_that_is_no_number_in_one_process_stops_both_at_the_same_step(folder):
    for rank in range(2):
        said = (folder / "two lost" / f"said by {rank}").read_text()
        assert "loss of step 4 is non-finite" in said
    assert int(torch.load(folder / "two lost" / "last.pt", weights_only=True)["step"]) == 3


def test_spread_weights_learn_the_same_and_one_process_goes_on_and_scores(folder, language_folder):
    """FSDP as fsdp.yaml asks for it, on the CPU; then alone, from the same checkpoint."""
    out = folder / "two spread"
    assert (out / "units").read_text() == "9"  # attention and MLP of four layers, and the rest
    assert not (out / "scores.jsonl").exists()
    assert "leave `select` out" in (out / "refused").read_text()
    run_alone(language_folder, out, select="")
    assert_alike(out, folder / "one")
    assert [json.loads(line)["step"] for line in (out / "scores.jsonl").read_text().splitlines()] == [3, 6]


# ---------------------------------------------------------------------------------------------------- configurations

CONFIGS = sorted((ROOT / "train" / "accelerate").glob("*.yaml"))


def launched(config: Path, *options: str) -> tuple[Namespace, dict[str, str]]:
    """How the launcher understands a configuration, and what it tells the processes."""
    given = launch_command_parser().parse_args(["--config_file", str(config), *options, "program.py"])
    args, _, _ = _validate_launch_command(given)
    return args, prepare_multi_gpu_env(args)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_launcher_understands_every_configuration(config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args, environment = launched(config, "--num_processes", "4")
    assert args.num_processes == 4
    assert environment["ACCELERATE_MIXED_PRECISION"] == ("no" if config.stem == "cpu" else "bf16")
    assert args.use_fsdp is (config.stem == "fsdp")
    assert args.use_deepspeed is config.stem.startswith("deepspeed")
    assert args.multi_gpu is (config.stem in ("cpu", "ddp"))
    assert bool(args.use_cpu) is (config.stem == "cpu")
    if args.use_deepspeed:
        assert f"zero{args.zero_stage}" in config.stem


def test_there_is_a_configuration_for_every_way():
    assert [path.stem for path in CONFIGS] == ["cpu", "ddp", "deepspeed_zero2", "fsdp"]


def test_fsdp_spreads_layers_that_the_model_has(language_folder):
    _, environment = launched(ROOT / "train" / "accelerate" / "fsdp.yaml", "--num_processes", "2")
    named = set(environment["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(","))
    assert named <= {type(module).__name__ for module in Taught(language_folder).modules()}
    assert environment["FSDP_VERSION"] == "2"


# --------------------------------------------------------------------------------------------- what every process runs


class Taught(nn.Module):
    """A tiny model, and a head that only the films with a known side teach: some parts of a step have none."""

    def __init__(self, language_folder: Path) -> None:
        super().__init__()
        language = load_language_model(str(language_folder), dtype=torch.float32)
        torch.manual_seed(1)
        still = LowRankConfig(rank=2, dropout=0.0)  # what is dropped out depends on the part
        config = replace(
            TINY,
            language=str(language_folder),
            adapters=AdapterConfig(x=still, in_proj=still),
            hybrid=replace(TINY.hybrid, warmup_start=0.5),
        )
        self.emrrg = Emrrg(config, language.model, language.tokenizer)
        self.side = nn.Linear(language.model.config.hidden_size, 1)


def lesson_of_a_step(step: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """What every process knows of all films of a step: which sides are known, and how much each token counts, (8, 6)."""
    rng = np.random.default_rng([RUN.seed, step])
    known = rng.random(8) < 0.3
    lengths = rng.integers(1, 7, 8)
    return rng, known, rng.choice([1.0, 2.5], (8, 6)) * (np.arange(6) < lengths[:, None])


def loss_with(model: Taught) -> Callable[[Part], tuple[Tensor, Numbers]]:
    @torch.autocast("cpu", enabled=False)  # bfloat16 would hide what is compared
    def loss_of(part: Part) -> tuple[Tensor, Numbers]:
        rng, known, weights = lesson_of_a_step(part.step)
        images = torch.from_numpy(part.of(rng.standard_normal((8, 1, 3, 64, 64), dtype=np.float32)))
        ids = torch.from_numpy(part.of(np.where(weights > 0, rng.integers(3, 200, (8, 6)), IGNORED)))
        mine, sure = torch.from_numpy(part.of(weights)).float(), torch.from_numpy(part.of(known))
        film = model.emrrg.encode(images)
        loss = -(model.emrrg.log_probs(film, ids) * mine).sum() / weights.sum()
        numbers = {"spread": film.patches.std(dim=(1, 2)).mean().item(), "sides": float("nan")}
        # shares are exact over processes, not over parts that are still to come
        share = part.share(float(sure.sum())) if part.turns == 1 else float(sure.sum() / max(known.sum(), 1))
        if sure.any():
            each = F.softplus(model.side(film.patches[sure].mean(1)))
            loss = loss + each.mean() * share
            numbers["sides"] = each.mean().item()
        return loss, numbers

    return loss_of


def run_alone(language_folder: Path, out: Path, **changes: Any) -> None:
    """Train a fresh model, or go on."""
    model = Taught(language_folder)

    def after(step: int) -> dict[str, float]:
        with (out / "scored by").open("a") as file:
            file.write(os.environ.get("RANK", "-"))
        return {"step_number": float(step)}

    run = replace(RUN, **{"select": "step_number"} | changes)
    train(model, run, loss_with(model), out, after=after)


def main() -> None:
    language_folder, out = map(Path, sys.argv[1:])
    rank = os.environ["RANK"]
    run_alone(language_folder, out / "two")
    run_alone(language_folder, out / "two accumulating", accumulate=2)
    run_alone(language_folder, out / "two halfway", stop=3)
    run_alone(language_folder, out / "two broken", stop=3)
    if rank == "0":
        last = torch.load(out / "two broken" / "last.pt", weights_only=True)
        (out / "two broken" / "stopped").write_text(str(last["step"]))
    run_alone(language_folder, out / "two broken")

    model = Taught(language_folder)
    usual = loss_with(model)

    def lost(part: Part) -> tuple[Tensor, Numbers]:
        loss, numbers = usual(part)
        return loss * float("nan") if (part.step, part.index) == (4, 1) else loss, numbers

    try:
        train(model, RUN, lost, out / "two lost")
    except DivergedError as error:
        (out / "two lost" / f"said by {rank}").write_text(str(error))

    # accelerate offers FSDP on GPUs alone, though torch's runs over gloo as well: it is told that this is one
    usual_accelerator = loop._accelerator
    _, environment = launched(ROOT / "train" / "accelerate" / "fsdp.yaml", "--num_processes", "2")
    os.environ |= {name: value for name, value in environment.items() if name.startswith("FSDP_")}

    def accelerator(run: Run) -> Accelerator:
        made = usual_accelerator(run)
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        made.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        return made

    loop._accelerator = accelerator
    model = Taught(language_folder)
    train(model, replace(RUN, stop=3), loss_with(model), out / "two spread", after=print)
    if rank == "0":
        units = {id(module) for module in model.modules() if isinstance(module, FSDPModule)}
        (out / "two spread" / "units").write_text(str(len(units) + 1))
    try:
        run_alone(language_folder, out / "two refused")
    except ConfigError as error:
        (out / "two spread" / "refused").write_text(str(error))


if __name__ == "__main__":
    main()
