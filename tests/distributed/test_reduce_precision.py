"""Gradients that are sent in bf16: fp32 sums of gradients that were rounded once, in half the bytes, at any depth."""

from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pytest
from pydantic import ValidationError
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.plan import buckets
from tests.distributed.cases import Part, make_engine, make_rows, own_rows, report, tiny_config, world_size
from tests.distributed.pool import RankPool
from tests.distributed.traffic import Traffic

LOOP_COUNTS = (2, 1, 3)
BUCKET = 1500
"""Elements: less than a layer, so that there are several buckets."""
ENDS = {"num_prelude_layers": 1, "num_coda_layers": 1}
CASES: dict[str, dict[str, Any]] = {
    "data": {"model": ENDS},
    "overlap": {"model": ENDS, "overlap": True},
    "pipeline, tied": {"model": {**ENDS, "tied_head": True}, "pipeline": 2, "overlap": True},
    "tensor, sequence, fp32": {"tensor": 2, "sequence": True, "train": {"precision": "fp32"}},
    "regularised": {"model": {"num_loops": 1, "loop_regulariser": {"weight": 0.1, "block_size": 2}}},
}


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Of some steps on a rank."""

    shares: list[np.ndarray]
    """Reduced gradients of the weights that it updates, and these weights."""
    weights: list[Part]
    norms: list[float]
    sent: list[dict[str, int]]
    """Bytes of each kind of message between data-parallel ranks in a step, in and out."""
    elements: int
    """Of the gradient buffers."""


def steps(config: RunConfig, loops: tuple[int, ...], *, rounds: bool) -> Sums:
    """Steps of four micro-batches; with `rounds`, gradients are rounded to bf16 before they are reduced."""
    with patch.object(buckets, "BUCKET_ELEMENTS", BUCKET):
        engine, groups = make_engine(config)
    optimizer, norms, sent = engine.optimizer, [], []
    reduce, buffers = optimizer.reduce_gradients, cast(list[Any], optimizer.ddp.buffers)

    def reduce_rounded() -> None:
        for buffer in buffers:
            buffer.grad_data.copy_(buffer.grad_data.bfloat16().float())
        reduce()

    if rounds:
        optimizer.reduce_gradients = reduce_rounded
    for seed, num_loops in enumerate(loops):
        rows = own_rows(make_rows(4 * groups.data.size(), seed), groups)
        with Traffic(groups) as traffic:
            norms.append(engine.train_step(rows, num_loops, 0.01).grad_norm)
        found: dict[str, int] = {}
        for message, times in traffic.messages.items():
            if message.group == "data":
                found[message.operation] = found.get(message.operation, 0) + times * message.num_bytes
        sent.append(found)
    shares = [
        tensor.numpy().copy() for _, shard in optimizer.updated for tensor in (cast(Tensor, shard.grad), shard.detach())
    ]
    elements = sum(buffer.grad_data.numel() for buffer in buffers)
    return Sums(shares=shares, weights=report(engine, []).weights, norms=norms, sent=sent, elements=elements)


def both(config: RunConfig, loops: tuple[int, ...]) -> tuple[Sums, Sums]:
    plain = config.parallel.model_copy(update={"reduce_precision": "fp32", "overlap": False})
    rounded = steps(config.model_copy(update={"parallel": plain}), loops, rounds=True)
    return steps(config, loops, rounds=False), rounded


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_sum_in_fp32_of_rounded_gradients(pool: RankPool, name: str) -> None:
    case = {"train": {"precision": "bf16"}, **CASES[name]}
    parallel = {"reduce_precision": "bf16", "overlap": case.pop("overlap", False)}
    config = tiny_config(**case, optimizer={"clip_grad_norm": 0.0})
    config = config.model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})
    loops = (1, 1) if name == "regularised" else LOOP_COUNTS
    for ours, rounded in pool.run(both, config, loops, world_size=world_size(config, 2)):
        if not config.parallel.overlap:  # whose buckets are others, and with them the shares
            assert all(np.array_equal(own, its) for own, its in zip(ours.shares, rounded.shares, strict=True))
        for mine, its in zip(ours.weights, rounded.weights, strict=True):
            assert np.array_equal(mine.values, its.values), mine.name
        assert ours.norms == pytest.approx(rounded.norms, rel=1e-6)
        assert all(step == ours.sent[0] for step in ours.sent), "what is sent depends on the loop count"
        sent, received = 2 * ours.elements, 2 * ours.elements
        assert ours.sent[0]["alltoall_base"] == sent + received
        assert not any("reduce_scatter" in operation for operation in ours.sent[0])


@pytest.mark.parametrize(("optimizer", "precision"), [("adafactor", "bf16"), ("muon", "bf16"), ("adamw", "fp64")])
def test_it_is_refused_where_every_rank_updates_all(optimizer: str, precision: str) -> None:
    with pytest.raises(ValidationError, match=r"parallel\.reduce_precision=bf16 sends each rank the gradients that it"):
        RunConfig.model_validate(
            {
                "parallel": {"reduce_precision": "bf16"},
                "train": {"precision": precision},
                "optimizer": {"name": optimizer},
            }
        )
