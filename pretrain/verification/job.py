"""What is verified: the user's job, its miniature, and where there is room to work."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.plan.text import plural
from pretrain.verification.miniature import Degrees, Miniature, make_miniature

LEAST_MAX_RANKS = 4
"""Processes that even a small machine runs together."""


class Tick(NamedTuple):
    """A row of the table."""

    name: str
    holds: bool | None
    """None: not checked, and the text says why."""
    text: str
    """What was found; of a row that does not hold, the first difference."""

    @property
    def mark(self) -> str:
        return {True: "✓", False: "✗", None: "–"}[self.holds]


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job to verify."""

    config: RunConfig
    """The user's."""
    layout: Layout
    """How it lies on the ranks of the job."""
    is_elsewhere: bool
    """It will run on other machines than this one."""
    miniature: Miniature
    folder: Path
    """For the miniature's data, runs and logs."""
    max_ranks: int
    """Processes that this machine runs together."""

    @property
    def loops(self) -> tuple[int, ...]:
        """Loop counts that are scored: those of the validation, the default and, where there is a choice, 1."""
        model = self.config.model
        more = (1,) if model.num_blocks == 1 else ()
        return tuple(sorted({*self.config.validation_loops, model.num_loops, *more}))

    @property
    def layouts(self) -> list[Degrees]:
        """The layouts of the miniature that this machine can run, smallest first, without that of one rank."""
        return self.miniature.layouts(self.max_ranks)[0]

    @property
    def richest(self) -> Degrees:
        """The largest layout that this machine can run."""
        return self.layouts[-1] if self.layouts else Degrees()

    def logs(self, name: str) -> Path:
        return self.folder / "logs" / name.replace(" × ", "-").replace(" ", "")

    def describe(self) -> str:
        """What is verified, in a line."""
        model, train = self.miniature.config.model, self.miniature.config.train
        sizes = f"width {self.config.model.hidden_size} -> {model.hidden_size}"
        length = f"sequences of {self.config.train.seq_len} -> {train.seq_len}"
        ranks = plural(self.layout.world_size, "rank")
        return f"{ranks}, in miniature: {sizes}, {length}, depth {model.effective_depth()}"


def make_job(config: RunConfig, layout: Layout, folder: Path, *, is_elsewhere: bool) -> PlannedJob:
    """Prepare to verify a configuration on its layout; the miniature's data is written into `folder`.

    Raises:
        ValueError: a task's tokenizer cannot be read.
        OSError: the folder cannot be written.
    """
    return PlannedJob(
        config=config, layout=layout, is_elsewhere=is_elsewhere, folder=folder,
        miniature=make_miniature(config, layout, folder), max_ranks=max(LEAST_MAX_RANKS, os.cpu_count() or 1),
    )  # fmt: skip
