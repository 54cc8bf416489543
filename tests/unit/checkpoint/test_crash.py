"""Kill -9 at every write point, a full disk, no memory, a dead rank: the previous checkpoint is always found, whole."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MEMORY_FOLDER = Path("/dev/shm")  # flushes cost nothing there, and a killed process leaves the same files behind


@pytest.fixture(scope="module")
def outcome() -> Iterator[dict]:
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None) as folder:
        command = [sys.executable, ROOT / "tests/support/checkpoint_crash_child.py", folder]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
        assert child.returncode == 0, child.stderr
        yield json.loads(child.stdout)


@pytest.mark.parametrize(
    ("scenario", "old_step", "new_step", "fewest_points"),
    [
        ("next_step", 100, 200, 20),
        ("same_step", 100, 100, 20),
        ("kill_rank_0", 100, 200, 20),
        ("kill_rank_1", 100, 200, 8),
    ],
)
def test_kill_at_every_write_point(
    outcome: dict, scenario: str, old_step: int, new_step: int, fewest_points: int
) -> None:
    rows = outcome[scenario]
    killed = [row["after_kill"] for row in rows if row["killed"]]
    assert len(killed) >= fewest_points
    for state in killed:
        assert (state["step"], state["values"]) in ((old_step, [1]), (new_step, [2])), state
        assert state["value"] == state["values"][0], "meta and tensors are of the same save"
        assert state["problems"] == []
    steps = [state["value"] for state in killed]
    assert steps == sorted(steps), "once the new checkpoint is there it stays"
    for row in rows:
        last = f"step-{new_step + 100:08d}"
        assert (row["after_next_save"]["names"], row["after_next_save"]["values"]) == ([last], [3]), (
            "the next run cleans up and saves"
        )


@pytest.mark.parametrize("scenario", ["next_step", "same_step", "kill_rank_0"])
def test_the_last_round_is_a_whole_save(outcome: dict, scenario: str) -> None:
    last = outcome[scenario][-1]
    assert not last["killed"]
    assert last["message"].startswith("saved checkpoint of step ")
    assert last["after_kill"]["values"] == [2]
    assert len(last["after_kill"]["names"]) == 1


def test_a_rank_that_dies_is_named(outcome: dict) -> None:
    missed = [row for row in outcome["kill_rank_1"] if row["after_kill"]["step"] == 100]
    assert missed
    for row in missed:
        assert row["message"].startswith(
            "checkpoint of step 200 was not saved: rank 0: no file from rank 1 within 0.3 s;"
        )
        assert row["after_kill"]["names"] == ["step-00000100", "step-00000200.failed-new.1"]


def test_a_full_disk_on_one_rank_is_named_on_all_and_costs_one_save(outcome: dict) -> None:
    disk = outcome["disk"]
    for messages in disk["messages"]:
        assert messages[0].startswith("checkpoint of step 200 was not saved: rank 1: File too large: ")
        assert "rank-00001.safetensors; earlier checkpoints are untouched" in messages[0]
        assert messages[1].startswith("saved checkpoint of step 200: ")
    assert "step-00000100" in disk["names_after_failure"]
    assert "step-00000200.tmp-new.1" not in disk["names_after_failure"], "the first attempt gave its space back"
    assert (disk["end"]["step"], disk["end"]["values"], disk["end"]["names"]) == (200, [2], ["step-00000200"])


def test_no_memory_for_the_copy_is_a_failed_save(outcome: dict) -> None:
    memory = outcome["memory"]
    assert len(memory["messages"]) == 2
    assert (
        "step 200 was not saved: rank 0: MemoryError: no 0.25 GiB of host memory for a copy of the state"
        in memory["messages"][1]
    )
    assert (memory["end"]["step"], memory["end"]["values"]) == (100, [1])
