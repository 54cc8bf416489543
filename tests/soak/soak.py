"""The soak: one run after the other, each interrupted until it is complete, with a log and a summary."""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tests.soak.cycle import Cycle, Life
from tests.soak.runs import KINDS, Reference, run_uninterrupted, write_config

MOST_STARTS = 60
"""Of one run: after so many it should be complete."""


class Soak:
    """Runs below a folder, one after the other, and what happened to them.

    Args:
        folder: for the runs, `soak.jsonl` (a line a cycle), and what is kept of a run where something was wrong.
        seed: of all that is random.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self._draw = folder, random.Random(seed)
        self.cycles: list[Cycle] = []
        self.num_complete = 0
        """Runs that came to their end as if nothing had happened."""

    def run(self, *, deadline: float, least_cycles: int = 0) -> None:
        """Go on until a time of `time.monotonic`, and for some cycles at least."""
        for number, life in enumerate(self._lives()):
            for _ in range(MOST_STARTS):
                if time.monotonic() > deadline and len(self.cycles) >= least_cycles:
                    return
                cycle = life.cycle()
                self.cycles.append(cycle)
                with (self.folder / "soak.jsonl").open("a") as log:
                    log.write(json.dumps({"cycle": len(self.cycles), "run": number, **cycle.describe()}) + "\n")
                if cycle.problems:
                    life.keep(self.folder / f"kept-{number:03d}")
                if cycle.problems or life.is_complete:
                    break
            else:
                self.cycles[-1].problems.append(f"run {number} was not complete after {MOST_STARTS} starts")
            self.num_complete += life.is_complete

    def _lives(self) -> Iterator[Life]:
        """Runs, half of them with the same layout at every start."""
        draw, corpus = self._draw, self.folder / "corpus"
        corpus.mkdir(parents=True)
        for number in count():
            kind = draw.choice(KINDS)
            config, same = write_config(corpus, kind), draw.choice(list(kind.layouts))
            layouts = kind.layouts if kind.may_change and draw.random() < 0.5 else {same: kind.layouts[same]}
            name = next(iter(layouts))
            folder = self.folder / f"reference of {kind.name} on {name}"
            run_dir = run_uninterrupted(kind, config, folder, layouts[name])
            reference = Reference.of(run_dir, kind, is_exact=len(layouts) == 1)
            root = self.folder / f"run-{number:03d}"
            yield Life(root, kind=kind, config=config, layouts=layouts, reference=reference, draw=draw)

    def summary(self) -> dict[str, Any]:
        """Numbers of all cycles; kills and signals by layout."""
        kills = [cycle for cycle in self.cycles if cycle.happened and cycle.action.startswith("kill")]
        signals = [cycle for cycle in self.cycles if cycle.happened and cycle.number]
        damages = Counter(damage.split()[0] for cycle in self.cycles for damage in cycle.damages)
        return {
            "cycles": len(self.cycles),
            "runs complete": self.num_complete,
            "kills": len(kills),
            "kills by layout": dict(Counter(f"{cycle.action} of {cycle.layout}" for cycle in kills)),
            "kills by moment": dict(Counter(cycle.moment for cycle in kills)),
            "signals": len(signals),
            "signals by layout": dict(Counter(f"{cycle.number} to {cycle.layout}" for cycle in signals)),
            "damages": sum(damages.values()),
            "damages by kind": dict(damages),
            "ranks ended by the launcher": sum(cycle.ended_by_launcher for cycle in self.cycles),
            "seconds": round(sum(cycle.seconds for cycle in self.cycles)),
            "seconds of steps made again": round(sum(cycle.lost_s for cycle in self.cycles), 1),
            "problems": sum(len(cycle.problems) for cycle in self.cycles),
        }
