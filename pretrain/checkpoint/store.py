"""Save checkpoints during training: the step waits for one copy, a background thread does the rest.

`save` copies this rank's pieces into host memory and returns; a thread then writes, hashes and flushes them, meets the
other ranks (`pretrain/checkpoint/commit.py`) and removes what retention does not keep. At most one save is in flight:
the next one waits for it, and that wait is measured. A save that fails (a full disk, a rank that died) never raises in
the training loop: it leaves nothing behind, the previous checkpoint stands, `poll` hands the training loop one line to
log, and `wait` at the end of training raises it.

At the start of a run, on all ranks: make the store, then call `newest_good`; the store of rank 0 settles what an
earlier run left over.
"""

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoint.commit import SaveAttempt, apply_retention, clean_leftovers, settle_replacements
from pretrain.checkpoint.format import Piece, describe
from pretrain.checkpoint.writer import Staged, StagingBuffer

_WAIT_S = 0.5
"""How often a wait for a save looks at the other ranks."""
_NONCE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """What became of one save, on this rank."""

    step: int
    is_durable: bool
    """The whole checkpoint, all ranks' files, will survive a power cut."""
    problem: str | None = None
    """Why it is not durable, or what went wrong after it was; one line."""
    num_bytes: int = 0
    """Size of this rank's file."""
    wait_s: float = 0.0
    """How long the training loop waited for the save before this one."""
    stage_s: float = 0.0
    """How long it then waited for the copy."""
    write_s: float = 0.0
    """From the end of the copy until the checkpoint was durable, in the background."""

    @property
    def stall_s(self) -> float:
        """How long training stood still."""
        return self.wait_s + self.stage_s

    @property
    def gib_per_s(self) -> float:
        """Rate of writing this rank's file, all ranks' commit included."""
        return self.num_bytes / 2**30 / max(self.write_s, 1e-9)

    @property
    def message(self) -> str:
        """One line for the log."""
        if not self.is_durable:
            return f"checkpoint of step {self.step} was not saved: {self.problem}; earlier checkpoints are untouched"
        size = self.num_bytes / 2**30
        line = (
            f"saved checkpoint of step {self.step}: {size:.3g} GiB in {self.write_s:.3g} s ({self.gib_per_s:.3g} GiB/s)"
        )
        line += f", training stalled {self.stall_s:.3g} s"
        return line if self.problem is None else f"{line}; {self.problem}"


def open_store(
    directory: Path, *, keep_last: int, keep_every: int, asynchronous: bool, on_wait: Callable[[], None] = lambda: None
) -> "CheckpointStore":
    """The store of a folder on every rank of the world, rank 0 first: it cleans up after an earlier run. Collective.

    Args:
        on_wait: called now and then while the training loop waits for a save, all ranks being there.
        The others: as of `CheckpointStore`.

    Raises:
        OSError: the directory cannot be cleaned.
    """

    def agree(is_done: bool) -> bool:
        found = _all_agree(is_done)
        on_wait()
        return found

    nonce = [secrets.token_hex(6)]
    dist.broadcast_object_list(nonce, src=0, device=torch.device("cpu"))
    store = None
    for turn in (True, False):
        if turn == (dist.get_rank() == 0):
            store = CheckpointStore(
                directory=directory, rank=dist.get_rank(), world_size=dist.get_world_size(), nonce=nonce[0],
                keep_last=keep_last, keep_every=keep_every, asynchronous=asynchronous, agree=agree,
            )  # fmt: skip
        dist.barrier()
    assert store is not None
    return store


def _all_agree(is_done: bool) -> bool:
    """Whether it is so on all ranks. Collective, and so a wait that the end of another rank ends, with an error."""
    flag = torch.tensor(int(is_done))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


