"""What figures say of the runs that they stand on."""

import pytest

from pretrain.rows.provenance import RunName, counted, told_runs


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([RunName("mine", seed=3), RunName("mine", seed=3)], "run mine, seed 3"),
        ([RunName("a-seed0"), RunName("a-seed2")], "2 runs: a, seeds 0, 2"),
        ([RunName("a-seed1"), RunName("b-seed1")], "2 runs: a and b, seed 1"),
        (
            [RunName(f"{name}-seed{seed}") for name in "abc" for seed in (0, 1)],
            "6 runs: a, b and c, seeds 0, 1 of each",
        ),
        ([RunName("a-seed0"), RunName("a-seed1"), RunName("b-seed1")], "3 runs: a and b, seeds 0, 1, 1 to 2 of each"),
        ([RunName("a-seed0", "x"), RunName("a-seed0", "y")], "2 runs: a, seed 0"),
        ([RunName("old")], "run old, seeds not known"),
        ([RunName(f"{'long' * 40}{number}-seed0") for number in range(5)], "5 runs, seed 0"),
    ],
)
def test_runs_and_seeds_are_told(runs: list[RunName], said: str) -> None:
    assert told_runs(runs) == said


def test_numbers_that_differ_are_a_range() -> None:
    assert counted([2000, 2000], "questions") == "2,000 questions"
    assert counted([500, 2000, 1000], "questions") == "500 to 2,000 questions"
