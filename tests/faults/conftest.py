"""The bench of failing storages, made once."""

from collections.abc import Iterator

import pytest

from tests.faults.bench import Bench, open_bench
from tests.faults.seam import COMPILER


@pytest.fixture(scope="package")
def bench() -> Iterator[Bench]:
    if COMPILER is None:
        pytest.skip("no C compiler: the failing storage is a library of C that is compiled here")
    with open_bench() as made:
        yield made