class CheckpointStore:
    """The checkpoints of a run, as one rank writes them. All ranks make the same calls.

    Args:
        directory: folder of checkpoints, seen by all ranks; the first save makes it.
        rank: this rank.
        world_size: ranks that save.
        nonce: letters, digits, - and _; the same on all ranks and new each time the job starts.
        keep_last: newest checkpoints kept.
        keep_every: every checkpoint at a multiple of this step count is kept; 0 = none.
        asynchronous: write in the background; else `save` returns when the checkpoint is durable.
        timeout_s: how long ranks wait for each other after they have written their own file.
        agree: whether something is so on all ranks; asked again and again while the training loop waits for a save.

    Raises:
        OSError: the directory cannot be cleaned.
    """

    def __init__(
        self,
        *,
        directory: Path | str,
        rank: int,
        world_size: int,
        nonce: str,
        keep_last: int,
        keep_every: int,
        asynchronous: bool,
        timeout_s: float = 1800.0,
        agree: Callable[[bool], bool] = bool,
    ) -> None:
        assert 0 <= rank < world_size and keep_last > 0 and keep_every >= 0
        assert _NONCE.fullmatch(nonce), f"nonce {nonce!r} is not a plain word"
        self._directory = Path(directory)
        self._rank, self._world_size, self._nonce = rank, world_size, nonce
        self._keep_last, self._keep_every = keep_last, keep_every
        self._asynchronous, self._timeout_s = asynchronous, timeout_s
        self._agree = agree
        self._num_saves = 0
        self._buffer = StagingBuffer()
        self._thread: threading.Thread | None = None
        self._results: SimpleQueue[SaveResult] = SimpleQueue()
        self._latest: SaveResult | None = None
        if rank == 0:
            clean_leftovers(self._directory, nonce=nonce, num_ended=0)
            settle_replacements(self._directory)

    def save(self, step: int, pieces: Sequence[Piece], meta: dict[str, Any]) -> None:
        """Save a checkpoint. Every rank calls this, each with its own pieces.

        Args:
            step: the step that the state is of. A checkpoint of the same step is replaced.
            pieces: this rank's pieces; they may change as soon as this returns.
            meta: small state as JSON values; rank 0's is kept. Tuples come back as lists.

        Raises:
            TypeError: `meta` is not JSON.
            ValueError: two pieces hold the same elements.
        """
        meta = json.loads(json.dumps(meta))  # a snapshot, as a reader will see it
        started = time.perf_counter()
        self._join()
        waited = time.perf_counter()
        self._num_saves += 1
        attempt = SaveAttempt(
            directory=self._directory,
            step=step,
            nonce=self._nonce,
            attempt=self._num_saves,
            rank=self._rank,
            world_size=self._world_size,
            timeout_s=self._timeout_s,
        )
        try:
            staged = self._buffer.fill(pieces)
        except MemoryError as error:
            problem = attempt.give_up(describe(error))
            self._report(SaveResult(step=step, is_durable=False, problem=problem, wait_s=waited - started))
        else:
            arguments = (attempt, staged, meta, waited - started, time.perf_counter() - waited)
            # A daemon: a run that is stopped hard does not hang on its last save. Killing it is safe at any point.
            self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
            self._thread.start()
        if not self._asynchronous:
            self._join()

    def poll(self) -> list[SaveResult]:
        """The saves that have ended since the last call, failed ones included; does not wait."""
        results: list[SaveResult] = []
        while True:
            try:
                results.append(self._results.get_nowait())
            except Empty:
                return results

    def wait(self) -> None:
        """Return when the latest save is durable on all ranks.

        Raises:
            OSError: it failed; one line.
        """
        self._join()
        if self._latest is not None and not self._latest.is_durable:
            raise OSError(self._latest.message)

    def settle(self, timeout_s: float) -> None:
        """After an error on this rank: let the save in flight become durable, if it can without the training loops."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _join(self) -> None:
        """Wait until the latest save has ended on all ranks."""
        while True:
            if self._thread is not None:
                self._thread.join(timeout=_WAIT_S)
            if self._agree(self._thread is None or not self._thread.is_alive()):
                self._thread = None
                return

    def _write(self, attempt: SaveAttempt, staged: Staged, meta: dict[str, Any], wait_s: float, stage_s: float) -> None:
        started = time.perf_counter()
        is_durable, problem = True, None
        try:
            attempt.run(staged, meta)
        except OSError as error:
            is_durable, problem = False, describe(error)
        write_s = time.perf_counter() - started
        if is_durable and self._rank == 0:
            problem = self._tidy(attempt)
        self._report(
            SaveResult(
                step=attempt.step,
                is_durable=is_durable,
                problem=problem,
                num_bytes=staged.num_bytes,
                wait_s=wait_s,
                stage_s=stage_s,
                write_s=write_s,
            )
        )

    def _report(self, result: SaveResult) -> None:
        self._latest = result
        self._results.put(result)

    def _tidy(self, attempt: SaveAttempt) -> str | None:
        """Retention and leftovers of saves up to this one, which no rank works on any more."""
        try:
            settle_replacements(self._directory)
            clean_leftovers(self._directory, nonce=self._nonce, num_ended=attempt.attempt)
            apply_retention(self._directory, step=attempt.step, keep_last=self._keep_last, keep_every=self._keep_every)
        except OSError as error:
            return f"old checkpoints could not be removed: {describe(error)}"
        return None
