"""The ring at any number of loops, micro-batches and stages: nothing hangs, and the loss is that of one process."""

import math
import random

import pytest
import torch
from megatron.core.pipeline_parallel import p2p_communication
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.data.stream.batch import Inputs
from pretrain.data.stream.labels import IGNORED
from pretrain.parallel.depths import Batch
from pretrain.parallel.engine import StepResult
from pretrain.parallel.ring import _Carried
from tests.distributed.cases import (
    SEQ_LEN,
    RankReport,
    Reference,
    make_engine,
    make_rows,
    one_step,
    own_rows,
    tiny_config,
    world_size,
)
from tests.distributed.pool import RankPool
from tests.support.learned_injection import learned_injection, with_learned_injection

BATCH = 10
NUM_TRIPLES = {2: 100, 4: 100}


def _triples(num_stages: int) -> list[tuple[int, int]]:
    """(L, M) pairs for so many stages."""
    chooser = random.Random(num_stages)
    return [(chooser.randint(1, 6), chooser.randint(num_stages, 9)) for _ in range(NUM_TRIPLES[num_stages])]


def _config(num_stages: int) -> RunConfig:
    shape = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "ffn_size": 8,
        "num_loop_layers": num_stages,
        "loop": {"injection": "add"},
    }
    return tiny_config(pipeline=num_stages, model=shape)


def train_pairs(config: RunConfig, pairs: list[tuple[int, int]]) -> list[StepResult]:
    """A step at learning rate 0 of one engine for each (L, M)."""
    engine, groups = make_engine(config)
    return [engine.train_step(own_rows(make_rows(m, seed=m), groups), num_loops, 0.0) for num_loops, m in pairs]


@pytest.mark.parametrize("first", range(0, 100, BATCH))
@pytest.mark.parametrize("num_stages", [2, 4])
def test_random_loops_and_micro_batches(pool: RankPool, num_stages: int, first: int) -> None:
    config, pairs = _config(num_stages), _triples(num_stages)[first : first + BATCH]
    results = pool.run(train_pairs, config, pairs, world_size=num_stages)
    reference = Reference(config=config)
    for place, (num_loops, m) in enumerate(pairs):
        nll, _, norm = reference.backward(make_rows(m, seed=m), num_loops)
        for of_rank in results:
            assert (of_rank[place].loss, of_rank[place].grad_norm) == pytest.approx((nll, norm), rel=1e-10), (
                f"L={num_loops}, M={m}"
            )


def waits_for_the_device(config: RunConfig) -> int:
    """How often the messages of a step with one loop wait for the whole device, where there is one."""
    engine, groups = make_engine(config)
    waits: list[None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(p2p_communication.torch.cuda, "synchronize", lambda *_: waits.append(None))  # type: ignore
        engine.train_step(own_rows(make_rows(4), groups), 1, 0.0)
    return len(waits)


def test_messages_do_not_wait_for_the_device(pool: RankPool) -> None:
    assert pool.run(waits_for_the_device, _config(2), world_size=2) == [0, 0]


def one_step_with_learned_injection(config: RunConfig, rows: Tensor, num_loops: int) -> RankReport:
    with learned_injection():
        return one_step(config, rows, num_loops)


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (1, 2), (1, 4), (2, 2)])
@pytest.mark.parametrize("num_loops", [1, 3])
def test_an_injection_with_weights_learns_in_the_ring(
    pool: RankPool, tensor: int, pipeline: int, num_loops: int
) -> None:
    config = with_learned_injection(
        tiny_config(
            tensor=tensor,
            pipeline=pipeline,
            sequence=tensor > 1,
            model={"num_prelude_layers": 1, "num_key_value_heads": 4},
        )
    )
    with learned_injection():
        reference, rows = Reference(config=config, shake=True), make_rows(5)
    nll, _, norm = reference.backward(rows, num_loops)
    gradients = reference.gradients()
    assert all(gradients[f"injection.{name}"].norm() > 1e-3 * norm for name in ("scale", "enters.weight"))
    for of_rank in pool.run(one_step_with_learned_injection, config, rows, num_loops, world_size=world_size(config)):
        (result,) = of_rank.results
        assert (result.loss, result.grad_norm) == pytest.approx((nll, norm), rel=1e-10)
        for part in of_rank.gradients:
            expected = part.of(gradients[part.name])
            torch.testing.assert_close(torch.from_numpy(part.values), expected, rtol=1e-9, atol=1e-12)


