"""Prefetching: processes that prepare a rank's samples ahead of the trainer.

A worker is a plain child process (`python -m pretrain.data.stream.worker`) that never saw the trainer's memory, threads
or device, and does not import torch. It owns a part of the rank's streams.

1. The parent writes one JSON line (the share) and the raw cursors of all streams to the worker's standard input.
2. The worker prepares its samples of one global batch after the other; a thread sends them, so `prefetch_batches` of
   them wait ready.
3. A message is an int64 header and, for n >= 0 rows, records int64 [n, 2 + len(FIELDS)] and tokens and labels int64
   [n, 2, seq_len]; a header -k announces an error of k bytes instead, the last thing a worker says: JSON of the kind,
   [text] of a ValueError or [errno, reason, file] of an OSError, so that bad data stay bad data and a failed storage a
   failed one.

The cursors travel with the samples, so the parent knows the state after what was handed out, however far the workers
are ahead. Nothing is lost by killing a worker, so that is how it ends: by the parent's SIGKILL, by a broken pipe, or
within a second of the parent's death. Signals meant for the trainer (Ctrl-C, a scheduler's SIGTERM) are ignored: the
trainer decides when its data ends.
"""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import BinaryIO

import numpy as np

from pretrain.data.stream import order
from pretrain.data.stream.stream import FIELDS, StreamReader, StreamSpec
from pretrain.schema.section import Section

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PARENT_CHECK_S = 1.0


class Job(Section):
    """What a worker prepares: the samples of every `num_workers`-th stream of a rank, batch after batch."""

    spec: StreamSpec
    rank: int
    num_ranks: int
    worker: int
    num_workers: int
    global_batch: int
    """Samples per batch over all ranks."""
    first_sample: int
    """Global sample that begins the first batch."""
    parent: int
    """Process whose death ends the worker."""

    def samples(self, first: int) -> np.ndarray:
        """Its samples of the global batch that begins with `first`, int64, ascending."""
        owned = order.owned_samples(first, first + self.global_batch, self.rank, self.num_ranks)
        workers = order.worker_of(owned, self.spec.data.num_streams, self.num_ranks, self.num_workers)
        return owned[workers == self.worker]


class Worker:
    """The parent's end of a worker."""

    def __init__(self, job: Job, states: np.ndarray) -> None:
        """Start the process. Args: job: its share; states: cursors of all streams, int64 [*spec.state_shape]."""
        self.job = job
        # One thread of linear algebra, or every worker of every rank would start one per core to do nothing with.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pretrain.data.stream.worker"]
        # Slurm signals all processes of a step; one that is still starting has no handlers, but has its parent's mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.stdin is not None and isinstance(self._process.stdout, io.BufferedReader)
        self._output = self._process.stdout
        try:
            with self._process.stdin as file:
                file.write(job.model_dump_json().encode() + b"\n" + states.tobytes())
        except BrokenPipeError:
            pass  # It died at once; `receive` says how.

    def receive(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The worker's part of the next batch, `num_rows` samples, as `StreamReader.read` returns it.

        Raises:
            ValueError, OSError: the worker's own.
            ChildProcessError: an OSError, if the worker died without one.
        """
        header = self._read_exactly(np.empty(1, dtype=np.int64))[0]
        if header < 0:
            parts = json.loads(self._read_exactly(np.empty(-header, dtype=np.uint8)).tobytes())
            raise ValueError(*parts) if len(parts) == 1 else OSError(*parts)
        assert header == num_rows, f"worker {self.job.worker} sent {header} samples for {num_rows}"
        records = self._read_exactly(np.empty((num_rows, 2 + len(FIELDS)), dtype=np.int64))
        return records, self._read_exactly(np.empty((num_rows, 2, self.job.spec.seq_len), dtype=np.int64))

    def close(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _read_exactly(self, array: np.ndarray) -> np.ndarray:
        if array.nbytes and self._output.readinto(array.data.cast("B")) != array.nbytes:
            status = self._process.wait()
            how = f"with exit status {status}"
            if status < 0:
                how = f"by signal {signal.Signals(-status).name} (out of memory?)"
            hint = "data.num_workers=0 reads in the training process instead"
            raise ChildProcessError(f"a data worker ended {how}; {hint}")
        return array


def main() -> None:
    """Run a worker: job and cursors on standard input, samples on standard output."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not end up between the samples
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    states = np.frombuffer(sys.stdin.buffer.read(), dtype=np.int64).reshape(job.spec.state_shape)
    threading.Thread(target=_end_with_parent, args=(job.parent,), daemon=True).start()
    messages: queue.Queue[list[bytes] | None] = queue.Queue(job.spec.data.prefetch_batches)
    sender = threading.Thread(target=_send, args=(messages, pipe))
    sender.start()
    try:
        _prepare(job, states, messages)
    except (ValueError, OSError) as error:
        is_storage = isinstance(error, OSError)
        parts = [error.errno or 0, error.strerror or str(error), error.filename] if is_storage else [str(error)]
        text = json.dumps(parts).encode()
        messages.put([np.int64(-len(text)).tobytes(), text])
    finally:
        messages.put(None)


def _prepare(job: Job, states: np.ndarray, messages: "queue.Queue[list[bytes] | None]") -> None:
    """Put batch after batch into `messages`; never returns."""
    reader = StreamReader(job.spec, states)
    first = job.first_sample
    while True:
        records, batch = reader.read(job.samples(first))
        messages.put([np.int64(len(records)).tobytes(), records.tobytes(), batch.tobytes()])
        first += job.global_batch


def _send(messages: "queue.Queue[list[bytes] | None]", pipe: BinaryIO) -> None:
    """Send messages until None comes; end the process where nobody reads them any more."""
    try:
        while (message := messages.get()) is not None:
            pipe.writelines(message)
            pipe.flush()
    except BrokenPipeError:
        os._exit(0)


def _end_with_parent(parent: int) -> None:
    """End the process once the parent is gone: its pipe may be held open by a process that it forked."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(0)


if __name__ == "__main__":
    main()
