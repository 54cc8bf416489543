"""A run directory has one live owner: it is refused to others, and taken over when its owner has died."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pretrain.run import owner
from pretrain.run.owner import OWNER_NAME, Ownership, read_owner, sees_owner

CHILD = """
import sys, time
from pathlib import Path
from pretrain.run.owner import Ownership
Ownership(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "BEAT_S", 0.2)
    monkeypatch.setattr(owner, "DEAD_AFTER_S", 1.5)


def write(folder: Path, **changes: object) -> None:
    """An owner's file as another process left it."""
    path = folder / OWNER_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def left_behind(folder: Path, **changes: object) -> None:
    """A directory whose owner did not release it."""
    claim = Ownership(folder)
    claim.take()
    content = (folder / OWNER_NAME).read_bytes()
    claim.release()
    folder.mkdir(exist_ok=True)
    (folder / OWNER_NAME).write_bytes(content)
    write(folder, nonce="another", **changes)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "taken\n"
        with pytest.raises(ValueError, match=f"{run} belongs to a run that is alive: process {child.pid} on "):
            Ownership(run).take()
    finally:
        child.kill()
        child.wait()
    claim = Ownership(run)
    assert claim.take().startswith(f"process {child.pid} on ")
    assert sees_owner(run, claim.owner.nonce)
    claim.release()
    assert not (run / OWNER_NAME).exists()


def test_two_threads_of_one_process_are_two_owners(tmp_path: Path) -> None:
    first = Ownership(tmp_path)
    first.take()
    with pytest.raises(ValueError, match=f"process {os.getpid()} on "):
        Ownership(tmp_path).take()
    first.release()
    second = Ownership(tmp_path)
    assert second.take() == ""
    second.release()


@pytest.mark.parametrize(
    "changes",
    [
        {"space": "another machine", "host": "node7", "job": ""},
        {"space": "another machine", "host": "node7", "job": "17"},
        {"pid": 2**22 - 3},
        {"process_start": "1"},
    ],
    ids=["no beat from another machine", "the same job", "no such process", "a later process of the same number"],
)
def test_a_directory_whose_owner_died_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    left_behind(tmp_path, **changes)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    claim = Ownership(tmp_path)
    assert claim.take()
    claim.release()


def test_an_owner_on_another_machine_that_beats_is_alive(tmp_path: Path) -> None:
    left_behind(tmp_path, space="another machine", host="node7", job="8", beat=0)
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(0.1):
            number += 1
            write(tmp_path, beat=number)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(ValueError, match=r"alive: process .* on node7, job 8; stop that one first"):
            Ownership(tmp_path).take()
    finally:
        ended.set()
        beating.join()


def test_an_unreadable_name_is_taken_over_after_a_while(tmp_path: Path) -> None:
    (tmp_path / OWNER_NAME).write_bytes(b"\xff[[[")
    claim = Ownership(tmp_path)
    assert claim.take() == "an owner who left no name"
    claim.release()


def test_an_owner_hears_that_it_was_taken_over(tmp_path: Path) -> None:
    lost = threading.Event()
    claim = Ownership(tmp_path, lost=lost.set)
    claim.take()
    write(tmp_path, nonce="another")
    assert lost.wait(10)
    claim.release()
    found = read_owner(tmp_path)
    assert found is not None and found.nonce == "another"  # it is not removed


def test_a_rank_that_does_not_see_the_file_says_so(tmp_path: Path) -> None:
    assert not sees_owner(tmp_path / "elsewhere", "nonce")
