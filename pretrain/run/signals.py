"""Stop signals: they become a stop request of this rank; all ranks vote on it (`pretrain/parallel/stop_vote.py`).

SIGTERM, SIGUSR1 (Slurm's warning before the time limit), SIGHUP (the terminal is gone; not under nohup) or SIGINT
(Ctrl-C) sets a flag here and nothing else, so the step under way finishes. A second Ctrl-C raises KeyboardInterrupt at
once.
"""

import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)


class StopSignal:
    """Context manager that turns stop signals into `requested`; the handlers from before are restored at exit. Main
    thread only."""

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal received last, or None."""
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        heard = [
            number
            for number in STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # as nohup leaves it
        ]
        self._previous = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.requested = signal.Signals(number).name
