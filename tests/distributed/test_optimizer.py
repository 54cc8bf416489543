"""Optimizers over ranks: weights after some steps equal one process; bad steps and stop requests are agreed on by all
ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.checkpoint.names import step_name
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.run import OptimizerSection, RunConfig
from pretrain.optim.make import make_optimizer, parameter_groups, set_lr
from pretrain.optim.optimizers import OptimizerKind
from pretrain.parallel.engine import Engine, StepResult
from pretrain.parallel.stop_vote import StopVote
from tests.distributed.cases import (
    Part,
    Reference,
    SavedPart,
    make_engine,
    make_rows,
    own_rows,
    report,
    save,
    saved_parts,
    saved_tensors,
    tiny_config,
    world_size,
)
from tests.distributed.pool import RankPool

LOOPS = (2, 1, 3)
LR = 0.01
NUM_ROWS = 8
OPTIMIZER = {"clip_grad_norm": 0.5, "epsilon": 1e-2, "weight_decay": 0.1}
"""Clipping that bites; an epsilon above the rounding error of gradients, where AdamW would otherwise turn noise into
steps of size lr."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a rank holds after training."""

    results: list[StepResult]
    weights: list[Part]
    saved: list[SavedPart]


def train(config: RunConfig) -> Trained:
    """One step for each of LOOPS."""
    engine, groups = make_engine(config)
    results = [
        engine.train_step(own_rows(make_rows(NUM_ROWS, seed), groups), loops, LR) for seed, loops in enumerate(LOOPS)
    ]
    return _held(engine, results)


def _held(engine: Engine, results: list[StepResult]) -> Trained:
    return Trained(results=results, weights=report(engine, results).weights, saved=saved_parts(engine))


def _train_plainly(config: RunConfig) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
    """The same with torch alone: weights, and (loss, gradient norm) of each step."""
    reference = Reference(config=config)
    model = reference.model
    groups = parameter_groups(model.named_parameters(), model.weights, config.optimizer)
    optimizer = make_optimizer(groups, config.optimizer)
    set_lr(optimizer, LR)
    seen = []
    for seed, loops in enumerate(LOOPS):
        nll, _, norm = reference.backward(make_rows(NUM_ROWS, seed), loops)
        assert norm > config.optimizer.clip_grad_norm
        for gradient in reference.gradients().values():
            gradient.mul_(config.optimizer.clip_grad_norm / norm)
        optimizer.step()
        seen.append((nll, norm))
    return reference.weights(), seen


@pytest.mark.parametrize(
    ("name", "family", "layout", "data"),
    [
        ("adamw", "llama", {}, 1),
        ("adamw", "gpt2", {}, 2),
        ("adamw", "llama", {"tensor": 2}, 1),
        ("adamw", "gpt2", {"tensor": 2, "sequence": True}, 2),
        ("adamw", "gpt2", {"pipeline": 2}, 2),
        ("adamw", "gpt2", {"tensor": 2, "pipeline": 2}, 1),
        ("adamw", "llama", {"pipeline": 4}, 1),
        ("adafactor", "llama", {}, 2),
        ("adafactor", "llama", {"tensor": 2, "pipeline": 2}, 1),
    ],
)
def test_weights_equal_one_process(pool: RankPool, name: str, family: str, layout: dict, data: int) -> None:
    """The losses, the norms (looped and tied weights counted once) and the weights, which clipping and decay have gone
    through."""
    ends = {"num_prelude_layers": 1, "num_coda_layers": 1}
    config = tiny_config(
        family, **layout, model=ends, train={"precision": "fp32"}, optimizer={**OPTIMIZER, "name": name}
    )
    # what a bias is added to is of the size of init_std
    size = config.model.init_std
    _assert_equals_one_process(
        pool, config, data, rel=1e-5, abs_of=lambda whole: 1e-6 * whole.abs().max().clamp_min(size).item()
    )


def _assert_equals_one_process(
    pool: RankPool, config: RunConfig, data: int, *, rel: float, abs_of: Callable[[Tensor], float]
) -> None:
    """Losses and gradient norms to `rel`, each weight to `abs_of` it; and every weight has moved."""
    wanted, seen = _train_plainly(config)
    before = Reference(config=config).weights()
    for trained in pool.run(train, config, world_size=world_size(config, data)):
        assert [(result.loss, result.grad_norm) for result in trained.results] == [
            pytest.approx(pair, rel=rel) for pair in seen
        ]
        for part in trained.weights:
            whole = wanted[part.name]
            assert (torch.from_numpy(part.values) - part.of(whole)).abs().max() <= abs_of(whole), part.name
            assert not torch.equal(whole, before[part.name])


