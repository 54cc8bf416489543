"""Alarms in whole runs, each provoked: what is said, saved and done; a run that goes back is exact, on any layout and
when it is resumed."""

import json
import signal
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import tests.distributed.training as training
from pretrain.command.console import DIVERGED
from pretrain.config.run import RunConfig
from pretrain.trainer import Trainer
from tests.distributed.pool import RankPool
from tests.distributed.training import Interruption, train_aloud, training_config, write_corpus

Harm = Literal["burst", "alike", "idle", "alike later", "idle later"]
ALIKE = ("embedding", "prelude.0.attention.output", "prelude.0.ffn.down")
SPIKE = {"policy": "rollback", "window": 8, "deviations": 5.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("alarms"))


def train_harmed(config: RunConfig, harm: Harm, interruption: Interruption | None = None) -> tuple[int, str]:
    """Train a run that goes wrong; exit code and what was said."""
    begun = Trainer.run

    def run(trainer: Trainer) -> int:
        _harm(trainer, harm)
        return begun(trainer)

    codes: list[int] = []
    real_train = training.train

    def train(*arguments: Any) -> int:
        codes.append(real_train(*arguments))
        return codes[-1]

    Trainer.run, training.train = run, train  # type: ignore[method-assign]
    try:
        said = train_aloud(config, interruption)
    finally:
        Trainer.run, training.train = begun, real_train  # type: ignore[method-assign]
    return (codes or [-1])[0], said


def _harm(trainer: Trainer, harm: Harm) -> None:
    """Do it, at once or once before the tenth step."""
    step = trainer.engine.train_step

    def harmed(rows: Any, loops: Any, lr: float, *arguments: Any, **named: Any) -> Any:
        is_harmed = trainer.counters.step == 9 and not trainer.counters.rollbacks
        if is_harmed and harm != "burst":
            _spoil(trainer, harm)
        return step(rows, loops, 1e3 if is_harmed and harm == "burst" else lr, *arguments, **named)

    if harm in ("alike", "idle"):
        _spoil(trainer, harm)
    else:
        trainer.engine.train_step = harmed  # type: ignore[method-assign]


@torch.no_grad()
def _spoil(trainer: Trainer, harm: Harm) -> None:
    for name, weight in trainer.engine.model.named_parameters():
        if harm.startswith("alike") and name.startswith(ALIKE):
            weight.fill_(1.0 if name.startswith("embedding") else 0.0)
        if harm.startswith("idle") and name.startswith("loop.") and name.endswith(("output.weight", "down.weight")):
            weight.zero_()


