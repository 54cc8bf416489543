"""One cycle of the soak: start a run, end it by force at a random moment, look at what is left, damage something."""

import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.checkpoint.names import CHECKPOINTS
from tests.soak.damage import damage_checkpoint, damage_rows
from tests.soak.runs import (
    METRICS,
    RUN,
    Kind,
    Layout,
    Reference,
    arguments,
    good_checkpoints,
    lost_checkpoints,
    read_rows,
)  # fmt: skip
from tests.support.ranks import Rank, session_of, start_ranks

LIMIT_S = 240.0
"""A start that takes longer hangs."""
GRACE_S = 30.0
"""How long the others may take to find out that a rank is gone, before they are killed too, as a launcher does it."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_FIRST_LINE = re.compile(r"step (\d+) of \d+: (?:started|resumed)")
_BUG = re.compile(r"Traceback|Exception ignored|Exception in thread|terminate called|Fatal Python error")


@dataclass(kw_only=True)
class Cycle:
    """What happened, for the log."""

    kind: str
    layout: str
    afresh: bool
    """New interpreters, not forks."""
    action: str
    """kill one, kill all, signal one, signal all, none."""
    moment: str
    number: str = ""
    """The signal."""
    happened: bool = False
    """Whether the run still lived at the moment."""
    from_step: int | None = None
    """Where it said that it goes on; None if it did not come so far."""
    rows: int = 0
    """Steps in its file of rows at the end."""
    newest: int = 0
    """Step of its newest good checkpoint at the end."""
    codes: list[int | None] = field(default_factory=list)
    ended_by_launcher: int = 0
    """Ranks that had not found out in time that another was gone."""
    seconds: float = 0.0
    lost_s: float = 0.0
    """Time of the steps that have to be made again."""
    damages: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return asdict(self)


class Life:
    """A run from its first start until it is complete.

    Args:
        root: folder of the run.
        kind: what is trained.
        config: file of the run.
        layouts: one that is the same at every start, or all that are drawn from.
        reference: what it must leave.
        draw: random numbers.
    """

    def __init__(
        self,
        root: Path,
        *,
        kind: Kind,
        config: Path,
        layouts: Mapping[str, Layout],
        reference: Reference,
        draw: random.Random,
    ) -> None:
        self.root, self.run_dir, self.is_complete = root, root / RUN, False
        self._kind, self._config, self._layouts, self._reference, self._draw = kind, config, layouts, reference, draw
        self._start_s = 2.0
        """Time from the start to the first line, the last time it was seen."""
        self._good: dict[int, str] = {}
        self._num_starts = 0

    def cycle(self) -> Cycle:
        """Start the run once."""
        draw, started = self._draw, time.monotonic()
        kind, (name, layout) = self._kind, draw.choice(list(self._layouts.items()))
        actions = ("kill one", "kill all", "signal one", "signal all", "none")
        (action,) = draw.choices(actions, weights=(8, 8, 3, 3, 1))
        done = Cycle(
            kind=kind.name, layout=name, afresh=draw.random() < 0.05, action=action,
            moment=draw.choice(("start", "steps", "save", "commit", "evaluation")),
        )  # fmt: skip
        before = max(self._good, default=0)
        more = ["data.num_workers=1"] if draw.random() < 0.15 and kind.module == "pretrain.train" else []
        self._num_starts += 1
        ranks = start_ranks(
            layout.num_ranks, kind.module, arguments(self._config, self.root, layout, *more),
            self.root / "output" / f"{self._num_starts:03d}", afresh=done.afresh,
        )  # fmt: skip
        if action != "none" and self._wait_for(done.moment, ranks):
            self._act(done, ranks)
        self._wait_for_end(done, ranks)
        done.seconds = round(time.monotonic() - started, 2)
        self._look(done, ranks, before)
        if not done.problems:
            self._damage(done)
        return done

    def _wait_for(self, moment: str, ranks: list[Rank]) -> bool:
        """Wait for a moment; False if the run ended before."""
        started, draw = time.monotonic(), self._draw
        if moment == "start":
            return self._wait_until(ranks, lambda: False, timeout_s=draw.uniform(0, self._start_s))
        if not self._wait_until(ranks, lambda: _FIRST_LINE.search(ranks[0].output) is not None, timeout_s=LIMIT_S):
            return False
        self._start_s = time.monotonic() - started
        changes = self._changes(moment)
        first, wanted = changes(), draw.choice((1, 1, 2, 3) if moment != "steps" else range(1, self._kind.num_steps))
        if not self._wait_until(ranks, lambda: changes() - first >= wanted, timeout_s=LIMIT_S):
            return False
        return self._wait_until(ranks, lambda: False, timeout_s=draw.choice((0.0, draw.uniform(0, 0.03))))

    def _changes(self, moment: str) -> Callable[[], int]:
        """A number that grows with what a moment is about."""
        if moment in ("steps", "evaluation"):
            path = self.run_dir / {"steps": METRICS, "evaluation": self._kind.results}[moment]
            return lambda: path.read_bytes().count(b"\n") if path.exists() else 0
        seen: set[str] = set()

        def number() -> int:
            for path in _listed(self.run_dir / CHECKPOINTS):
                if (".tmp-" in path.name) == (moment == "save"):
                    seen.add(path.name)
            return len(seen)

        return number

    def _wait_until(self, ranks: list[Rank], is_so: Callable[[], bool], *, timeout_s: float) -> bool:
        """Whether all ranks still live when it is so, or after the time."""
        deadline = time.monotonic() + timeout_s
        while all(rank.code is None for rank in ranks):
            if is_so() or time.monotonic() > deadline:
                return True
            time.sleep(0.001)
        return False

    def _act(self, done: Cycle, ranks: list[Rank]) -> None:
        """Kill or signal. Before a kill everything is held, to see which checkpoints are whole at that moment."""
        chosen = [self._draw.choice(ranks)] if done.action.endswith("one") else ranks
        done.happened = True
        if done.action.startswith("signal"):
            number = self._draw.choice(STOP_SIGNALS)
            done.number = number.name
            for rank in chosen:
                rank.send(number)
            return
        for rank in ranks:
            rank.send(signal.SIGSTOP)
        self._compare_checkpoints(done)
        for rank in chosen:
            rank.send(signal.SIGKILL)
        for rank in ranks:
            if rank not in chosen:
                rank.send(signal.SIGCONT)

    def _wait_for_end(self, done: Cycle, ranks: list[Rank]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while any(rank.code is None for rank in ranks):
            if any(rank.code not in (None, 0) for rank in ranks):
                deadline = min(deadline, time.monotonic() + GRACE_S)
            if time.monotonic() > deadline:
                late = [number for number, rank in enumerate(ranks) if rank.code is None]
                if deadline - time.monotonic() > GRACE_S or not any(rank.code for rank in ranks):
                    done.problems.append(f"ranks {late} hang")
                done.ended_by_launcher = len(late)
                for number in late:
                    ranks[number].send(signal.SIGKILL)
                    ranks[number].wait(10)
            time.sleep(0.005)
        done.codes = [rank.code for rank in ranks]

    def _compare_checkpoints(self, done: Cycle) -> None:
        good = good_checkpoints(self.run_dir)
        done.problems += lost_checkpoints(self._good, good, self._kind.keep_every)
        self._good = good

    def _look(self, done: Cycle, ranks: list[Rank], before: int) -> None:
        """Compare how the start went, from the good checkpoint of step `before`, and what it left."""
        done.problems += self._ending_problems(done, ranks)
        first_line = _FIRST_LINE.search(ranks[0].output)
        self._compare_checkpoints(done)
        done.from_step = int(first_line[1]) if first_line else None
        done.newest = max(self._good, default=0)
        state = self.run_dir / "state"
        self.is_complete = state.exists() and state.read_text() == "complete\n" and not any(done.codes)
        done.problems += self._reference.problems(self.run_dir, done.newest, is_complete=self.is_complete)
        rows, _ = read_rows(self.run_dir / METRICS)
        done.rows = len(rows)
        done.lost_s = round(sum(row["step_time_s"] for row in rows if row["step"] > done.newest), 3)
        if done.from_step is not None and done.from_step != before:
            done.problems.append(f"went on from step {done.from_step}, the newest good checkpoint was of step {before}")
        for rank in ranks:
            if session_of(rank.pid):
                time.sleep(2)
                done.problems += [f"processes {left} are left" for left in [session_of(rank.pid)] if left]

    def _ending_problems(self, done: Cycle, ranks: list[Rank]) -> Iterator[str]:
        """What is wrong with exit codes and with what the ranks said."""
        is_early = _FIRST_LINE.search(ranks[0].output) is None
        by_force = (-signal.SIGKILL,) if done.action.startswith("kill") or done.ended_by_launcher else ()
        if is_early and done.number:  # before a run listens
            by_force = (*by_force, -signal.Signals[done.number], 130)
        is_broken = any(code in by_force for code in done.codes)
        for number, (rank, code) in enumerate(zip(ranks, done.codes, strict=True)):
            where = f"rank {number} of {len(ranks)}, exit code {code}"
            if code not in (0, *by_force, *((1,) if is_broken else ())):
                yield f"{where}: {rank.output}"
            elif _BUG.search(rank.output):
                yield f"{where}, a traceback: {rank.output}"
            elif code and sum(line.startswith("error: ") for line in rank.output.splitlines()) > 1:
                yield f"{where}, more than a line: {rank.output}"

    def _damage(self, done: Cycle) -> None:
        draw = self._draw
        if len(self._good) > 1 and draw.random() < 0.4:
            done.damages.append(damage_checkpoint(self.run_dir, max(self._good), draw))
            good = good_checkpoints(self.run_dir)
            if good.keys() < self._good.keys():
                self._good, self.is_complete = good, False
        if draw.random() < 0.4:
            step = max(self._good, default=0)
            # pretraining makes an evaluation of the resumed step again
            repeated = {METRICS: step + 1, self._kind.results: step + (self._kind.module != "pretrain.train")}
            done.damages += filter(None, [damage_rows(self.run_dir, repeated, draw)])
            self.is_complete = False

    def keep(self, folder: Path) -> None:
        """Keep all of the run, where something is wrong with it."""
        shutil.copytree(self.root, folder)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