def _sgd(groups: list[dict[str, Any]], settings: OptimizerSection) -> torch.optim.Optimizer:
    """SGD with momentum; what does not decay learns at half the rate."""
    for group in groups:
        group["lr_scale"] = 1.0 if group["weight_decay"] else 0.5
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)


SGD = OptimizerKind(make=_sgd, states=lambda shape: {"momentum_buffer": shape}, counts_steps=False, shards=False)
"""As a user's file would have it; it keeps no count of its steps."""


def train_and_resume(config: RunConfig, folder: str) -> tuple[Trained, Trained]:
    """The steps of `train`: without a stop, and stopped and resumed before the last."""
    straight = train(config)
    engine, groups = make_engine(config)
    for seed, loops in enumerate(LOOPS[:-1]):
        engine.train_step(own_rows(make_rows(NUM_ROWS, seed), groups), loops, LR)
    save(engine, folder, len(LOOPS) - 1)
    resumed, _ = make_engine(config)
    resumed.load(CheckpointReader(Path(folder, step_name(len(LOOPS) - 1))), len(LOOPS) - 1)
    rows = own_rows(make_rows(NUM_ROWS, len(LOOPS) - 1), groups)
    return straight, _held(resumed, [resumed.train_step(rows, LOOPS[-1], LR)])


@pytest.mark.parametrize(("layout", "data"), [({}, 1), ({"tensor": 2}, 1), ({}, 2)])
def test_an_optimizer_of_a_users_file_trains_and_resumes(
    pool: RankPool, tmp_path: Path, layout: dict, data: int
) -> None:
    """It equals torch's, with its rate for each group, on any layout, and resumes bitwise."""
    settings = {**OPTIMIZER, "name": "tests.distributed.test_optimizer:SGD"}
    config = tiny_config("gpt2", **layout, train={"precision": "fp32"}, optimizer=settings)
    wanted, _ = _train_plainly(config)
    trained = pool.run(train_and_resume, config, str(tmp_path), world_size=world_size(config, data))
    for straight, resumed in trained:
        for part in straight.weights:
            scale = wanted[part.name].abs().max().clamp_min(config.model.init_std)
            assert (torch.from_numpy(part.values) - part.of(wanted[part.name])).abs().max() <= 1e-6 * scale, part.name
        assert resumed.results == straight.results[-1:]
        for after, before in zip(resumed.saved, straight.saved, strict=True):
            assert after.name == before.name
            assert after.values.tobytes() == before.values.tobytes(), after.name
    names = {part.name.partition("/")[0] for straight, _ in trained for part in straight.saved}
    assert names == {"weights", "momentum_buffer"}


@pytest.mark.parametrize(
    ("layout", "data"),
    [({"tensor": 2}, 1), ({"tensor": 2, "sequence": True}, 2), ({"pipeline": 2}, 1), ({"pipeline": 4}, 1), ({}, 2)],
)
def test_muon_equals_one_process(pool: RankPool, layout: dict, data: int) -> None:
    """In fp64, since an update is computed in bf16: what differs by fp32 rounding may round to either neighbour."""
    ends = {"num_prelude_layers": 1, "num_coda_layers": 1}
    settings = {**OPTIMIZER, "name": "muon", "adamw_lr": 1e-4}
    config = tiny_config("gpt2", **layout, model=ends, optimizer=settings)
    _assert_equals_one_process(pool, config, data, rel=1e-10, abs_of=lambda whole: 1e-10)


@cache
def _master_update(pool: RankPool, layout: tuple[tuple[str, Any], ...], data: int) -> dict[str, Tensor]:
    config = tiny_config("gpt2", **dict(layout), train={"precision": "bf16"}, optimizer=OPTIMIZER)
    all_trained = pool.run(train, config, world_size=world_size(config, data))
    masters = saved_tensors([trained.saved for trained in all_trained])
    for part in (part for trained in all_trained for part in trained.weights):
        rounded = part.of(masters[f"weights/{part.name}"]).bfloat16().float()
        assert torch.equal(rounded, torch.from_numpy(part.values)), f"{part.name} is not its master, rounded"
    start = {name: weight.float() for name, weight in Reference(config=config).weights().items()}
    return {name: masters[f"weights/{name}"] - weight for name, weight in start.items()}