def rows(root: Path, name: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs" / name / file).read_text().splitlines()]


def config_of(root: Path, name: str, **changes: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "train": {"steps": 16, "loop_sampling": {"distribution": "fixed"}, "deterministic": True},
        "optimizer": {"lr": 1e-3},
        "validation": {"every": 4, "num_loops": [1, 2], "num_sequences": 4},
        "checkpoint": {"every": 4, "keep_last": 3},
    }  # fmt: skip
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return training_config(root, name, **sections)


def test_a_run_with_a_spike_goes_back_and_on_with_new_data_and_resumes_exactly(root: Path, pool: RankPool) -> None:
    alarms = {"loss_spike": SPIKE, "loops_unused": {"policy": "off"}}
    whole, cut = (config_of(root, name, alarms=alarms, parallel={"pipeline": 2}) for name in ("whole", "cut"))
    (code, said), _ = pool.run(train_harmed, whole, "burst", world_size=2)
    assert code == 0, said
    (alarm,) = rows(root, "whole", "alarms.jsonl")
    assert (alarm["alarm"], alarm["action"], alarm["step"], alarm["since"]) == ("loss_spike", "rollback", 11, 11)
    assert (alarm["to_step"], alarm["next_sample"]) == (8, 11 * 8) and alarm["value"] > alarm["threshold"]
    assert "warning: alarms.loss_spike: loss " in said and "; back to step 8, on with new data" in said
    found = rows(root, "whole")
    assert [row["step"] for row in found] == list(range(1, 17))
    assert found[-1]["loss"] < found[0]["loss"] and max(row["loss"] for row in found) < alarm["threshold"]
    assert [row["tokens_seen"] for row in found][-1] == 16 * 8 * 16
    calm = config_of(root, "calm", parallel={"pipeline": 2})
    stop_at_9 = Interruption(rank=0, method="train_step", call=8, signal=signal.SIGTERM)
    assert set(pool.run(training.train, calm, stop_at_9, world_size=2)) == {0}
    losses, calm_losses = ([row["loss"] for row in rows(root, name)] for name in ("whole", "calm"))
    assert losses[:8] == calm_losses[:8] and losses[8] != calm_losses[8]  # the same weights, other samples
    stop = Interruption(rank=1, method="train_step", call=12, signal=signal.SIGTERM)  # the second after going back
    (code, said), _ = pool.run(train_harmed, cut, "burst", stop, world_size=2)
    assert (code, rows(root, "cut")[-1]["step"]) == (0, 10), said
    (code, said), _ = pool.run(train_harmed, cut, "burst", world_size=2)
    assert code == 0, said
    assert [row["loss"] for row in rows(root, "cut")] == [row["loss"] for row in found]


def test_a_run_that_was_killed_just_after_going_back_does_not_read_the_old_data_again(
    root: Path, pool: RankPool
) -> None:
    config = config_of(root, "killed", alarms={"loss_spike": SPIKE}, checkpoint={"asynchronous": False})
    bug = Interruption(rank=0, method="train_step", call=11, signal=None, bug="killed")
    ((_, said),) = pool.run(train_harmed, config, "burst", bug, world_size=1)
    assert "killed" in said
    ((code, said),) = pool.run(train_harmed, config, "burst", world_size=1)
    assert code == 0 and "step 8 of 16: resumed" in said, said
    assert [row["loss"] for row in rows(root, "killed")] == pytest.approx(
        [row["loss"] for row in rows(root, "whole")], rel=1e-5
    )  # whole is of another test, and another layout
    assert len(rows(root, "killed", "alarms.jsonl")) == 1


def test_a_spike_that_comes_again_ends_the_run_as_failed_with_its_state_saved(root: Path, pool: RankPool) -> None:
    alarms = {"loss_spike": SPIKE, "max_rollbacks": 1}
    calm = config_of(root, "hot", alarms=alarms, train={"steps": 8})
    assert set(pool.run(training.train, calm, world_size=2)) == {0}
    hot = config_of(root, "hot", alarms=alarms, optimizer={"lr": 1e3, "warmup_steps": 0}, train={"steps": 40})
    said, _ = pool.run(train_aloud, hot, world_size=2)
    actions = [row["action"] for row in rows(root, "hot", "alarms.jsonl")]
    assert actions == ["rollback", "stop"], said
    state = (root / "runs" / "hot" / "state").read_text()
    assert state.startswith("failed: alarms.loss_spike: loss ")
    assert "after 1 rollbacks the run stops; checkpoint.resume=STEP goes back" in state
    saved = sorted((root / "runs" / "hot" / "checkpoints").glob("step-*"))
    assert int(saved[-1].name.removeprefix("step-")) == rows(root, "hot")[-1]["step"]


@pytest.mark.parametrize("policy", ["warn", "stop", "rollback"])
def test_states_that_are_alike_are_noticed(root: Path, pool: RankPool, policy: str) -> None:
    config = config_of(
        root, f"alike-{policy}", alarms={"states_alike": {"policy": policy}}, optimizer={"lr": 1e-9},
        train={"steps": 6, "hooks": [{"name": "loop_diagnostics", "every": 2}]}, parallel={"tensor": 2},
    )  # fmt: skip
    (code, said), _ = pool.run(train_harmed, config, "alike", world_size=2)
    (alarm,) = rows(root, config.run.name, "alarms.jsonl")
    assert (alarm["alarm"], alarm["step"]) == ("states_alike", 2) and alarm["value"] > 0.99
    assert alarm["action"] == ("warn" if policy == "warn" else "stop")  # from the start there is nothing to go back to
    assert code == (0 if policy == "warn" else DIVERGED), said
    assert ("with no checkpoint to go back to the run stops" in said) == (policy == "rollback")


def test_loops_that_do_nothing_are_noticed(root: Path, pool: RankPool) -> None:
    unused = {"policy": "stop", "validations": 2, "difference": 1e-6}
    config = config_of(root, "idle", alarms={"loops_unused": unused}, optimizer={"lr": 1e-9}, train={"steps": 16})
    (code, said), _ = pool.run(train_harmed, config, "idle", world_size=2)
    assert code == DIVERGED, said
    (alarm,) = rows(root, "idle", "alarms.jsonl")
    assert (alarm["step"], alarm["since"], alarm["action"]) == (8, 1, "stop") and abs(alarm["value"]) < 1e-6
    assert "2 loops are worth" in said and (root / "runs/idle/checkpoints/step-00000008").is_dir()


@pytest.mark.parametrize(
    ("alarm", "settings", "noticed"),
    [("states_alike", {}, 10), ("loops_unused", {"validations": 2, "difference": 1e-6}, 16)],
)
def test_a_run_whose_states_or_loops_die_goes_back_to_before_it(
    root: Path, pool: RankPool, alarm: str, settings: dict[str, Any], noticed: int
) -> None:
    """The checkpoints of the steps between were saved with the harm in them. With this seed's weights a second loop is
    worth a little from the start."""
    hooks = [{"name": "loop_diagnostics", "every": 2}]
    others = {name: {"policy": "off"} for name in ("states_alike", "loops_unused", "loss_spike")}
    config = config_of(
        root, f"{alarm}-back", run={"seed": 4}, alarms=others | {alarm: {"policy": "rollback", **settings}},
        optimizer={"lr": 1e-9}, train={"steps": 18, "hooks": hooks}, parallel={"tensor": 2},
    )  # fmt: skip
    harm: Harm = "alike later" if alarm == "states_alike" else "idle later"
    (code, said), _ = pool.run(train_harmed, config, harm, world_size=2)
    assert code == 0, said
    (raised,) = rows(root, config.run.name, "alarms.jsonl")
    assert (raised["alarm"], raised["action"], raised["step"]) == (alarm, "rollback", noticed), said
    assert (raised["to_step"], raised["next_sample"]) == (8, noticed * 8) and "; back to step 8" in said
    found = rows(root, config.run.name)
    assert [row["step"] for row in found] == list(range(1, 19))


def test_a_good_run_raises_none(root: Path, pool: RankPool) -> None:
    """With loops that are drawn, and so a loss that differs from step to step."""
    drawn = {"steps": 60, "loop_sampling": {"distribution": "uniform", "minimum": 1, "maximum": 3}}
    hooks = [{"name": "loop_diagnostics", "every": 20}]
    alarms = {"loss_spike": {"policy": "stop", "window": 16}, "states_alike": {"policy": "stop"}}
    config = config_of(
        root, "good", alarms=alarms, train={**drawn, "hooks": hooks}, optimizer={"lr": 1e-2}, validation={"every": 0}
    )
    assert pool.run(training.train, config, world_size=1) == [0]
    assert not (root / "runs" / "good" / "alarms.jsonl").exists()
