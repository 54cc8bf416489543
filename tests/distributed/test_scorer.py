"""Likelihoods and continuations over ranks: those of one process, at every loop count, for every batch size."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.eval.scorer import Likelihood, Pair, Scorer
from pretrain.generation.generate import generate
from pretrain.generation.sampling import Generation
from pretrain.model.gpt import LoopedGPT
from tests.distributed.cases import VOCAB_SIZE, Reference, make_engine, tiny_config, world_size
from tests.distributed.pool import RankPool

LOOPS = (3, 1, 2)
BATCH_SIZES = (1, 3, 8)
SHAPE = {"num_prelude_layers": 1, "num_coda_layers": 1, "loop": {"injection": "add"}}
PAIRS: list[Pair] = [
    ([1, 5, 9], [4]),
    ([1], [7, 8, 2]),
    ([3, 3, 3, 3, 6], [11, 12]),
    ([1, 2], [30]),
    ([8, 9, 10, 11], [12, 13, 14]),
]
SETTINGS = Generation(max_new_tokens=6, vocab_size=VOCAB_SIZE, end_ids=(2,), num_loops=2)


def is_over(token: int, tokens: list[int]) -> bool:
    return tokens[-1] == token


def ask(config: RunConfig, stop: int) -> list[Any]:
    """What rank 0 is told for every batch size: several requests, one after the other."""
    engine, groups = make_engine(config)
    answers = []
    for batch_size in BATCH_SIZES:
        scorer = Scorer(engine.model.eval(), groups, batch_size=batch_size, sequence_parallel=config.parallel.sequence)
        if torch.distributed.get_rank():
            scorer.serve()
            continue
        try:
            found = [[tuple(one) for one in each] for each in scorer.likelihoods(PAIRS, LOOPS)]
            texts = scorer.continuations([list(pair[0]) for pair in PAIRS], SETTINGS, partial(is_over, stop))
            answers.append((found, texts))
        finally:
            scorer.close()
    return answers


@torch.no_grad()
def expected(model: LoopedGPT) -> list[list[Likelihood]]:
    """Straight from the definition: a pass for each pair and loop count."""

    def one(context: list[int], continuation: list[int], num_loops: int) -> Likelihood:
        tokens: Tensor = torch.tensor([[*context, *continuation]])
        logits = model.logits(model(tokens, num_loops)).log_softmax(-1)[len(context) - 1 : -1]
        wanted = torch.tensor(continuation)
        return Likelihood(logits.gather(-1, wanted[:, None]).sum().item(), bool((logits.argmax(-1) == wanted).all()))

    return [[one(list(context), list(continuation), loops) for loops in LOOPS] for context, continuation in PAIRS]


@pytest.mark.parametrize(
    ("layout", "data", "loop"),
    [
        ({}, 1, {}),
        ({"pipeline": 2}, 1, {}),
        ({"tensor": 2, "pipeline": 2}, 1, {}),
        ({"tensor": 2, "pipeline": 2}, 1, {"keys": "every"}),
        ({"tensor": 2, "sequence": True}, 2, {}),
        ({"pipeline": 4}, 1, {"keys": "first", "residual": "hyper"}),
        ({}, 3, {}),
    ],
    ids=str,
)
def test_ranks_and_batches_change_nothing(pool: RankPool, layout: dict, data: int, loop: dict) -> None:
    config = tiny_config(**layout, model={**SHAPE, "loop": SHAPE["loop"] | loop})
    model = Reference(config=config).model
    wanted = expected(model)
    plain = generate(model, [list(pair[0]) for pair in PAIRS], SETTINGS)
    stop = plain[0][2]
    answers, *others = pool.run(ask, config, stop, world_size=world_size(config, data))
    assert len(answers) == len(BATCH_SIZES) and not any(others)
    for found, texts in answers:
        for ours, theirs in zip(found, wanted, strict=True):
            assert [hit for _, hit in ours] == [each.is_greedy for each in theirs]
            assert [value for value, _ in ours] == pytest.approx([each.log_probability for each in theirs], rel=1e-10)
        assert len({value for each in found for value, _ in each}) == len(LOOPS) * len(PAIRS)
        assert texts == [row[: row.index(stop) + 1] if stop in row else row for row in plain]
        assert any(stop in row for row in texts)
