"""Every call to the storage fails once, in a tiny run of each kind: nothing is lost, and the command says it in a line.

The n-th open, stat, list, read, write, flush, rename or removal of a run fails with EIO, ESTALE, ENOSPC or ENOENT
(`faultfs.c`). The run then ends with success, or with exit code 1 and one or two lines that name file and error (2 only
for a file that is not there before the run has begun); no checkpoint and no row that was there before is gone; and the
same command again, on a sound storage, ends as if nothing had happened: same losses, rows, checkpoints and shards.

    pytest tests/faults                                     a sample, chosen by the number of the call alone
    pytest tests/faults --all-faults [-k resume]            every call with every error: about an hour

Not covered: a page of a mapped file that cannot be read: the kernel answers with SIGBUS, and no call with an error.
"""

import itertools

import pytest

from tests.faults.bench import ERRORS, Bench
from tests.faults.kinds import KINDS

SAMPLE = {
    "train": 8, "train with workers": 6, "resume": 16, "prepare": 16, "prepare with workers": 4, "merge": 12,
    "evaluate": 10, "finetune": 8, "train from weights": 4, "train on two ranks": 4,
    "index": 8,
}  # fmt: skip
"""Cases of the default suite."""


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", KINDS)
def test_one_failing_call_loses_nothing(bench: Bench, name: str, request: pytest.FixtureRequest) -> None:
    num_calls = len(bench.reference(name).calls)
    cases = list(itertools.product(range(1, num_calls + 1), ERRORS))
    if not request.config.getoption("--all-faults"):
        # 4 steps of a sample are odd and even by turns, so that every error comes up
        cases = cases[:: len(cases) // SAMPLE[name] | 1][: SAMPLE[name]]
    problems = [problem for number, error in cases for problem in bench.problems(name, number, error)]
    assert not problems, f"{len(problems)} of {len(cases)} cases:\n" + "\n".join(problems)
