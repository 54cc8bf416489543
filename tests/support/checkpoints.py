"""Small checkpoints, and damage to them."""

from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.store import CheckpointStore, SaveResult


def make_store(directory: Path, **changes: Any) -> CheckpointStore:
    options = {
        "rank": 0,
        "world_size": 1,
        "nonce": "a",
        "keep_last": 2,
        "keep_every": 0,
        "asynchronous": False,
        "timeout_s": 60.0,
    }
    return CheckpointStore(directory=directory, **{**options, **changes})


def save_steps(directory: Path, steps: list[int], **changes: Any) -> list[SaveResult]:
    store = make_store(directory, **changes)
    for step in steps:
        store.save(step, [Piece.whole("x", torch.full((50,), float(step)))], {"step": step})
    store.wait()
    return store.poll()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
