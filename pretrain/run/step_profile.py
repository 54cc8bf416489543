"""A trace of some steps by torch.profiler, for chrome://tracing or ui.perfetto.dev: `profile.steps`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.config.profile import ProfileSection

FOLDER = "profile"
"""In the run directory."""


class StepProfile:
    """Traces the steps that a section names, on this rank, as far as this start of the run makes them.

    Args:
        section: which steps.
        run_dir: the run directory.
        rank: this rank; rank 0 alone writes a trace.
        say: shows a line.
    """

    def __init__(self, section: ProfileSection, run_dir: Path, rank: int, say: Callable[[str], None]) -> None:
        self._steps = section.window if rank == 0 else range(0)
        self._run_dir, self._say = run_dir, say
        self._profile: profile | None = None
        self._traced: list[int] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Where step `number` is done."""
        if number in self._steps:
            if self._profile is None:
                on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
                self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu], record_shapes=True)
                self._profile.start()
            self._traced.append(number)
        yield
        if number + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        """Write what was traced, if anything was; a trace that cannot be written ends no run."""
        if self._profile is None:
            return
        self._profile.stop()
        path = self._run_dir / FOLDER / f"steps-{self._traced[0]}-{self._traced[-1]}.json.gz"
        try:
            path.parent.mkdir(exist_ok=True)
            self._profile.export_chrome_trace(str(path))
            self._say(f"trace of steps {self._traced[0]} to {self._traced[-1]}: {path}")
        except (OSError, RuntimeError) as error:
            self._say(f"warning: {path}: the trace was not written: {error}")
        self._profile, self._traced = None, []
