"""What one rank does with a checkpoint of many, as a command, so that its calls to the storage can be counted: the
files of all ranks are written by one process, as each rank would write its own.

    python -m tests.faults.many_ranks write|commit|keep|resume|remove FOLDER RANKS
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from pretrain.checkpoint.commit import SaveAttempt, apply_retention
from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.names import rank_name
from pretrain.checkpoint.verify import newest_good
from pretrain.checkpoint.writer import StagingBuffer, publish, write_tensors

STEPS = ("write", "commit", "keep", "resume", "remove")
NUMEL = 4
"""Of a rank's piece."""


def main(argv: Sequence[str]) -> int:
    what, folder, ranks = argv[0], Path(argv[1]), int(argv[2])
    match what:
        case "write":  # the parts of all ranks but one
            for rank in range(1, ranks):
                save = attempt(folder, 1, rank, ranks)
                save.folder.mkdir(parents=True, exist_ok=True)
                path = save.folder / rank_name(rank)
                publish(path.with_suffix(".json"), write_tensors(path, StagingBuffer().fill([piece(rank, ranks)])))
        case "commit":
            attempt(folder, 1, 0, ranks).run(StagingBuffer().fill([piece(0, ranks)]), {})
        case "keep":
            apply_retention(folder, step=1, keep_last=1, keep_every=0)
        case "resume":
            reader, problems = newest_good(folder, world_size=ranks)
            assert reader is not None and not problems
            reader.load([piece(0, ranks)])
        case _:
            attempt(folder, 2, 0, 1).run(StagingBuffer().fill([piece(0, 1)]), {})
            apply_retention(folder, step=2, keep_last=1, keep_every=0)
    return 0


def attempt(folder: Path, step: int, rank: int, ranks: int) -> SaveAttempt:
    return SaveAttempt(
        directory=folder, step=step, nonce="many", attempt=step, rank=rank, world_size=ranks, timeout_s=60.0
    )


def piece(rank: int, ranks: int) -> Piece:
    return Piece(name="weights/one", tensor=torch.zeros(NUMEL), shape=(NUMEL * ranks,), start=NUMEL * rank)
