"""The checkpoints of a run directory: which one to read, and a run that holds weights alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.names import CHECKPOINTS, require_checkpoint
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.store import CheckpointStore
from pretrain.checkpoint.verify import newest_good, verify


def open_checkpoint(run_dir: Path, step: int | None = None) -> tuple[CheckpointReader, list[str]]:
    """Open a verified checkpoint of a run.

    Args:
        run_dir: directory of the run.
        step: of the checkpoint. Default: the newest good one.

    Returns:
        The checkpoint, and a line for each newer one that is bad.

    Raises:
        ValueError: there is no such run or checkpoint, or it is damaged.
        OSError: a file cannot be read.
    """
    path = require_checkpoint(run_dir, step)
    if step is None:
        reader, problems = newest_good(run_dir / CHECKPOINTS)
        if reader is None:
            raise ValueError("\n".join(problems))
        return reader, problems
    found = verify(path)
    if found:
        raise ValueError(f"checkpoint {path} is bad: {found[0]}")
    return CheckpointReader(path), []


def save_weights(run_dir: Path, weights: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
    """Make step 0 of a run that was not trained here: weights without an optimizer's state.

    Args:
        run_dir: directory of the run.
        weights: fp32 (or fp64) tensors by parameter name.
        meta: as a training run saves it, as far as it goes.

    Raises:
        OSError: the directory cannot be written.
    """
    store = CheckpointStore(
        directory=run_dir / CHECKPOINTS,
        rank=0,
        world_size=1,
        nonce="weights",
        keep_last=1,
        keep_every=0,
        asynchronous=False,
    )
    store.save(0, [Piece.whole(f"weights/{name}", tensor) for name, tensor in weights.items()], meta)
    store.wait()


def require_tokenizer(reader: CheckpointReader, name: str | Path, sha256: str, advice: str = "") -> None:
    """Raise a ValueError unless the tokenizer of this name and hash is that of a checkpoint's run."""
    if reader.meta["tokenizer_sha256"] != sha256:
        raise ValueError(f"{name} is not the tokenizer that {reader.path.parents[1]} was trained with{advice}")
