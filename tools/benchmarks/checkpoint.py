"""How fast checkpoints are saved and loaded, and what an asynchronous save costs training.

1. --checkpoint-gib of state. Each figure is compared with a plain transfer of the same bytes, on the same disk, by
   medians over alternating rounds: a save with a write and fsync, a load (including verification) with a read, both
   after dropping the file from the page cache, and the stall with a copy in memory.
2. A model (`small_run.py`, fp32) saves its state while it trains. In units of a step without a save: how long training
   stalls, and how much longer the steps take in total until the checkpoint is on disk. On a CPU the writer and the
   steps share the cores.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from benchmarks.measure import Row, Turns, add_rounds, row, timed
from benchmarks.small_run import LR, SEPARATORS, one_rank, random_rows, small_run

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.store import CheckpointStore, SaveResult
from pretrain.checkpoint.verify import newest_good
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups

_TENSOR_BYTES = 16 << 20
_BLOCK_BYTES = 64 << 20
_STEPS_BEFORE_SAVE = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint-directory", type=Path, default=Path(), help="folder on the disk to measure (default: here)"
    )
    parser.add_argument("--checkpoint-gib", type=float, default=1.0, help="GiB of training state (default: 1)")
    add_rounds(parser, "checkpoint", 5, "rounds")


def run(args: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=args.checkpoint_directory) as folder:
        return [*_measure_store(Path(folder), args), *_measure_training(Path(folder), args.checkpoint_rounds)]


def _measure_store(folder: Path, args: argparse.Namespace) -> list[Row]:
    num_tensors = max(1, round(args.checkpoint_gib * 2**30 / _TENSOR_BYTES))
    state = [torch.randn(_TENSOR_BYTES // 4) for _ in range(num_tensors)]
    pieces = [Piece.whole(f"weights/{number}", tensor) for number, tensor in enumerate(state)]
    gib = num_tensors * _TENSOR_BYTES / 2**30
    times: dict[str, list[float]] = {name: [] for name in ("write", "save", "read", "load", "copy", "stall")}
    plain, directory = folder / "plain", folder / "checkpoints"
    plain.mkdir()
    copy = torch.zeros(num_tensors, _TENSOR_BYTES // 4)
    store = _store(directory)
    _save(store, 0, pieces)  # the first save allocates the staging buffer
    for step in (number + 1 for number in args.checkpoint_rounds.numbers()):
        newest, older = plain / f"{step}", plain / f"{step - 1}"
        times["copy"].append(timed(_copy, state, copy))
        # in alternating order: the second finds the disk still busy with the first
        for kind in ("write", "save") if step % 2 else ("save", "write"):
            if kind == "write":
                times["write"].append(timed(_write, newest, copy))
                # removed after the newest is written, as with checkpoints, so that both find equally many free pages
                older.unlink(missing_ok=True)
                continue
            result = _save(store, step, pieces)
            times["save"].append(result.write_s)
            times["stall"].append(result.stall_s)
        _forget(newest)
        times["read"].append(timed(_read, newest))
        _forget(next(directory.glob("step-*/*.safetensors")))
        times["load"].append(timed(_load, directory, pieces))
    middle = {name: median(values) for name, values in times.items()}
    rate = {name: gib / seconds for name, seconds in middle.items()}
    write, read, copied = rate["write"], rate["read"], middle["copy"]
    figures = (
        ("save", rate["save"], "GiB/s", f">= {0.8 * write:.3g}", f"plain write and fsync {write:.3g} GiB/s"),
        ("verify and load", rate["load"], "GiB/s", f">= {0.4 * read:.3g}", f"plain read {read:.3g} GiB/s"),
        ("stall of a save", middle["stall"], "s", f"<= {1.2 * copied:.3g}", f"copy in memory {copied:.3g} s"),
    )
    return [row(f"checkpoint: {name}", value, unit, target, against) for name, value, unit, target, against in figures]


def _measure_training(folder: Path, rounds: Turns) -> list[Row]:
    config = small_run("fp32")
    rows = random_rows(config)
    stalls, costs, seconds, num_bytes = [], [], [], 0
    with one_rank() as device:
        engine = Engine(config, make_groups(config.parallel, device), SEPARATORS)
        store = _store(folder / "training")
        for number in rounds.numbers(1):
            before = median(timed(engine.train_step, rows, 1, LR) for _ in range(_STEPS_BEFORE_SAVE))
            started = time.perf_counter()
            store.save(number, engine.pieces(), {})
            results, num_steps = [], 0
            while not results:
                engine.train_step(rows, 1, LR)
                results, num_steps = store.poll(), num_steps + 1
            if number:  # the first save allocates the staging buffer
                stalls.append(results[0].stall_s / before)
                costs.append((time.perf_counter() - started) / before - num_steps)
                seconds.append(before)
                num_bytes = results[0].num_bytes
        store.wait()
    against = f"a step of {median(seconds):.3g} s, {num_bytes / 2**30:.2g} GiB of state"
    return [
        row("checkpoint: training stands still", median(stalls), "steps", "", against),
        row("checkpoint: an asynchronous save costs in all", median(costs), "steps", "", against),
    ]


def _store(directory: Path) -> CheckpointStore:
    return CheckpointStore(
        directory=directory, rank=0, world_size=1, nonce="bench", keep_last=1, keep_every=0, asynchronous=True
    )


def _save(store: CheckpointStore, step: int, pieces: list[Piece]) -> SaveResult:
    store.save(step, pieces, {})
    store.wait()
    return store.poll()[0]


def _load(directory: Path, pieces: list[Piece]) -> None:
    reader, problems = newest_good(directory)
    if reader is None:
        raise OSError(f"no good checkpoint: {problems}")
    reader.load(pieces)


def _copy(state: list[torch.Tensor], copy: torch.Tensor) -> None:
    for tensor, place in zip(state, copy, strict=True):
        place.copy_(tensor)


def _write(path: Path, content: torch.Tensor) -> None:
    data = content.view(torch.uint8).flatten().numpy().data
    with path.open("wb", buffering=0) as stream:
        while data:
            data = data[stream.write(data[:_BLOCK_BYTES]) :]
        os.fsync(stream.fileno())


def _read(path: Path) -> None:
    buffer = bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def _forget(path: Path) -> None:
    """Ask the kernel to drop a file from its page cache."""
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
