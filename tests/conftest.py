"""Options of the tests, and what there is one of for the whole session: the pool of ranks, and the process that runs
commands."""

from collections.abc import Iterator

import pytest

from tests.distributed.pool import RankPool
from tests.faults.seam import CommandServer
from tests.malformed.bench import MODULES as COMMANDS
from tests.support.commands import Commands
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


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs commands, without their imports."""
    folder = tmp_path_factory.mktemp("commands")
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # read at their import
    with CommandServer(folder, COMMANDS, quiet) as server:
        yield Commands(server)
