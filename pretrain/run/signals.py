"""Asking a run to stop: a signal becomes a wish of this rank, all ranks agree on it between two steps.

1. SIGTERM, SIGUSR1 (Slurm's warning before the time limit) or SIGINT (Ctrl-C) sets a flag here and nothing else, so the
   step under way finishes. A second Ctrl-C raises KeyboardInterrupt at once.
2. Every rank encodes its wish as a small integer, 0 for none; the engine takes the maximum over the ranks once a step.
   The largest code wins, so all ranks stop after the same step and name the same reason.

Cost: one integer in a collective that the step does anyway.
"""

import signal
from types import FrameType
from typing import Any

REASONS = ("none", "train.exit_after", "SIGINT", "SIGUSR1", "SIGTERM")
"""Why a run stops before its last step, the weaker reason first; the index is the code that ranks exchange."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)


class StopSignal:
    """Context manager that turns stop signals into `requested`; the handlers from before are restored at exit. Main
    thread only."""

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal received last, or None."""
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
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


def encode_reason(reason: str | None) -> int:
    """The reason to stop as a small integer for a maximum over ranks; None, no wish to stop, is 0."""
    return REASONS.index(reason or "none")


def decode_reason(code: int) -> str | None:
    """The reason that an agreed code stands for, or None where no rank wants to stop."""
    return REASONS[code] if code else None
