"""Where a rank stands in its run: written by the thread that trains, read by the one that watches for a hang
(`pretrain/run/watchdog.py`). An assignment each time, no call of the system."""

import time
from typing import Literal, NamedTuple, get_args

import torch

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


class WorkClock:
    """How long a rank works in a step while it waits for nobody: from the first phase to the end of the data, and from
    `compute` to the reduction. On a GPU the latter is measured there, without a wait for it, and known a step later."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        """Of the last step that is known; 0 before."""
        self._data_s = self._began = 0.0
        self._events = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._is_computing = self._is_measured = False

    def on_phase(self, phase: PhaseName) -> None:
        now = time.perf_counter()
        if phase == "data":
            self._began = now
        elif phase == "forward and backward":
            self._data_s = now - self._began
        elif phase == "reduction" and self._is_computing:
            self._is_computing = False
            if self._events is None:
                self.seconds = self._data_s + now - self._began
            else:
                self._events[1].record()
                self._is_measured = True

    def compute(self) -> None:
        """All ranks have their data: the step's own work begins."""
        if self._events is not None:
            if self._is_measured and self._events[1].query():
                self.seconds = self._data_s + self._events[0].elapsed_time(self._events[1]) / 1000
            self._events[0].record()
        self._began, self._is_computing = time.perf_counter(), True


class Phase:
    """Where this rank stands now, how often it moved, and how long it works in a step."""

    def __init__(self, device: torch.device) -> None:
        self.place, self.work = Whereabouts(0, 0, "start"), WorkClock(device)
        self.is_starting = True
        """Until the first step is done: what is slow once may be slow."""

    def enter(self, phase: PhaseName, *, step: int | None = None) -> None:
        """Begin a phase, of a step if that is a new one."""
        moves, before, *_ = self.place
        self.place = Whereabouts(moves + 1, before if step is None else step, phase)
        self.work.on_phase(phase)

    def tick(self, more: str | None = None) -> None:
        """Get on within a phase; `more` says how far."""
        moves, step, phase, before = self.place
        self.place = Whereabouts(moves + 1, step, phase, before if more is None else more)
