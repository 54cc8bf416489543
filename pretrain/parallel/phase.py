"""Where a rank stands in its run: written by the thread that trains, read by the one that watches for a hang
(`pretrain/run/watchdog.py`). An assignment each time, no call of the system."""

from typing import Literal, NamedTuple, get_args

PhaseName = Literal[
    "start", "data", "forward and backward", "reduction", "update", "log", "validation", "tasks", "save", "end"
]
ORDER: tuple[PhaseName, ...] = get_args(PhaseName)
"""In which the ranks pass through them, from the start of a run and from one step to the next."""


class Whereabouts(NamedTuple):
    """Where a rank stands."""

    moves: int
    """Grows with every sign of progress."""
    step: int
    """That is under way, or was the last; the first is 1."""
    phase: PhaseName
    more: str = ""
    """Such as the micro-batch."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}{self.more}"


class Phase:
    """Where this rank stands now, and how often it moved."""

    def __init__(self) -> None:
        self.place = Whereabouts(0, 0, "start")
        self.is_starting = True
        """Until the first step is done: what is slow once may be slow."""

    def enter(self, phase: PhaseName, *, step: int | None = None) -> None:
        """Begin a phase, of a step if that is a new one."""
        moves, before, *_ = self.place
        self.place = Whereabouts(moves + 1, before if step is None else step, phase)

    def tick(self, more: str | None = None) -> None:
        """Get on within a phase; `more` says how far."""
        moves, step, phase, before = self.place
        self.place = Whereabouts(moves + 1, step, phase, before if more is None else more)
