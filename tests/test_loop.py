"""The loop: settings, parts of a step, seeds, schedule, and what a run leaves behind: logs, scores, checkpoints that resume."""

import csv
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emrrg_core.errors import CheckpointError, ConfigError, EmrrgError
from train.loop import DivergedError, Part, Run, groups, load_trained, score, step_seed, train

HERE = torch.device("cpu")


class Net(nn.Module):
    """Enough to go wrong: something frozen, something that learns with dropout, and something that only late steps teach."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.head = nn.Linear(6, 3)
        self.late = nn.Linear(6, 3)
        self.drop = nn.Dropout(0.2)

    def lesson(self, part: Part) -> tuple[Tensor, Mapping[str, float]]:
        """A mean over the tokens of the whole step, of which every film has another number."""
        drawn = torch.Generator().manual_seed(part.step)
        films, targets = torch.randn(8, 4, generator=drawn), torch.randint(0, 3, (8,), generator=drawn)
        weights = torch.randint(1, 9, (8,), generator=drawn).float()
        films, targets, weights = (tensor.to(part.device) for tensor in (films, targets, weights))
        seen = self.frozen(part.of(films))
        if self.training and part.count == 1:
            seen = self.drop(seen)
        logits = self.head(seen) + (self.late(seen) if part.step >= 4 else 0.0)
        each = nn.functional.cross_entropy(logits, part.of(targets), reduction="none")
        right = (logits.argmax(1) == part.of(targets)).float().mean()
        return (each * part.of(weights)).sum() / weights.sum(), {"right": right.item(), "never": float("nan")}

    def trained(self) -> dict[str, Tensor]:
        return {name: p.detach().clone().cpu() for name, p in self.named_parameters() if p.requires_grad}


def settings(**changes) -> Run:
    given = {"steps": 8, "batch": 8, "learning_rates": {"": 1e-2}, "warmup": 2, "seed": 5, "save_every": 2}
    return Run(**given | changes)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def unbroken(out: Path, **changes) -> Net:
    net = Net()
    train(net, settings(**changes), net.lesson, out)
    return net


# --------------------------------------------------------------------------------------------------- parts of a step


def test_the_parts_of_a_step_hold_every_film_once_in_order():
    films = list(range(12))
    parts = [Part(0, index, 4, HERE).of(films) for index in range(4)]
    assert [film for part in parts for film in part] == films
    assert {len(part) for part in parts} == {3}
    assert Part(0, 1, 2, HERE).of(torch.arange(6)).tolist() == [3, 4, 5]


def test_what_cannot_be_divided_evenly_is_refused():
    with pytest.raises(ValueError, match="7 cannot be divided evenly among the 2 parts"):
        Part(0, 0, 2, HERE).of(list(range(7)))


def test_the_share_of_a_whole_step_is_one_and_of_nothing_is_none():
    assert Part(0, 0, 1, HERE).share(17.0) == 1
    assert Part(0, 0, 1, HERE).share(0) == 0
    assert Part(0, 0, 4, HERE, turns=4).share(17.0) == 0.25


def test_a_batch_that_the_parts_cannot_share_is_refused_before_anything_is_written(tmp_path):
    net = Net()
    with pytest.raises(ConfigError, match="multiple of 3"):
        train(net, settings(accumulate=3), net.lesson, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_part_draws_its_own_noise_and_a_whole_step_what_it_always_drew():
    seeds = {step_seed(3, step, part) for step in range(200) for part in range(16)}
    assert len(seeds) == 200 * 16
    assert step_seed(3, 7, 0) == step_seed(3, 7)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_parts_learn_what_the_whole_step_does(tmp_path, accumulate):
    """Tokens differ from part to part, so the mean of the parts' means would be another loss."""
    whole, parts = Net(), Net()
    whole.drop.p = 0.0  # noise depends on the part
    with torch.autocast("cpu", enabled=False):
        train(whole, settings(), quiet(whole.lesson), tmp_path / "whole")
        train(parts, settings(accumulate=accumulate), quiet(parts.lesson), tmp_path / "parts")
    for mine, theirs in zip(rows_of(tmp_path / "parts"), rows_of(tmp_path / "whole"), strict=True):
        for name in ("loss", "norm", "right"):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-5), (mine["step"], name)
    for name, value in parts.trained().items():
        assert torch.allclose(value, whole.trained()[name], atol=1e-6), name


def quiet(loss_of: Callable) -> Callable:
    """Without bfloat16, which rounds away what is compared."""

    def exact(part: Part) -> tuple[Tensor, Mapping[str, float]]:
        with torch.autocast(part.device.type, enabled=False):
            return loss_of(part)

    return exact


# -------------------------------------------------------------------------------------------------- to stop and go on