@pytest.mark.parametrize(
    ("layout", "data"),
    [
        ({}, 2),
        ({"tensor": 2}, 1),
        ({"tensor": 2, "sequence": True}, 2),
        ({"pipeline": 2}, 2),
        ({"tensor": 2, "pipeline": 2}, 1),
    ],
)
def test_bf16_with_fp32_masters(pool: RankPool, layout: dict, data: int) -> None:
    """Weights are the masters rounded, bitwise; what three steps did to the masters agrees with one rank.

    Layouts round intermediate sums to bf16 (2⁻⁹ relative) at different places, some tens of roundings deep; a wrong
    gradient would turn the update by far more than the tolerance.
    """
    alone, here = _master_update(pool, (), 1), _master_update(pool, tuple(layout.items()), data)
    for name in alone:
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding
            assert (here[name] - alone[name]).norm() <= 0.1 * alone[name].norm(), name


def _to_infinity(_module: nn.Module, _inputs: Any, states: Tensor) -> Tensor:
    return states * float("inf")


def train_with_a_bad_step(config: RunConfig, poisoned_rank: int) -> tuple[Trained, StepResult]:
    """The steps of `train`; before the last one, one whose states are infinite on one rank. What is held at the end,
    and its result."""
    engine, groups = make_engine(config)
    rows = [own_rows(make_rows(NUM_ROWS, seed), groups) for seed in range(len(LOOPS))]
    results = [engine.train_step(rows[seed], LOOPS[seed], LR) for seed in (0, 1)]
    before = _held(engine, results)
    poison = None
    if torch.distributed.get_rank() == poisoned_rank:
        layer = next(iter(engine.model.loop.values()))
        poison = layer.register_forward_hook(_to_infinity)
    bad = engine.train_step(rows[2], LOOPS[2], LR)
    after = _held(engine, results)
    for old, new in zip([*before.weights, *before.saved], [*after.weights, *after.saved], strict=True):
        assert old.values.tobytes() == new.values.tobytes(), f"a bad step changed {old.name}"
    if poison is not None:
        poison.remove()
    return _held(engine, [*results, engine.train_step(rows[2], LOOPS[2], LR)]), bad


@pytest.mark.parametrize(
    ("name", "layout", "data"),
    [
        ("adamw", {}, 2),
        ("adamw", {"tensor": 2, "pipeline": 2}, 1),
        ("adamw", {"pipeline": 2}, 2),
        ("adafactor", {"tensor": 2}, 2),
        ("muon", {"tensor": 2, "pipeline": 2}, 1),
    ],
)
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(
    pool: RankPool, name: str, layout: dict, data: int
) -> None:
    """Weights and optimizer state stay bitwise, and training goes on as if the step had not been."""
    config = tiny_config(**layout, train={"precision": "fp32"}, optimizer={**OPTIMIZER, "name": name})
    size = world_size(config, data)
    undisturbed = pool.run(train, config, world_size=size)
    for rank, (after, bad) in enumerate(pool.run(train_with_a_bad_step, config, 1, world_size=size)):
        assert bad.skipped
        assert after.results == undisturbed[rank].results
        for clean, disturbed in zip(undisturbed[rank].saved, after.saved, strict=True):
            assert clean.values.tobytes() == disturbed.values.tobytes(), clean.name


def vote(config: RunConfig, requests: list[str | None]) -> list[str | None]:
    """The reason to stop after a step, an evaluation and a vote alone; each begins without one, and keeps it."""
    engine, groups = make_engine(config)
    rows, rank = own_rows(make_rows(NUM_ROWS), groups), torch.distributed.get_rank()
    votes = [StopVote(iter([requests[rank], None]).__next__, groups.device) for _ in range(3)]
    engine.train_step(rows, 1, 0.0, votes[0])
    engine.evaluate(rows, (1,), votes[1])
    votes[2].hold()
    for each in votes:
        each.hold()
    return [each.reason for each in votes]


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([None, None, None, None], None),
        ([None, None, None, "train.exit_after"], "train.exit_after"),
        (["SIGTERM", None, "train.exit_after", None], "SIGTERM"),
        (["SIGINT", "SIGINT", "SIGUSR1", "SIGINT"], "SIGUSR1"),
    ],
)
def test_all_ranks_stop_for_the_weightiest_reason(
    pool: RankPool, requests: list[str | None], reason: str | None
) -> None:
    config = tiny_config(pipeline=2, train={"precision": "fp32"})
    assert pool.run(vote, config, requests, world_size=4) == [[reason] * 3] * 4
