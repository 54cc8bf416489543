"""Malformed inputs end in one clear line: at most two lines on standard error that say where and what, exit code 2 (1
where the storage is at fault), within five seconds, and nothing of what was there is touched.

    pytest tests/malformed                                  a sample, each in a fork of a process with all imported
    pytest tests/malformed --malformed all                  all of them: two minutes
    pytest tests/malformed --malformed processes [-k ...]   all as processes of their own, as users start them: an hour
"""

import zlib
from collections.abc import Iterator

import pytest

from tests.faults.seam import CommandServer
from tests.malformed import configurations, data, models, options, runs, sizes, surroundings
from tests.malformed.bench import LIGHT_MODULES, Bench
from tests.malformed.case import Case
from tests.support.commands import Commands

TABLES = (configurations, surroundings, sizes, data, runs, models, options)
CASES = [case for table in TABLES for case in table.cases()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("malformed")
    if request.config.getoption("--malformed") == "processes":
        yield Bench(folder, None)
        return
    commands: Commands = request.getfixturevalue("commands")
    (folder / "light").mkdir()
    with CommandServer(folder / "light", LIGHT_MODULES, {}) as light:
        yield Bench(folder, (commands.server, light))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        is_sample = metafunc.config.getoption("--malformed") == "sample"
        metafunc.parametrize("case", [case for case in CASES if not is_sample or in_sample(case)], ids=str)


def in_sample(case: Case) -> bool:
    """Whether the default suite has a case: by its name alone, fewer of those that need torch."""
    return zlib.crc32(str(case).encode()) % (5 if case.is_light else 12) == 0


def test_the_answer_is_one_clear_line(bench: Bench, case: Case) -> None:
    problems = bench.problems(case)
    assert not problems, "\n\n".join(problems)
