"""Gradients that are sent while the backward passes run, and weights that come while the next step begins: the same
numbers, bit by bit, and as many messages at any loop count."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pretrain.checkpoint.names import step_name
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.run import RunConfig
from pretrain.parallel import gradients, weights_back
from pretrain.parallel.groups import Groups
from pretrain.plan import buckets
from pretrain.plan.buckets import num_buckets
from tests.distributed.cases import Part, make_engine, make_rows, own_rows, report, save, tiny_config, world_size
from tests.distributed.pool import RankError, RankPool
from tests.distributed.traffic import Traffic

LOOP_COUNTS = (2, 1, 4, 3)
ENDS = {"num_prelude_layers": 1, "num_coda_layers": 1, "loop": {"injection": "concat"}}
BUCKET = 300
"""Elements: less than a layer, so that there are several buckets, and head and embedding are in others."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of some steps on a rank."""

    weights: list[Part]
    norms: list[float]
    messages: list[int]
    """Of each step between data-parallel ranks, or all, which may be the same group."""
    early: list[int]
    """Of these, before the backward passes were over."""


def steps(config: RunConfig, loops: Sequence[Any], backprop_loops: int | None) -> Seen:
    """A step of four micro-batches for each of `loops`, which may be of each row."""
    with patch.object(buckets, "BUCKET_ELEMENTS", BUCKET):
        engine, groups = make_engine(config)
    engine.train_step(own_rows(make_rows(4 * groups.data.size()), groups), 1, 0.0)
    norms, counted, early = [], [], []
    for seed, num_loops in enumerate(loops):
        rows = own_rows(make_rows(4 * groups.data.size(), seed), groups)
        own = num_loops if isinstance(num_loops, int) else num_loops[groups.data.rank() :: groups.data.size()]
        with Traffic(groups) as traffic:
            reduce = engine.optimizer.reduce_gradients

            def note(traffic: Traffic = traffic, reduce: Any = reduce) -> None:
                early.append(_between_data_ranks(traffic))
                reduce()

            with patch.object(engine.optimizer, "reduce_gradients", note):
                result = engine.train_step(rows, own, 0.01, backprop_loops=backprop_loops)
        norms.append(result.grad_norm)
        counted.append(_between_data_ranks(traffic))
    return Seen(weights=report(engine, []).weights, norms=norms, messages=counted, early=early)


def _between_data_ranks(traffic: Traffic) -> int:
    return sum(
        number
        for message, number in traffic.messages.items()
        if message.group in ("data", "world") and message.operation not in ("send", "recv")
    )


class ComesLate:
    """A gathering of weights that are not there before somebody waits for them."""

    def __init__(self, flat: torch.Tensor, own: torch.Tensor, **settings: Any) -> None:
        self._flat, self._whole, kept = flat, torch.empty_like(flat), own.clone()
        self._work = dist.all_gather_into_tensor(self._whole, kept, **settings)
        flat.fill_(math.nan)
        own.copy_(kept)

    def wait(self) -> None:
        assert self._work is not None
        self._work.wait()
        self._flat.copy_(self._whole)


class _Torch:
    """`torch.distributed` as `weights_back.py` uses it."""

    all_gather_into_tensor = ComesLate


def with_overlap(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"overlap": True})})


def both(config: RunConfig, loops: Sequence[Any], backprop_loops: int | None = None) -> tuple[Seen, Seen]:
    """With overlap and without."""
    with patch.object(weights_back, "dist", _Torch):
        ours = steps(with_overlap(config), loops, backprop_loops)
    return ours, steps(config, loops, backprop_loops)


