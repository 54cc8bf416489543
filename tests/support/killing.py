"""Processes that a test ends at a chosen point, as kill -9 or a full disk would."""

import os
import signal
from collections.abc import Callable
from itertools import count


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