def test_a_run_that_was_killed_between_two_saves_goes_on_bit_for_bit(tmp_path):
    whole = unbroken(tmp_path / "whole")

    killed = Net()

    def until_five(part: Part) -> tuple[Tensor, Mapping[str, float]]:
        if part.step == 5:
            raise KeyboardInterrupt
        return killed.lesson(part)

    with pytest.raises(KeyboardInterrupt):
        train(killed, settings(), until_five, tmp_path / "killed")
    assert [int(row["step"]) for row in rows_of(tmp_path / "killed")] == [0, 1, 2, 3, 4]
    resumed = Net(seed=9)  # all that it has of its own is thrown away
    resumed.frozen.load_state_dict(whole.frozen.state_dict())
    train(resumed, settings(), resumed.lesson, tmp_path / "killed")
    assert same(resumed.trained(), whole.trained())
    first, second = rows_of(tmp_path / "killed"), rows_of(tmp_path / "whole")
    for row in (*first, *second):
        row.pop("seconds")
    assert first == second  # step 4, done twice, is there once


def test_where_a_run_stops_is_no_part_of_what_it_is(tmp_path):
    whole = unbroken(tmp_path / "whole")
    for stop in (3, 5, 0):
        net = unbroken(tmp_path / "parted", stop=stop)
    assert same(net.trained(), whole.trained())


def test_a_run_with_other_settings_is_refused_by_their_names(tmp_path):
    unbroken(tmp_path, stop=2)
    with pytest.raises(ConfigError, match=r"other settings \(seed, weight_decay\)"):
        unbroken(tmp_path, seed=6, weight_decay=0.1)


def test_what_was_saved_but_not_yet_scored_is_scored_first(tmp_path):
    net, seen = Net(), []

    def fail(step: int) -> None:
        raise OSError("no space for drafts")

    with pytest.raises(OSError, match="drafts"):
        train(net, settings(), net.lesson, tmp_path, after=fail)
    train(net, settings(), net.lesson, tmp_path, after=seen.append)
    assert seen == [2, 4, 6, 8]
    train(net, settings(), net.lesson, tmp_path, after=seen.append)
    assert seen == [2, 4, 6, 8]


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_holds_what_was_trained_and_nothing_else(tmp_path):
    net = unbroken(tmp_path, stop=6)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["trained"].keys() == {"head.weight", "head.bias", "late.weight", "late.bias"}
    assert same(last["trained"], net.trained())
    assert not list(tmp_path.glob("*.tmp"))
    fresh = Net(seed=2)
    load_trained(fresh, tmp_path / "last.pt")
    assert same(fresh.trained(), net.trained())


def test_tied_frozen_weights_are_not_kept_under_their_second_name(tmp_path):
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4).requires_grad_(False)
            self.said = nn.Linear(4, 9, bias=False)
            self.said.weight = self.words.weight

    net = Tied()
    train(net, settings(), net.lesson, tmp_path)
    kept = torch.load(tmp_path / "last.pt", weights_only=True)["trained"]
    assert kept.keys() == net.trained().keys()
    load_trained(Tied(), tmp_path / "last.pt")


