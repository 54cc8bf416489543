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


@pytest.hookimpl(tryfirst=True)  # before the plugin reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (`-n 2 --dist loadgroup`), a file stays in one process, and all that share the pool in one: first,
    since it is the longest."""
    for item in items:
        shares_pool = "pool" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("pool" if shares_pool else item.path.as_posix()))
    items.sort(key=lambda item: "pool" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Four ranks with the engine and the evaluation of tasks imported."""
    ranks = RankPool(4, modules=MODULES)
    yield ranks
    ranks.close()
