"""Runs that are killed, signalled and damaged at random until they are complete.

    pytest tests/soak -s --soak-minutes 20 --soak-seed 3 [--basetemp FOLDER]     the soak; by default, a few cycles

Tiny runs of a text and of a task, in fp64, on one rank, two stages, two tensor ranks and two data-parallel ranks: with
one layout all the time, to be compared bit for bit with the uninterrupted run, or with another one at each start, to be
compared up to rounding; and a fine-tuning in fp32, always with one layout. After each start: no row of steps and
evaluations is lost, doubled or another one; no good checkpoint is gone that retention does not name; the run went on
from the newest good one; nobody said more than a line. A power cut, which forgets what was not flushed, is not covered.
"""

import json
import random
import time
from pathlib import Path

import pytest

from tests.soak.damage import CHECKPOINT_DAMAGES, ROW_DAMAGES, Damage
from tests.soak.runs import METRICS, TEXT, Reference, lost_checkpoints
from tests.soak.soak import Soak

CYCLES = 3
"""Of the default suite."""


@pytest.mark.timeout(5 * 3600)
def test_nothing_is_lost(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    minutes, seed = (float(request.config.getoption(f"--soak-{name}") or 0) for name in ("minutes", "seed"))
    soak = Soak(tmp_path, int(seed))
    soak.run(deadline=time.monotonic() + 60 * minutes, least_cycles=CYCLES)
    summary = json.dumps(soak.summary(), indent=1)
    print(f"{tmp_path}/soak.jsonl\n{summary}")
    problems = [problem for cycle in soak.cycles for problem in cycle.problems]
    assert not problems, "\n".join([summary, *problems])


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Rows of a run, as an uninterrupted one leaves them."""
    (tmp_path / TEXT.results).parent.mkdir()
    rows = [{"step": step, "loss": 1 / step, "step_time_s": 1.0} for step in range(1, TEXT.num_steps + 1)]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = {"run": "soak", "task": "t", "metric": "nll", "num_loops": 1, "value": 0.5}
    (tmp_path / TEXT.results).write_text("".join(json.dumps({**row, "step": step}) + "\n" for step in (5, 40)))
    return tmp_path


def edit(path: Path, number: int, *lines: str) -> None:
    """Put other lines into the place of one."""
    old = path.read_text().splitlines()
    path.write_text("\n".join([*old[:number], *lines, *old[number + 1 :], ""]))


@pytest.mark.parametrize(
    ("file", "line", "lines", "expected"),
    [
        (METRICS, 2, ['{"step": 3, "loss": 0.3333333333333333, "step_time_s": 9.0}'], ("", "")),
        (METRICS, 2, ['{"step": 3, "loss": 0.3333333333333334, "step_time_s": 1.0}'], ("is not", "")),
        (METRICS, 2, ['{"step": 3, "loss": 0.33333334, "step_time_s": 1.0}'], ("is not", "is not")),
        (METRICS, 2, ['{"step": 3, "loss": null, "step_time_s": 1.0}'], ("is not", "is not")),
        (METRICS, 2, [], ("(3,) is lost", "(3,) is lost")),
        (METRICS, 2, ['{"step": 3, "loss": 0.3333333333333333, "step_time_s": 9.0}'] * 2, ("twice", "twice")),
        (METRICS, 39, ['{"step": 40, "lo'], ("torn", "torn")),
        (TEXT.results, 2, ['{"step": "7"}'], ("torn", "torn")),
        (TEXT.results, 1, [], ("40, 't', 'nll', 1) is lost",) * 2),
        (
            TEXT.results,
            0,
            ['{"run": "x", "step": 5, "task": "t", "metric": "nll", "num_loops": 1}'],
            ("not a row",) * 2,
        ),
    ],
)
def test_rows_that_are_wrong_are_found(
    run_dir: Path, file: str, line: int, lines: list[str], expected: tuple[str, str]
) -> None:
    references = [Reference.of(run_dir, TEXT, is_exact=is_exact) for is_exact in (True, False)]
    edit(run_dir / file, line, *lines)
    for reference, words in zip(references, expected, strict=True):
        problems = "\n".join(reference.problems(run_dir, TEXT.num_steps, is_complete=True))
        assert words in problems if words else not problems


def test_rows_after_the_newest_checkpoint_may_be_missing(run_dir: Path) -> None:
    reference = Reference.of(run_dir, TEXT, is_exact=True)
    (run_dir / METRICS).write_text("".join((run_dir / METRICS).read_text().splitlines(keepends=True)[:20]))
    edit(run_dir / TEXT.results, 1, "half a ro")
    assert not reference.problems(run_dir, 20, is_complete=False)
    assert any("(21,) is lost" in problem for problem in reference.problems(run_dir, 21, is_complete=False))


def test_checkpoints_that_are_lost_are_found() -> None:
    before = {3: "a", 15: "b", 18: "c"}
    assert not list(lost_checkpoints(before, {15: "b", 18: "c", 21: "d"}, 15))
    assert not list(lost_checkpoints(before, {15: "b", 21: "d", 24: "e"}, 15))
    assert not list(lost_checkpoints(before, {21: "d", 24: "e"}, 0))
    for after in ({15: "b", 18: "c", 3: "x"}, {15: "b", 21: "d"}, {18: "c", 21: "d", 24: "e"}, {15: "b", 3: "a"}):
        assert list(lost_checkpoints(before, after, 15))


@pytest.mark.parametrize("damage", [*CHECKPOINT_DAMAGES, *ROW_DAMAGES])
def test_damage_damages(run_dir: Path, damage: Damage) -> None:
    before = (run_dir / METRICS).read_bytes()
    damage(run_dir / METRICS, random.Random(0))
    assert not (run_dir / METRICS).exists() or (run_dir / METRICS).read_bytes() != before
