"""The loader of a data-parallel rank: its rows of every global batch, in an order that no layout changes, resumable by
a seek.

Global sample g of a run is the next sample of stream g mod S in a source drawn for g (`pretrain/data/stream/order.py`),
made by a walker whose whole state is a cursor of a few integers (`pretrain/data/stream/stream.py`). A rank r of n owns
the samples g with g mod n = r, hence whole streams, because n divides S. So the tokens of sample g do not depend on n,
on the workers, or on where the run was cut and resumed.

The ranks of a replica share one (`pretrain/parallel/replica_loader.py`).

    batch   = loader.next_batch()                 # this rank's rows of the global batch
    states  = sum over ranks of loader.state()    # to be saved together with loader.next_sample and loader.fingerprints
    loader.require_sources(fingerprints)          # the order is only the same over the same documents
    loader.load_state(states, next_sample)        # on any number of ranks

Cost: a batch is read as documents, in the background if there are workers. Resuming reads one document per stream and
source in use, whatever the number of samples before it. Memory: one document per stream and source in use, not growing
with the number of shards.
"""

import os
from collections.abc import Sequence
from typing import Self

import numpy as np

from pretrain.config.data import DataSection
from pretrain.data.stream import order
from pretrain.data.stream.cursor import FIELDS, Split
from pretrain.data.stream.long_documents import cut_fingerprint
from pretrain.data.stream.stream import DocumentRead, StreamReader, StreamSpec
from pretrain.data.stream.worker import Job, Worker
from pretrain.schema.section import require_divides


