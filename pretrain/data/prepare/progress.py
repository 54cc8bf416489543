"""Progress of work on input files: a live bar on a terminal, a plain line every few seconds elsewhere, and bad inputs
above it."""

import sys
import time
from collections import Counter
from typing import Any, Self

from tqdm import tqdm

from pretrain.data.prepare.records import Problem
from pretrain.data.prepare.units import Advance, Event, Started

LINE_SECONDS = 10.0


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
            case Started(total, done):
                self._start(total, done)
            case Advance(stored_bytes, documents):
                self._advance(stored_bytes, documents)
            case Problem():
                self._problem(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _start(self, total: int, done: int) -> None:
        self._total, self._initial, self._done = total, done, done
        self._started = time.monotonic()
        self._line_due = self._started + LINE_SECONDS
        if sys.stderr.isatty():
            unit = {"unit": "B", "unit_scale": True}
            self._bar = tqdm(total=total, initial=done, desc=self._label, file=sys.stderr, **unit)

    def _advance(self, stored_bytes: int, documents: int) -> None:
        self._done += stored_bytes
        self._documents += documents
        now = time.monotonic()
        speed = f"{self._documents / max(now - self._started, 1e-9):,.1f} documents/s"
        if self._bar is not None:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(stored_bytes)
        elif now >= self._line_due:
            self._line_due = now + LINE_SECONDS
            line = tqdm.format_meter(
                self._done, self._total, now - self._started, prefix=self._label, unit="B", unit_scale=True,
                initial=self._initial, postfix=speed,
                bar_format="{desc}: {percentage:.0f}% of {total_fmt}B, {rate_fmt}, {remaining} left{postfix}",
            )  # fmt: skip
            print(line, file=sys.stderr, flush=True)

    def _problem(self, problem: Problem) -> None:
        self._problems[problem.reason] += 1
        if self._problems[problem.reason] == 1:
            tqdm.write(f"{problem} (any more of this kind are counted)", file=sys.stderr)