def test_a_run_that_is_to_stop_after_its_last_step_ends_with_it(tmp_path):
    unbroken(tmp_path, stop=50)
    assert len(rows_of(tmp_path)) == settings().steps


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    unbroken(tmp_path, stop=2)
    with pytest.raises(CheckpointError, match="another model"):
        load_trained(nn.Linear(2, 1), tmp_path / "last.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_trained(Net(), tmp_path / "torn.safetensors")
    save_file({name: value[:1] for name, value in Net().trained().items()}, tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        load_trained(Net(), tmp_path / "small.safetensors")


def test_the_best_is_kept_by_the_selected_score_also_over_a_break(tmp_path):
    at: dict[int, dict[str, Tensor]] = {}
    bleu = {2: 0.2, 4: 0.5, 6: 0.4, 8: 0.5}
    net = Net()

    def after(step: int) -> dict[str, float | None]:
        at[step] = net.trained()
        return {"bleu4": bleu[step], "cider": 0.1, "meteor": None}

    for stop in (4, 0):
        run = settings(select="0.8*bleu4+0.2*cider", stop=stop)
        train(net, run, net.lesson, tmp_path, after=after)
    assert [row["score"] for row in scores_of(tmp_path)] == pytest.approx([0.18, 0.42, 0.34, 0.42])
    assert scores_of(tmp_path)[0]["meteor"] is None
    assert same(load_file(tmp_path / "best.safetensors"), at[4])  # the first of equals
    assert not same(at[4], at[8])
    with safe_open(tmp_path / "best.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about["step"] == "4"
    assert json.loads(about["run"])["seed"] == 5


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    net, losses = Net(), {2: math.nan, 4: 3.0, 6: math.nan, 8: 2.0}
    train(net, settings(select="-loss"), net.lesson, tmp_path, after=lambda step: {"loss": losses[step]})
    with safe_open(tmp_path / "best.safetensors", framework="pt") as file:
        assert (file.metadata()["step"], float(file.metadata()["score"])) == ("8", -2.0)


def test_without_a_choice_nothing_is_called_best(tmp_path):
    net = Net()
    train(net, settings(), net.lesson, tmp_path, after=lambda step: {"bleu4": 1.0})
    assert not (tmp_path / "best.safetensors").exists()
    assert scores_of(tmp_path)[-1] == {"step": 8, "bleu4": 1.0}


def test_scores_are_added_up_as_written():
    scores = {"bleu4": 0.5, "cider": 0.25, "loss": 2.0, "val/f1": 1.0, "meteor": None}
    assert score("0.8*bleu4+0.2*cider", scores) == pytest.approx(0.45)
    assert score(" cider - 0.5 * loss + val/f1", scores) == pytest.approx(0.25)
    assert score("-loss", scores) == -2
    with pytest.raises(ConfigError, match="rouge, which is none of"):
        score("bleu4+rouge", scores)
    with pytest.raises(ConfigError, match="meteor, which could not be computed"):
        score("meteor", scores)


@pytest.mark.parametrize("select", ["0.8*", "bleu4 cider", "bleu4*cider", "2", "bleu4+", "__import__('os')", "a**b"])
def test_a_choice_that_is_no_sum_is_refused_at_once(select):
    with pytest.raises(ConfigError, match="sum of named scores"):
        settings(select=select)


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_the_step_and_leaves_the_last_checkpoint(tmp_path, bad):
    net = Net()

    def lost(part: Part) -> tuple[Tensor, Mapping[str, float]]:
        loss, numbers = net.lesson(part)
        return loss * (bad if part.step == 5 else 1.0), numbers

    with pytest.raises(DivergedError, match="loss of step 5 is non-finite") as stopped:
        train(net, settings(), lost, tmp_path)
    assert isinstance(stopped.value, EmrrgError)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["step"] == 4
    assert all(value.isfinite().all() for value in [*last["trained"].values(), *net.trained().values()])
    resumed = Net()
    train(resumed, settings(), resumed.lesson, tmp_path)
    assert same(resumed.trained(), unbroken(tmp_path / "whole").trained())


def test_a_gradient_that_is_no_number_stops_before_it_reaches_a_weight(tmp_path):
    net = Net()
    before = net.trained()

    def lost(part: Part) -> tuple[Tensor, Mapping[str, float]]:
        return (net.head.weight * 0).abs().sqrt().sum() * 0.0 + 1.0, {}  # 1, with the gradient 0 · ∞

    with pytest.raises(DivergedError, match="gradient of step 0 is non-finite"):
        train(net, settings(), lost, tmp_path)
    assert same(net.trained(), before)


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing of this model is trainable"):
        groups(nn.Linear(2, 2).requires_grad_(False), settings())


def test_tied_tensors_are_in_one_group_once():
    one = nn.Linear(3, 3)
    two = nn.Linear(3, 3)
    two.weight = one.weight
    made = groups(nn.ModuleDict({"one": one, "two": two}), settings())
    assert sorted(p.numel() for group in made for p in group["params"]) == [3, 3, 9]


@pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"save_every": 0}, {"batch": 0}])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(ConfigError, match="at least 1"):
        settings(**wrong)


# ------------------------------------------------------------------------------------------------------ what is told


def test_the_log_has_a_row_a_step_and_the_run_its_settings(tmp_path):
    unbroken(tmp_path)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [str(step) for step in range(8)]
    assert list(rows[0]) == ["step", "loss", "norm", "right", "never", "seconds"]
    assert {row["never"] for row in rows} == {"nan"}
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["run"]["seed"] == 5
    assert about["processes"] == 1


def test_no_bar_is_drawn_where_no_one_watches(tmp_path, capsys):
    unbroken(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_bar_is_drawn_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    unbroken(tmp_path, stop=3)
    assert "3/3" in capsys.readouterr().err


def test_tensorboard_gets_what_the_log_has(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    unbroken(tmp_path, tensorboard=True, stop=3)
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [event.value for event in seen.Scalars("loss")]
    assert losses == pytest.approx([float(row["loss"]) for row in rows_of(tmp_path)], rel=1e-5)


def test_without_tensorboard_the_run_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        unbroken(tmp_path, tensorboard=True, stop=3)
    assert "pip install tensorboard" in caplog.text
    assert len(rows_of(tmp_path)) == 3
    assert not (tmp_path / "tensorboard").exists()