class Loader:
    """The samples of one data-parallel rank; a context manager that ends its workers."""

    def __init__(
        self,
        data: DataSection,
        *,
        seed: int,
        seq_len: int,
        global_batch: int,
        rank: int = 0,
        num_ranks: int = 1,
        split: Split = "train",
    ) -> None:
        """Open the sources and check them; workers start with the first batch.

        Args:
            seed: run.seed.
            seq_len: tokens per sequence.
            global_batch: sequences per batch over all ranks.
            rank: data-parallel rank, of `num_ranks`.

        Raises:
            ValueError: naming the source, key and value that do not work, an empty split among them.
        """
        require_divides("global batch", global_batch, "data-parallel size", num_ranks)
        require_divides("data.num_streams", data.num_streams, "data-parallel size", num_ranks)
        if not data.sources:
            hint = "name at least one folder of shards, e.g. data.sources=[{path: data/shards}]"
            raise ValueError(f"data.sources is empty: {hint}")
        self._spec = StreamSpec(data=data, split=split, seed=seed, seq_len=seq_len)
        self._rank, self._num_ranks, self._global_batch = rank, num_ranks, global_batch
        self._num_workers = min(data.num_workers, data.num_streams // num_ranks)
        self._states = np.zeros(self._spec.state_shape, dtype=np.int64)
        self._reader: StreamReader | None = None
        self._workers: list[Worker] = []
        self.next_sample = 0
        """Global sample that begins the next batch."""
        reader = StreamReader(self._spec, self._states)
        if rank == 0:
            reader.check_manifests()
        reader.require_documents()
        reader.close()
        self.fingerprints = reader.fingerprints
        """What each source holds, as one hash; to be saved with the state."""

    def next_batch(self) -> np.ndarray:
        """This rank's samples of the next global batch in their order: tokens and the labels after them, int64
        [global_batch / num_ranks, 2, seq_len].

        Raises:
            ValueError: naming the damaged document, or what else is wrong with the data.
            OSError: if the storage or a worker failed.
        """
        end = self.next_sample + self._global_batch
        samples = order.owned_samples(self.next_sample, end, self._rank, self._num_ranks)
        try:
            records, batch = self._receive(samples) if self._num_workers else self._read(samples)
        except BaseException:
            self.close()  # a half-read batch: a later call restarts from the last whole one
            raise
        self._states[records[:, 0], records[:, 1]] = records[:, 2:]  # of a walker's several records the last one stays
        self.next_sample = end
        return batch

    def state(self) -> np.ndarray:
        """Cursors after the last batch handed out, int64 [num_streams, num_sources, len(FIELDS)], zero for streams of
        other ranks: the sum over the ranks is what `load_state` takes."""
        return np.where(self._owned()[:, None, None], self._states, 0)

    def load_state(self, states: np.ndarray, next_sample: int) -> None:
        """Continue where a run stopped, given the sum of the `state` of all its ranks, whatever their number.

        Raises:
            ValueError: if the saved run had another number of streams or sources, or did not count samples and there is
                a budget of tokens.
        """
        if states.shape[2:] == (len(FIELDS) - 1,):  # of a run before samples were counted, the last of the fields
            if any(source.max_tokens is not None for source in self._spec.data.sources):
                raise ValueError(
                    "the saved run did not count what it read of each source: leave out data.sources[].max_tokens, or "
                    "choose another run.name"
                )
            states = np.pad(states, ((0, 0), (0, 0), (0, 1)))
        shapes = states.shape, self._states.shape
        if shapes[0] != shapes[1]:
            saved, now = (f"data.num_streams={shape[0]} and {shape[1]} sources" for shape in shapes)
            raise ValueError(
                f"the saved data state is of a run with {saved}; this one has {now}: they must be the same to resume"
            )
        self.close()
        self._states = states.astype(np.int64)
        self.next_sample = next_sample

    def require_sources(self, fingerprints: Sequence[str]) -> None:
        """Raise a ValueError that names the first source that is not that of a saved run, given its `fingerprints`."""
        for source, saved, now in zip(self._spec.data.sources, fingerprints, self.fingerprints, strict=False):
            if saved == cut_fingerprint(now) or now == cut_fingerprint(saved):
                then = str(saved == cut_fingerprint(now)).lower()
                how = "in pieces" if then == "true" else "whole"
                raise ValueError(
                    f"{source.path}: the run read its long documents {how} so far, which is another order: set "
                    f"data.cut_documents={then} to go on in it, or choose another run.name"
                )
            if saved != now:
                which = f"{source.path or source.task}: its documents are not those that the run was trained on so far"
                raise ValueError(f"{which}: bring the old shards back, or choose another run.name")

    @property
    def epochs(self) -> int:
        """Passes that every owned stream has completed over every source."""
        return int(self._states[self._owned(), :, FIELDS.index("epoch")].min())

    @property
    def documents_read(self) -> list[DocumentRead]:
        """What this process has read of the validation split, in no order; the training split is not kept."""
        return [] if self._reader is None else self._reader.documents_read

    @property
    def damaged(self) -> int:
        """Documents, or pieces of long ones, that the owned streams skipped as damaged since the start of the run."""
        return int(self._states[self._owned(), :, FIELDS.index("damaged")].sum())

    def close(self) -> None:
        """End the workers and close the files, at once; `next_batch` would open them again."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _owned(self) -> np.ndarray:
        return np.arange(len(self._states)) % self._num_ranks == self._rank

    def _read(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._reader is None:
            self._reader = StreamReader(self._spec, self._states)
        return self._reader.read(samples)

    def _receive(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self._workers:
            self._start_workers()
        records = np.empty((len(samples), 2 + len(FIELDS)), dtype=np.int64)
        batch = np.empty((len(samples), 2, self._spec.seq_len), dtype=np.int64)
        owners = order.worker_of(samples, len(self._states), self._num_ranks, self._num_workers)
        for number, worker in enumerate(self._workers):
            rows = np.flatnonzero(owners == number)
            records[rows], batch[rows] = worker.receive(len(rows))
        return records, batch

    def _start_workers(self) -> None:
        for number in range(self._num_workers):
            job = Job(
                spec=self._spec, rank=self._rank, num_ranks=self._num_ranks, worker=number,
                num_workers=self._num_workers, global_batch=self._global_batch, first_sample=self.next_sample,
                parent=os.getpid(),
            )  # fmt: skip
            self._workers.append(Worker(job, self._states))
