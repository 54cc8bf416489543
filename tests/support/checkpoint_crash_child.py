"""Saves checkpoints in forked processes that are killed, starved of disk or starved of memory, and prints what is left,
as JSON.

Usage: checkpoint_crash_child.py DIRECTORY. Run by tests/unit/checkpoint/test_crash.py: torch is imported once here, and
each process is a fork.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.store import CheckpointStore
from pretrain.checkpoint.verify import newest_good

NUMEL = 1000
POINTS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


def make_store(
    directory: Path, *, nonce: str, rank: int = 0, world_size: int = 1, timeout_s: float = 60.0
) -> CheckpointStore:
    return CheckpointStore(
        directory=directory,
        rank=rank,
        world_size=world_size,
        nonce=nonce,
        keep_last=1,
        keep_every=0,
        asynchronous=True,
        timeout_s=timeout_s,
    )


def save(store: CheckpointStore, step: int, value: int, rank: int = 0, world_size: int = 1) -> str:
    """Save a tensor full of `value`, split over the ranks; returns the message of the result."""
    numel = NUMEL // world_size
    store.save(
        step,
        [Piece(name="x", tensor=torch.full((numel,), value), shape=(NUMEL,), start=rank * numel)],
        {"value": value},
    )
    with contextlib.suppress(OSError):  # the message says it
        store.wait()
    return store.poll()[-1].message


def found(directory: Path) -> dict:
    """What the next start would find."""
    reader, problems = newest_good(directory)
    values = reader.read_whole("x").unique().tolist() if reader else []
    return {
        "step": reader.step if reader else None,
        "value": reader.meta["value"] if reader else None,
        "values": values,
        "problems": problems,
        "names": sorted(os.listdir(directory)),
    }


def kill_at(count: int) -> None:
    """From now on, kill this process before its `count`-th operation on the file system; a write is done by half
    first."""
    calls = 0

    def counted(name: str, operation: Callable) -> Callable:
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == count:
                if name == "write":
                    operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return call

    for name in POINTS:
        setattr(os, name, counted(name, getattr(os, name)))


def fork(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    return process


def survive(directory: Path, *, old_steps: list[int], new_step: int, world_size: int, killed_rank: int) -> list[dict]:
    """Kill one rank at each point of a save in turn, until a save ends before the point is reached.

    When rank 0 dies the others are killed too, as a launcher does; rank 0 must find out for itself that another rank
    has died.
    """
    rows = []
    message = directory.with_name(f"{directory.name}.message")
    while not rows or rows[-1]["killed"]:
        shutil.rmtree(directory, ignore_errors=True)
        message.unlink(missing_ok=True)
        store = make_store(directory, nonce="old")
        for step in old_steps:
            save(store, step, value=1)

        def rank_process(rank: int) -> None:
            if rank == killed_rank:
                kill_at(len(rows) + 1)
            store = make_store(
                directory, nonce="new", rank=rank, world_size=world_size, timeout_s=0.3 if killed_rank else 60.0
            )
            line = save(store, new_step, value=2, rank=rank, world_size=world_size)
            if rank == 0:
                message.write_text(line)

        processes = {rank: fork(lambda rank=rank: rank_process(rank)) for rank in range(world_size)}
        killed = os.WIFSIGNALED(os.waitpid(processes.pop(killed_rank), 0)[1])
        for process in processes.values():
            if killed and killed_rank == 0:
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        row = {
            "killed": killed,
            "message": message.read_text() if message.exists() else None,
            "after_kill": found(directory),
        }
        save(make_store(directory, nonce="again"), new_step + 100, value=3)
        rows.append({**row, "after_next_save": found(directory)})
    return rows


def starve_disk(directory: Path) -> dict:
    """Two ranks save twice; the first time the files of rank 1 cannot grow past 2 KiB."""
    save(make_store(directory, nonce="old"), 100, value=1)
    outcomes = [directory.with_name(f"{directory.name}.{rank}") for rank in (0, 1)]

    def rank_process(rank: int) -> None:
        store = make_store(directory, nonce="new", rank=rank, world_size=2)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
        messages = [save(store, 200, value=2, rank=rank, world_size=2)]
        names = sorted(os.listdir(directory)) if rank == 0 else []
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        messages.append(save(store, 200, value=2, rank=rank, world_size=2))
        outcomes[rank].write_text(json.dumps({"messages": messages, "names": names}))

    for process in [fork(lambda rank=rank: rank_process(rank)) for rank in (0, 1)]:
        os.waitpid(process, 0)
    ranks = [json.loads(outcome.read_text()) for outcome in outcomes]
    return {
        "messages": [rank["messages"] for rank in ranks],
        "names_after_failure": ranks[0]["names"],
        "end": found(directory),
    }


def starve_memory(directory: Path) -> dict:
    """The host has no room for the copy of the state."""
    store = make_store(directory, nonce="new")
    messages = [save(store, 100, value=1)]
    state = torch.empty(1 << 28, dtype=torch.uint8)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 27), resource.RLIM_INFINITY))
    store.save(200, [Piece.whole("state", state)], {})
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {"messages": messages + [result.message for result in store.poll()], "end": found(directory)}


def main() -> None:
    folder = Path(sys.argv[1])
    outcome = {
        "next_step": survive(folder / "a", old_steps=[50, 100], new_step=200, world_size=1, killed_rank=0),
        "same_step": survive(folder / "b", old_steps=[100], new_step=100, world_size=1, killed_rank=0),
        "kill_rank_0": survive(folder / "c", old_steps=[100], new_step=200, world_size=2, killed_rank=0),
        "kill_rank_1": survive(folder / "d", old_steps=[100], new_step=200, world_size=2, killed_rank=1),
        "disk": starve_disk(folder / "e"),
        "memory": starve_memory(folder / "f"),
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
