"""The batches of a data-parallel replica: one of its ranks reads, and hands the rows on.

All ranks of a replica (the tensor- and pipeline-parallel ones) take the same rows. If each read them, a replica of 64
ranks would open, check and tokenise every document 64 times, with as many prefetching processes. So the rank that is
first in both has the `Loader`; it sends the rows to the first rank of every stage, and each of these to the tensor
ranks of its stage, on the host, where inputs are made of them.

An error of reading is raised on all ranks of the replica. Everything here is collective over them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.data import DataSection
from pretrain.data.stream import order
from pretrain.data.stream.cursor import Split
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.stream import DocumentRead
from pretrain.parallel.groups import Groups
from pretrain.parallel.host import hand_on, hand_on_objects

Item = TypeVar("Item")
Result = TypeVar("Result")
CURSORS = "data/cursors"
"""Name of the tensor of a checkpoint."""


class ReplicaLoader:
    """The samples of this rank's replica. A context manager that ends the workers.

    Args:
        data: of the configuration.
        groups: process groups of this rank.
        seed: run.seed.
        seq_len: s, tokens of a sequence.
        global_batch: sequences of a batch over all replicas.
        split: which documents are served.

    Raises:
        ValueError, OSError: those of `Loader`.
    """

    def __init__(
        self, data: DataSection, groups: Groups, *, seed: int, seq_len: int, global_batch: int, split: Split = "train"
    ) -> None:
        self._groups, self._global_batch = groups, global_batch
        self._replica, self._num_replicas = groups.data.rank(), groups.data.size()
        self._shape = global_batch // self._num_replicas, 2, seq_len
        self._loader: Loader | None = None
        """On the rank that reads."""
        self.next_sample = 0
        """Global sample that begins the next batch."""

        def open_loader() -> tuple[str, ...]:
            self._loader = Loader(
                data, seed=seed, seq_len=seq_len, global_batch=global_batch, rank=self._replica,
                num_ranks=self._num_replicas, split=split,
            )  # fmt: skip
            return self._loader.fingerprints

        self.fingerprints: tuple[str, ...] = self._agree(open_loader)
        """As of `Loader`."""

    @property
    def reads(self) -> bool:
        """Whether this rank is the one that reads."""
        return self._groups.pipeline.rank() == self._groups.tensor.rank() == 0

    def next_batch(self) -> Tensor:
        """The replica's rows of the next global batch, int64 [global_batch / replicas, 2, s]: tokens and labels.

        Raises:
            ValueError, OSError: those of `Loader.next_batch`.
        """
        message = torch.zeros(1 + prod(self._shape), dtype=torch.int64)  # whether there is an error, then the rows
        error = None
        if self._loader is not None:
            try:
                message[1:] = torch.from_numpy(self._loader.next_batch()).flatten()
            except (ValueError, OSError) as caught:
                error, message[0] = caught, 1
        self._hand_on(partial(hand_on, message))
        if not self.reads:
            self._groups.phase.work.restart()  # until now it waited for another rank
        if message[0]:
            self._agree(partial(_raise, error))
        self.next_sample += self._global_batch
        return message[1:].view(self._shape)

    def own(self, of_samples: Sequence[Item]) -> Sequence[Item]:
        """Of what there is for each sample of the next global batch, that of this replica's, in their order."""
        return order.owned_items(of_samples, self.next_sample, self._replica, self._num_replicas)

    def state(self) -> Tensor | None:
        """Cursors of all streams after the last batch, as `load_state` takes them, on the ranks that read, rank 0 among
        them. Collective over those."""
        if self._loader is None:
            return None
        cursors = torch.from_numpy(self._loader.state()).to(self._groups.device)
        dist.all_reduce(cursors, group=self._groups.data)
        return cursors

    def load_state(self, reader: CheckpointReader, meta: Mapping[str, Any]) -> None:
        """Go on where a checkpoint stands, given what `state` and `meta` were, on any number of ranks.

        Raises:
            ValueError, OSError: those of `Loader.require_sources` and `Loader.load_state`, or of reading it.
        """

        def load() -> None:
            assert self._loader is not None
            self._loader.require_sources(meta["sources"])
            self._loader.load_state(reader.read_whole(CURSORS).numpy(), meta["next_sample"])

        self._agree(load)
        self.next_sample = meta["next_sample"]

    def documents_read(self) -> list[DocumentRead]:
        """As of `Loader`; nothing on a rank that does not read."""
        return [] if self._loader is None else self._loader.documents_read

    def close(self) -> None:
        """End the workers and close the files."""
        if self._loader is not None:
            self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _agree(self, act: Callable[[], Result]) -> Result:
        """What a call gives on the rank that reads, or its error, on all ranks of the replica."""
        found: list[Any] = [None, None]
        if self.reads:
            try:
                found[0] = act()
            except (ValueError, OSError) as error:
                found[1] = error
        self._hand_on(partial(hand_on_objects, found))
        if found[1] is not None:
            raise found[1]
        return found[0]

    def _hand_on(self, send: Callable[[Sequence[int]], object]) -> None:
        """Send from the rank that reads along the stages, then within each."""
        if self._groups.tensor.rank() == 0:
            send(dist.get_process_group_ranks(self._groups.pipeline))
        send(dist.get_process_group_ranks(self._groups.tensor))


def _raise(error: Exception | None) -> None:
    assert error is not None
    raise error
