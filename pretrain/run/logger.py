"""Where a run's numbers go: its files, trackers, the screen.

`<run>/metrics.jsonl` and a file in `<run>/eval` get rows (`pretrain/rows`); those of the steps before a checkpoint are
on the disk when it is, and rows that are missing all the same are named when the run goes on. wandb and TensorBoard
(`pretrain/run/trackers`) get the same numbers. Only rank 0 makes a `RunMetrics`.
"""

import contextlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pretrain.rows.alarms import ALARMS, AlarmRow
from pretrain.rows.diagnostics import DIAGNOSTICS
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.step import StepRow
from pretrain.run.progress import Progress
from pretrain.run.time_left import Work
from pretrain.run.trackers.tensorboard_run import TensorboardRun
from pretrain.run.trackers.tracker import LoggedConfig, Tracker, Trackers
from pretrain.run.trackers.wandb_run import WandbRun, wandb_mode
from pretrain.storage import is_there

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LOG = "log.txt"
"""In the run directory: the lines that rank 0 showed, but for those of steps, with their times."""

NO_STEP = -1
"""Before all steps, of which 0 has rows too."""
MOST_SPANS = 5
"""Of missing rows, in a warning."""


class RunMetrics:
    """Where rank 0 logs. A context manager: leaving it closes files, trackers and the progress display."""

    def __init__(
        self, config: LoggedConfig, run_dir: Path, *, num_steps: int, resumed_step: int | None,
        results: str = "depth.jsonl", logged_every: int = 0, scored_every: int = 0, diagnosed_every: int | None = None,
        work: Work | None = None, stream: TextIO | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            config: of the run.
            run_dir: its directory, which exists.
            num_steps: steps of the whole run.
            resumed_step: steps done in the checkpoint that the run continues from; None for a run that begins, of whose
                rows those that an earlier start left without a checkpoint are none.
            results: name of the file of evaluation rows.
            logged_every: there should be rows of all multiples of this up to `resumed_step`; 0 if nobody knows.
            scored_every: and evaluation rows of all multiples of this before it.
            diagnosed_every: and rows of hooks of all multiples of this; None if there are no hooks.
            work: of each step, by which the ETA counts. Default: each has as much.
            stream: of the progress display. Default: standard error.
        """
        self._every, self._num_steps = config.logging.every, num_steps
        done, last = (0, NO_STEP) if resumed_step is None else (resumed_step, resumed_step)
        self._progress = Progress(num_steps, done=done, stream=stream, work=work)
        self._log = run_dir / LOG
        logged = range(logged_every, done + 1, logged_every) if logged_every else ()
        scored = range(scored_every, done, scored_every) if scored_every else ()  # the last may be made again
        self._steps = self._open(run_dir / "metrics.jsonl", last, logged)
        self._evaluations = self._open(run_dir / "eval" / results, last, scored)
        self._diagnostics = None
        if diagnosed_every is not None or is_there(run_dir / DIAGNOSTICS):
            diagnosed = range(diagnosed_every, done + 1, diagnosed_every) if diagnosed_every else ()
            self._diagnostics = self._open(run_dir / DIAGNOSTICS, last, diagnosed)
        self._files = [file for file in (self._steps, self._evaluations, self._diagnostics) if file is not None]
        self._alarms = JsonLines(run_dir / ALARMS)
        self._held_back = False
        mode = wandb_mode(config.logging.wandb, self.message)
        makers: dict[str, Callable[[], Tracker]] = {}
        if mode != "disabled":
            makers["wandb"] = lambda: WandbRun(config, run_dir, mode)
        if config.logging.tensorboard:
            makers["tensorboard"] = lambda: TensorboardRun(run_dir, done)
        self._trackers = Trackers(makers, self.message)

    def __enter__(self) -> "RunMetrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def first_step(self, number: int, how_far: Callable[[], str]) -> AbstractContextManager[None]:
        """While the first step of this start is done inside, show now and then how far it is."""
        return self._progress.first_step(number, how_far)

    def log_step(self, row: StepRow) -> None:
        """Show a step, and keep its row if `logging.every` says so or if it is the last one."""
        row = replace(row, eta_s=self._progress.update(row.step, row.describe()))
        if row.step % self._every and row.step != self._num_steps:
            return
        self._append(self._steps, [row])
        charted = {key: value for key, value in vars(row).items() if key != "step" and not isinstance(value, str)}
        self._trackers.log({f"train/{key}": value for key, value in charted.items()}, row.step)

    def log_evaluation(self, rows: Sequence[EvaluationRow]) -> None:
        """Show and keep evaluation rows, all of one step."""
        self._append(self._evaluations, rows)
        for task, metric in dict.fromkeys((row.task, row.metric) for row in rows):
            chosen = [row for row in rows if (row.task, row.metric) == (task, metric)]
            values = ", ".join(f"{row.value:.4f} at {row.num_loops} loop{'s' * (row.num_loops > 1)}" for row in chosen)
            self.message(f"step {chosen[0].step}: {task} {metric} {values}")
        if rows:
            charted = {f"{row.task}/{row.metric} at {row.num_loops} loops": row.value for row in rows}
            self._trackers.log(charted, rows[0].step)

    def log_result(self, row: "DataclassInstance", step: int, line: str, charted: Mapping[str, float]) -> None:
        """Keep an evaluation row of another schema, show its line, and chart some of its numbers."""
        self._append(self._evaluations, [row])
        self.message(line)
        self._trackers.log(charted, step)

    def log_diagnostics(self, row: Mapping[str, Any]) -> None:
        """Keep and chart what hooks measured (`pretrain/rows/diagnostics.py`)."""
        assert self._diagnostics is not None, "there are hooks"
        self._append(self._diagnostics, [row])
        charted = {name: value for name, value in row.items() if name != "step" and isinstance(value, float)}
        self._trackers.log({f"diagnostics/{name}": value for name, value in charted.items()}, row["step"])

    def log_alarm(self, row: AlarmRow) -> None:
        """Keep an alarm."""
        self._append(self._alarms, [row])

    def go_back(self, step: int) -> None:
        """Remove the rows of later steps, but not the alarms.

        Raises:
            OSError: a file cannot be written.
        """
        for file in self._files:
            file.cut(step)
        self._trackers.go_back(step)

    def message(self, text: str) -> None:
        """Show a line that stays, without tearing the progress bar, and keep it in the run's log."""
        self._progress.message(text)
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")

    def sync(self) -> None:
        """Make all rows so far survive a power cut, as the checkpoint after them will."""
        for file in self._files:
            try:
                file.sync()
            except OSError as error:
                self.message(f"warning: {file.path}: {error.strerror}; a power cut would take its last rows")
        self._trackers.sync()

    def close(self) -> None:
        """Close everything, once."""
        self._progress.close()
        for file in self._files:
            try:
                file.flush()
            except OSError as error:
                self.message(f"warning: {file.path}: {error.strerror}; its last rows are lost")
        self._trackers.finish()

    def _open(self, path: Path, last_step: int, expected: Sequence[int]) -> JsonLines:
        file = JsonLines(path)
        there = file.cut(last_step)
        missing = _spans(expected, there)
        if missing:
            file.problems.append(f"{path}: no row of step {missing}: lost or removed, the run goes on without")
        for problem in file.problems:
            self.message(f"warning: {problem}")
        return file

    def _append(self, file: JsonLines, rows: "Sequence[DataclassInstance | Mapping[str, Any]]") -> None:
        try:
            file.append(rows)
            self._held_back = False
        except OSError as error:
            if not self._held_back:
                self.message(f"warning: {file.path}: {error.strerror}; its rows are held back until there is room")
            self._held_back = True


def _spans(expected: Iterable[int], there: Container[int]) -> str:
    """The steps that are not there, in words, not too many: 1 to 8, 10."""
    spans: list[list[int]] = []
    is_open = False
    for step in expected:
        if step in there:
            is_open = False
        elif is_open:
            spans[-1][1] = step
        else:
            spans.append([step, step])
            is_open = True
    words = [str(first) if first == last else f"{first} to {last}" for first, last in spans[:MOST_SPANS]]
    return ", ".join([*words, *(["..."] if len(spans) > MOST_SPANS else [])])
