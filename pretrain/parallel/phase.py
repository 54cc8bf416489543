"""Where a rank stands in its run: written by the thread that trains, read by the one that watches for a hang
(`pretrain/run/watchdog.py`). An assignment each time, no call of the system."""

import time
from typing import Literal, NamedTuple, get_args

import torch

PhaseName = Literal[
    "start",
    "data",
    "rollout",
    "forward and backward",
    "reduction",
    "update",
    "log",
    "validation",
    "tasks",
    "save",
    "end",
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
    """How long a rank works in a step while it waits for nobody: until the data are there, and from each `compute` to
    the next `rest`, the reduction at the latest. On a GPU the latter is measured there, without waiting, and known
    when the next step begins. With `parallel.overlap`, what the first pass waits for weights that come back is in it,
    on all replicas alike."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        """Of the last step that is known; 0 before."""
        self._is_gpu = device.type == "cuda"
        self._began = self._data_s = self._computed_s = 0.0
        self._events: list[list[torch.cuda.Event]] = []
        """Begin and end of each part of the step, on a GPU; they are used again."""
        self._num_parts, self._is_computing = 0, False

    def on_phase(self, phase: PhaseName) -> None:
        now = time.perf_counter()
        if phase == "data":
            self._settle()
            self._began, self._computed_s, self._num_parts, self._data_s = now, 0.0, 0, 0.0
        elif phase == "forward and backward" and not self._num_parts:  # not of a later update of the same step
            self._data_s = now - self._began
        elif phase == "reduction":
            self.rest()
            if not self._is_gpu:
                self._settle()

    def restart(self) -> None:
        """What came until now was a wait for another rank."""
        self._began = time.perf_counter()

    def compute(self) -> None:
        """All ranks have what they need: own work begins."""
        if self._is_gpu:
            if self._num_parts == len(self._events):
                self._events.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            self._events[self._num_parts][0].record()
        self._began, self._is_computing = time.perf_counter(), True

    def rest(self) -> None:
        """Own work ends, if it had begun: what comes may wait for other ranks."""
        if not self._is_computing:
            return
        if self._is_gpu:
            self._events[self._num_parts][1].record()
        self._computed_s += time.perf_counter() - self._began
        self._num_parts, self._is_computing = self._num_parts + 1, False

    def _settle(self) -> None:
        """Take over what the step took, if it is known."""
        parts = self._events[: self._num_parts]
        if self._num_parts and all(end.query() for _, end in parts):
            computed_s = sum(begin.elapsed_time(end) for begin, end in parts) / 1000 if parts else self._computed_s
            self.seconds = self._data_s + computed_s


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
