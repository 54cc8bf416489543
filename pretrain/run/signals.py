"""Stop signals: they become a stop request of this rank; all ranks vote on it (`pretrain/parallel/stop_vote.py`).

SIGTERM, SIGUSR1 (Slurm's warning before the time limit), SIGHUP (the terminal is gone; not under nohup) or SIGINT
(Ctrl-C) sets a flag here and nothing else, so the step under way finishes. A second Ctrl-C raises KeyboardInterrupt at
once, as does the first where there is nothing to save (`interruptible`); where its step goes on, rank 0 says so.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pretrain.command.console import print_line
from pretrain.device.ranks import world_from_environment

STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)


class StopSignal:
    """Context manager that turns stop signals into `requested`; the handlers from before are restored at exit. Main
    thread only.

    Args:
        patience_s: how long after Ctrl-C rank 0 says that the run has not stopped yet.
    """

    def __init__(self, patience_s: float = 2.0) -> None:
        self.requested: str | None = None
        """Name of the signal received last, or None."""
        self._interrupted = self._is_interruptible = False
        self._previous: dict[signal.Signals, Any] = {}
        words = "SIGINT: the run ends after the step under way and its save; Ctrl-C again ends it at once, without them"
        self._answer = threading.Timer(patience_s, print_line, [words])
        self._answer.daemon = True

    def __enter__(self) -> "StopSignal":
        heard = [
            number
            for number in STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # as nohup leaves it
        ]
        self._previous = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, where there is nothing to save yet, the first Ctrl-C raises KeyboardInterrupt too."""
        self._is_interruptible = True
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_interruptible = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted or self._is_interruptible:
                raise KeyboardInterrupt
            self._interrupted = True
            if world_from_environment().rank == 0:
                self._answer.start()
        self.requested = signal.Signals(number).name
