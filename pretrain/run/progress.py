"""Progress of a run for people: one live bar on a terminal, a plain line every few seconds in a log file.

The first step, which may take minutes, says now and then how far it is. A display that fails, because its reader is
gone or its disk is full, is given up; it never costs the run. Only one rank has one of these. Other output of that rank
goes through `message`, so that it does not tear the bar.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

from tqdm import tqdm

from pretrain.run.time_left import TimeLeft, Work

BAR_FORMAT = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt}{postfix}"
FIRST_AFTER_S, FIRST_EVERY_S = 20.0, 60.0
"""When it is said how far the first step is, and again."""
QUIET_S = 3.0
"""Work on many items that takes no longer shows no progress."""

Item = TypeVar("Item")


class Progress:
    """Shows steps done, what the caller says of the newest one, and the time left."""

    def __init__(
        self,
        num_steps: int,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        seconds_per_line: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "step",
        began: float | None = None,
        work: Work | None = None,
    ) -> None:
        """
        Args:
            num_steps: steps of the whole run.
            done: steps done before this process started.
            stream: where to show progress; a terminal gets the bar. Default: standard error.
            seconds_per_line: least time between two plain lines; the first and the last step get one in any case.
            clock: seconds.
            unit: what a plain line calls a step.
            began: when the first step began, if it was no slower than the others: the ETA counts from then.
            work: of each step, by which the ETA counts. Default: each has as much.
        """
        self._num_steps, self._seconds_per_line, self._clock = num_steps, seconds_per_line, clock
        self._unit = unit
        self._stream: TextIO | None = stream or sys.stderr  # None where standard error was closed
        self._time_left = TimeLeft(num_steps, work, began=began)
        self._last_line = -seconds_per_line
        self._unsaid = ""
        self._bar = None
        if self._stream is not None and self._stream.isatty():
            self._bar = tqdm(
                total=num_steps, initial=done, file=self._stream, dynamic_ncols=True, bar_format=BAR_FORMAT
            )

    def update(self, done: int, description: str) -> float | None:
        """Show that `done` steps are done, with a short description of the last one.

        Returns:
            Seconds that the others will take, as far as is known.
        """
        now, bar = self._clock(), self._bar
        left = self._time_left.after(done, now)
        text = f"ETA {'?' if left is None else tqdm.format_interval(left)}, {description}"
        if bar is not None:
            bar.set_postfix_str(text, refresh=False)
            self._show(lambda: bar.update(done - bar.n))
            return left
        self._unsaid = f"{self._unit} {done}/{self._num_steps}, {text}"
        if now - self._last_line >= self._seconds_per_line or done >= self._num_steps:
            self._last_line = now
            self._say_line()
        return left

    @contextmanager
    def first_step(self, number: int, how_far: Callable[[], str]) -> Iterator[None]:
        """While it is done inside, say how far step `number` is."""
        began, is_over = self._clock(), threading.Event()

        def speak() -> None:
            wait_s = FIRST_AFTER_S
            while not is_over.wait(wait_s):
                self.message(f"step {number}/{self._num_steps}: {how_far()} after {self._clock() - began:.0f} s")
                wait_s = FIRST_EVERY_S

        threading.Thread(target=speak, daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def message(self, text: str) -> None:
        """Show a line that stays."""
        bar, stream = self._bar, self._stream
        if bar is not None:
            self._show(lambda: bar.write(text, file=stream))
        elif stream is not None:
            self._show(lambda: print(text, file=stream, flush=True))

    def close(self) -> None:
        """Leave the bar as it stands, or show the last step if no line did."""
        bar = self._bar
        if bar is not None:
            self._show(bar.refresh)
            self._show(bar.close)
        elif self._unsaid:
            self._say_line()

    def _show(self, display: Callable[[], object]) -> None:
        try:
            display()
        except (OSError, ValueError):  # a closed file is a ValueError
            self._stream = self._bar = None

    def _say_line(self) -> None:
        self.message(self._unsaid)
        self._unsaid = ""


def tracked(
    items: Iterable[Item], total: int, what: str, *, unit: str = "example", stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:  # fmt: skip
    """The items, one by one; if they take longer than `QUIET_S`, how many there are and how many a second is shown.

    Args:
        items: what is made or worked on.
        total: how many there are at most.
        what: is done with them, for people.
        unit: what one of them is called.
        stream: as of `Progress`.
        clock: seconds.
    """
    began = clock()
    progress, due = None, began + QUIET_S
    for done, item in enumerate(items, start=1):
        yield item
        now = clock()
        if now >= due:
            due = now + 0.1
            progress = progress or Progress(total, done=done, stream=stream, clock=clock, unit=unit, began=began)
            progress.update(done, f"{what}, {done / (now - began):,.0f} {unit}s/s")
    if progress is not None:
        progress.close()