def test_what_is_carried_is_let_go_when_its_gradient_has_joined() -> None:
    ring_carries, starts, ends = _Carried(), [], []
    for micro_batch in range(2):
        starts.append(torch.ones(3, 2, requires_grad=True))
        states, carried = ring_carries.keep(micro_batch, starts[-1] * 2, starts[-1] * 3)
        assert carried is not None
        ends.append(states + carried)
    later = ring_carries.get(0)
    assert later is not None
    (later * 5).sum().backward()
    ends[0].sum().backward()
    assert torch.equal(starts[0].grad, torch.full((3, 2), 2.0 + 3.0 * (1 + 5)))
    assert ring_carries.get(0) is None and ring_carries.get(1) is not None


DEPTHS = (3, 1, 2)


def evaluation_order(config: RunConfig) -> tuple[list[tuple[int, int]], int]:
    """(batch, loop count) as they are seen on one stage; what is counted of more tokens than fp32 tells apart."""
    engine, _ = make_engine(config)
    seen = []
    batches = [Batch(tokens=rows[:, 0]) for rows in make_rows(2).split(1)]
    engine.depths.run(batches, DEPTHS, lambda number, num_loops, _: seen.append((number, num_loops)))
    labels = torch.zeros((), dtype=torch.int64).expand(2**24 + 1)
    many = Inputs(tokens=labels, labels=labels, positions=None, documents=None)
    return seen, int(engine._num_supervised([many]))


def test_one_stage_keeps_the_states_of_one_batch_and_counts_every_token(pool: RankPool) -> None:
    ((seen, count),) = pool.run(evaluation_order, tiny_config(train={"precision": "fp32"}), world_size=1)
    assert seen == [(number, num_loops) for number in range(2) for num_loops in sorted(DEPTHS)]
    assert count == 2**24 + 1


def evaluate_and_train(config: RunConfig, rows: Tensor) -> list[tuple[float, float | None, float, float]]:
    """For each loop count: loss per token of `evaluate` and its standard error, loss with padding after the rows, and
    of a step on the same rows."""
    engine, groups = make_engine(config)
    own = own_rows(rows, groups)
    found = engine.evaluate(own, DEPTHS)
    means, num_tokens = found.means(), found.num_supervised
    assert num_tokens == (rows[:, 1] != IGNORED).sum()
    padding = torch.tensor([[0], [IGNORED]]).expand(2, 2, SEQ_LEN)
    found = engine.evaluate(torch.cat((own, padding)), DEPTHS)
    assert found.num_supervised == num_tokens
    assert [error for _, error in found.means()] == pytest.approx([error for _, error in means], rel=1e-12)
    padded = [mean for mean, _ in found.means()]
    trained = [engine.train_step(own, num_loops, 0.0).loss for num_loops in DEPTHS]
    return [(*mean, *others) for mean, *others in zip(means, padded, trained, strict=True)]


def error_over_sequences(reference: Reference, rows: Tensor, num_loops: int) -> float:
    """Standard error of the loss per token, as of a ratio estimate (Cochran 1977, section 6.4)."""
    sizes = [int((row[1] != IGNORED).sum()) for row in rows]
    losses = [size * reference.loss(row[None], num_loops)[1].item() for row, size in zip(rows, sizes, strict=True)]
    mean, count = sum(losses) / sum(sizes), len(sizes)
    rest = sum((loss - mean * size) ** 2 for loss, size in zip(losses, sizes, strict=True))
    return math.sqrt(count / (count - 1) * rest) / sum(sizes)


@pytest.mark.parametrize(("tensor", "pipeline", "data"), [(1, 1, 1), (1, 2, 2), (2, 2, 1), (1, 4, 1)])
@pytest.mark.parametrize(
    "loop",
    [{}, {"injection": "add"}, {"keys": "every"}, {"residual": "hyper"}],
    ids=["plain", "add", "shared keys", "hyper"],
)
def test_evaluation_is_the_training_loss_at_every_depth(
    pool: RankPool, tensor: int, pipeline: int, data: int, loop: dict[str, str]
) -> None:
    shape = {"num_prelude_layers": 1, "num_coda_layers": 1, "loop": loop}
    config = tiny_config(
        tensor=tensor,
        pipeline=pipeline,
        sequence=tensor > 1,
        model=shape,
        train={"z_loss_weight": 1e-2},
        document_mask=True,
    )
    rows = make_rows(8)
    rows[3, 1, 2:] = rows[6, 1, :5] = IGNORED  # sequences of unlike length
    reference = Reference(config=config)
    wanted = [reference.loss(rows, num_loops)[1].item() for num_loops in DEPTHS]
    errors = [error_over_sequences(reference, rows, num_loops) for num_loops in DEPTHS]
    for of_rank in pool.run(evaluate_and_train, config, rows, world_size=world_size(config, data)):
        for (value, error, *others), nll, expected in zip(of_rank, wanted, errors, strict=True):
            assert (value, *others) == pytest.approx((nll,) * 3, rel=1e-12)
            assert error == pytest.approx(expected, rel=1e-10), "over sequences: the same in every layout"
