"""The pool of ranks, one for the whole session."""

from collections.abc import Iterator

import pytest

from tests.distributed.pool import RankPool


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Four ranks with the engine and the evaluation of tasks imported."""
    ranks = RankPool(4, modules=("tests.distributed.cases", "tests.distributed.training", "tests.distributed.finetuning", "pretrain.eval.in_loop"))
    yield ranks
    ranks.close()