CASES: dict[str, dict[str, Any]] = {
    "data": {},
    "data, fp32, sharded": {"train": {"precision": "fp32"}},
    "bf16, tied": {"train": {"precision": "bf16"}, "model": {**ENDS, "tied_head": True}},
    "bf16, recomputed": {"train": {"precision": "bf16", "recompute": "loop"}},
    "bf16, every loop": {"train": {"precision": "bf16", "loop_loss": {"over": "every"}}},
    "gate": {"model": {**ENDS, "loop": {"exit": "gate"}}, "train": {"loop_loss": {"over": "expected"}}},
    "pipeline, tied, bf16": {"pipeline": 2, "model": {**ENDS, "tied_head": True}, "train": {"precision": "bf16"}},
    "pipeline, every loop": {"pipeline": 2, "train": {"loop_loss": {"over": "every"}}},
    "normed passes, bf16": {
        "model": {"num_prelude_layers": 1, "loop": {"final_norm": "passes"}},
        "train": {"precision": "bf16"},
    },
    "normed passes, sharded": {  # the final norm comes with the coda
        "model": {"num_coda_layers": 1, "loop": {"final_norm": "passes"}},
        "train": {"precision": "fp32"},
    },
    "normed passes, pipeline": {"pipeline": 2, "model": {**ENDS, "loop": {"final_norm": "passes"}}},
    "tensor": {"tensor": 2},
    "tensor, sequence, sharded": {"tensor": 2, "sequence": True, "train": {"precision": "fp32"}},
    "truncated, bf16": {"backprop_loops": 2, "train": {"precision": "bf16"}},
    "truncated, pipeline": {"backprop_loops": 2, "pipeline": 2},
    "of each row, bf16": {"loops": [(4, 1, 2, 3, 1, 1, 2, 4)], "train": {"precision": "bf16", "micro_batch": 2}},
    "of each row, pipeline": {"loops": [(4, 1, 2, 3, 1, 1, 2, 4)], "pipeline": 2},
    "regularised": {
        "model": {"num_coda_layers": 1, "loop_regulariser": {"weight": 0.1, "block_size": 2}},
        "loops": (1,),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_overlap_changes_no_bit(pool: RankPool, name: str) -> None:
    case = {"model": ENDS, **CASES[name]}
    loops, backprop_loops = case.pop("loops", LOOP_COUNTS), case.pop("backprop_loops", None)
    config = tiny_config(**case, optimizer={"clip_grad_norm": 0.0})
    # the norm of a sharded gradient is added up from other shards where buckets are others
    tolerance = 0.0 if config.train.precision == "fp64" else 1e-6
    for ours, plain in pool.run(both, config, loops, backprop_loops, world_size=world_size(config, 2)):
        assert ours.norms == pytest.approx(plain.norms, rel=tolerance, abs=0.0)
        for mine, its in zip(ours.weights, plain.weights, strict=True):
            assert np.array_equal(mine.values, its.values), mine.name
        assert len(set(ours.messages)) == 1, "messages depend on the loop count"
        assert set(plain.early) == {1}, "without overlap only the count of tokens comes early"
        assert min(ours.early) > 1, "nothing was sent early"


def goes_back(config: RunConfig, folder: str) -> tuple[list[Part], list[Part]]:
    """Weights that are saved, and those after a step, whose weights are on their way, and going back to them."""
    engine, groups = make_engine(config)
    save(engine, folder, 0)
    saved = report(engine, []).weights
    with patch.object(weights_back, "dist", _Torch):
        engine.train_step(own_rows(make_rows(4 * groups.data.size()), groups), 2, 0.01)
        dist.barrier()
        engine.load(CheckpointReader(Path(folder, step_name(0))), 0)
        return saved, report(engine, []).weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_that_are_on_their_way_do_not_come_over_loaded_ones(
    pool: RankPool, tmp_path: Path, precision: str
) -> None:
    config = with_overlap(tiny_config(model=ENDS, train={"precision": precision}))
    for saved, loaded in pool.run(goes_back, config, str(tmp_path), world_size=2):
        for mine, its in zip(loaded, saved, strict=True):
            assert np.array_equal(mine.values, its.values), mine.name


class OnItsWay:
    """A gathering of weights that somebody has yet to wait for."""

    number = 0
    """Of them."""

    def __init__(self, flat: torch.Tensor, own: torch.Tensor, **settings: Any) -> None:
        self._work = dist.all_gather_into_tensor(flat, own, **settings)
        OnItsWay.number += 1

    def wait(self) -> None:
        assert self._work is not None
        self._work.wait()
        OnItsWay.number -= 1


class _Counted:
    """As `_Torch`."""

    all_gather_into_tensor = OnItsWay


class Behind(Traffic):
    """Notes what is sent between data-parallel ranks while weights are on their way there, beside weights: the messages
    of a group come one after the other."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if func.namespace == "c10d" and OnItsWay.number and self._group(args) == "data" and "allgather" not in name:
            self.operations.append(name)
        return super().__torch_dispatch__(func, types, args, kwargs)


def behind_weights(config: RunConfig) -> list[str]:
    """What waits behind all weights in a step after another."""
    with patch.object(buckets, "BUCKET_ELEMENTS", BUCKET):
        engine, groups = make_engine(config)
        most = num_buckets(sum(each.numel() for each in engine.model.parameters()), groups.data.size())
        assert 1 < len(engine.optimizer.ddp.bucket_groups) <= most, "as the planner has it"
    rows = own_rows(make_rows(4 * groups.data.size()), groups)
    with patch.object(weights_back, "dist", _Counted), Behind(groups) as behind:
        engine.train_step(rows, 2, 0.01)
        assert OnItsWay.number > 1
        engine.train_step(rows, 2, 0.01)
        engine.optimizer.ddp.await_weights()
    return behind.operations


def test_a_step_begins_before_all_weights_are_there(pool: RankPool) -> None:
    config = with_overlap(tiny_config(model=ENDS, train={"precision": "bf16"}))
    assert pool.run(behind_weights, config, world_size=2) == [[], []]


def wrong_ring(config: RunConfig) -> None:
    """A ring that takes the first loop that comes back for the last use of the loop."""
    follow = gradients.LastUses.follow

    def too_early(self: Any, states: Any, micro_batch: int, *parts: Any) -> Any:
        return follow(self, states, self._last, *parts)

    with patch.object(gradients.LastUses, "follow", too_early):
        steps(config, (3,), None)


def test_a_bucket_that_is_sent_too_early_is_noticed(pool: RankPool) -> None:
    config = with_overlap(tiny_config(train={"precision": "bf16"}))
    with pytest.raises(RankError, match="a gradient came after its bucket was sent"):
        pool.run(wrong_ring, config, world_size=2, timeout_s=20)
