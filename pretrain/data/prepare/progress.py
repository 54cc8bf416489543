"""Progress of work on input files: a live bar on a terminal, a plain line every few seconds elsewhere, and bad inputs
above it."""

import sys
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pretrain.data.prepare.documents import Problem
from pretrain.data.prepare.units import Advance, Event, Started

LINE_SECONDS = 10.0
SHOWN_PROBLEMS = 10


class PrepareProgress:
    """Shows the events of one piece of work on stderr. Rate and time left are those of stored bytes."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: tqdm[Any] | None = None
        self._total, self._initial, self._done, self._documents = 0, 0, 0, 0
        self._started = self._line_due = time.monotonic()
        self._problems: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._start(event)
            case Advance():
                self._advance(event)
            case Problem():
                self._problem(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _start(self, event: Started) -> None:
        self._total, self._initial, self._done = event.total_bytes, event.done_bytes, event.done_bytes
        self._started = time.monotonic()
        self._line_due = self._started + LINE_SECONDS
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total, initial=self._initial, desc=self._label, unit="B", unit_scale=True, file=sys.stderr
            )

    def _advance(self, event: Advance) -> None:
        self._done += event.stored_bytes
        self._documents += event.documents
        now = time.monotonic()
        speed = f"{self._documents / max(now - self._started, 1e-9):,.1f} documents/s"
        if self._bar is not None:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(event.stored_bytes)
        elif now >= self._line_due:
            self._line_due = now + LINE_SECONDS
            line = tqdm.format_meter(
                self._done,
                self._total,
                now - self._started,
                prefix=self._label,
                unit="B",
                unit_scale=True,
                initial=self._initial,
                postfix=speed,
                bar_format="{desc}: {percentage:.0f}% of {total_fmt}B, {rate_fmt}, {remaining} left{postfix}",
            )
            print(line, file=sys.stderr, flush=True)

    def _problem(self, problem: Problem) -> None:
        self._problems[problem.reason] += 1
        shown = self._problems[problem.reason]
        if shown <= SHOWN_PROBLEMS:
            tqdm.write(str(problem), file=sys.stderr)
        elif shown == SHOWN_PROBLEMS + 1:
            tqdm.write(f"more of {problem.reason!r} are only counted", file=sys.stderr)
