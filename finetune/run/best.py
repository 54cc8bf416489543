"""The best checkpoint of a fine-tuned run, which is itself a run directory; no torch."""

from pathlib import Path

from pretrain.checkpoint.names import CHECKPOINTS
from pretrain.storage import is_there

BEST = "best"
"""Folder of the best checkpoint in a run directory."""


def answering_run(run_dir: Path, step: int | None = None) -> Path:
    """The run directory whose checkpoint answers: `<run>/best` if there is one and no step is named."""
    best = run_dir / BEST
    return best if step is None and is_there(best / CHECKPOINTS) else run_dir
