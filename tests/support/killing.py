"""Processes that a test ends at a chosen point, as kill -9 or a full disk would, and those that end with them."""

import os
import select
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path


def in_fork(work: Callable[[], object]) -> int:
    """Run something in a forked process; returns its wait status, 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def killed_at_write(number: int, work: Callable[[], object]) -> bool:
    """Run something in a fork that kill -9 ends just before its write (fsync or rename) of that number; False if it
    never came so far."""

    def killed() -> None:
        writes = count(1)

        def deadly(call: Callable[..., object]) -> Callable[..., object]:
            def instead(*arguments: object) -> object:
                if next(writes) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments)

            return instead

        os.fsync, os.rename, os.replace = deadly(os.fsync), deadly(os.rename), deadly(os.replace)  # type: ignore[assignment]
        work()

    status = in_fork(killed)
    assert status in (0, signal.SIGKILL)
    return status != 0


def workers_of(process: int) -> list[int]:
    """Living data workers of a process, by number."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rsplit(")", 1)[1].split()[:2]
            is_worker = b"pretrain.data.stream.worker" in path.with_name("cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == process and is_worker and state != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def wait_for_end(process: int) -> None:
    """Wait until the process of a pidfd is gone."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    assert poll.poll(20_000), "the worker outlived its parent"
    os.close(process)
