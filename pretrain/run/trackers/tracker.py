"""Where a run's numbers are charted beside its own files. A tracker may fail at any time, which is said once."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Protocol

from pretrain.config.logging import LoggingSection
from pretrain.config.read import Dumpable
from pretrain.config.run import RunSection


class LoggedConfig(Dumpable, Protocol):
    """What logging needs of a configuration, of pretraining or of fine-tuning."""

    @property
    def run(self) -> RunSection: ...

    @property
    def logging(self) -> LoggingSection: ...


class Tracker(Protocol):
    """One service or file format. Any call may raise whatever it likes."""

    name: str

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Chart numbers of one step; None is one that is not known."""
        ...

    def go_back(self, step: int) -> None:
        """What was charted of later steps will be charted again."""
        ...

    def sync(self) -> None:
        """Put what there is on the disk."""
        ...

    def finish(self) -> None: ...

    def abandon(self) -> None:
        """After a failure: leave nothing that would fail again when the process ends."""
        ...


class Trackers:
    """The trackers of a run. What one of them raises costs that tracker and a line, never the run.

    Args:
        makers: what makes each, by its name.
        say: shows a line.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]], say: Callable[[str], None]) -> None:
        self._say, self._trackers = say, list[Tracker]()
        for name, make in makers.items():
            try:
                self._trackers.append(make())
            except Exception as error:  # foreign code, never worth the run
                self._say(_lost(name, "did not start", error))

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        self._each("stopped", lambda tracker: tracker.log(values, step))

    def go_back(self, step: int) -> None:
        self._each("stopped", lambda tracker: tracker.go_back(step))

    def sync(self) -> None:
        self._each("stopped", lambda tracker: tracker.sync())

    def finish(self) -> None:
        self._each("did not finish", lambda tracker: tracker.finish())

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                self._say(_lost(tracker.name, what, error))
                tracker.abandon()


def require_tracker_packages(logging: LoggingSection) -> None:
    """Before a run begins.

    Raises:
        ImportError: logging.tensorboard is asked for and its package is not installed.
    """
    if logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ImportError(name="tensorboard")


def _lost(name: str, what: str, error: Exception) -> str:
    reason = str(error).splitlines() or [type(error).__name__]
    return f"warning: {name} {what} ({reason[0]}); the run continues without it, metrics.jsonl has everything"
