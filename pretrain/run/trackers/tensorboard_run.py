"""TensorBoard: event files in `<run>/tensorboard`, which `tensorboard --logdir runs` shows."""

from collections.abc import Mapping
from pathlib import Path

FLUSH_S = 30
"""How often what was logged is written; before a checkpoint too."""


class TensorboardRun:
    """The curves of a run directory.

    Args:
        run_dir: of the run.
        resumed_step: what an earlier start charted of later steps is charted again, and hidden.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path, resumed_step: int) -> None:
        self._folder = str(run_dir / "tensorboard")
        self._open(resumed_step)

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=step + 1, flush_secs=FLUSH_S)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, step)

    def go_back(self, step: int) -> None:
        self._writer.close()
        self._open(step)

    def sync(self) -> None:
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        pass
