"""Options of the tests, and the pool of ranks, one for the whole session."""

from collections.abc import Iterator

import pytest

from tests.distributed.pool import RankPool
from tests.support.ranks import MODULES


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-faults", action="store_true", help="every failing call of tests/faults, not a sample")
    parser.addoption("--soak-minutes", type=float, default=0.0, help="how long tests/soak goes on; 0: a few cycles")
    parser.addoption("--soak-seed", type=int, default=0, help="of what is random in tests/soak")
    parser.addoption("--configurations", type=int, default=15, metavar="N", help="random configurations that train")
    words = "of tests/malformed: a sample, all in forks, or all as processes"
    parser.addoption("--malformed", choices=("sample", "all", "processes"), default="sample", help=words)


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Four ranks with the engine and the evaluation of tasks imported."""
    ranks = RankPool(4, modules=MODULES)
    yield ranks
    ranks.close()
