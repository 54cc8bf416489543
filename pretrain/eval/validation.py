"""Validation loss at several loop counts in one pass: the same held-out sequences every time, whatever the layout."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.data.stream.labels import IGNORED
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import Groups
from pretrain.parallel.replica_loader import ReplicaLoader
from pretrain.parallel.stop_vote import StopVote
from pretrain.rows.identity import digest


class Validation:
    """The first `validation.num_sequences` samples of the validation split, in batches for this data-parallel rank.

    Rows without labels fill the last batch, and every batch holds enough micro-batches for the ring. Collective, as one
    rank of a replica reads.

    Raises:
        ValueError: the validation split holds no document.
    """

    def __init__(self, config: RunConfig, layout: Layout, groups: Groups) -> None:
        wanted = config.validation.num_sequences
        rank, ranks, micro_batch = groups.data.rank(), layout.data_parallel, config.train.micro_batch
        per_rank = math.ceil(wanted / ranks)
        data = config.data.model_copy(update={"num_workers": 0})
        with ReplicaLoader(
            data, groups, seed=config.run.seed, seq_len=config.train.seq_len, global_batch=per_rank * ranks,
            split="validation",
        ) as loader:  # fmt: skip
            rows = loader.next_batch()
            self._documents = loader.documents_read()
        empty = torch.tensor([[0], [IGNORED]]).expand(rows.shape[1:])
        rows[rank + ranks * torch.arange(per_rank) >= wanted] = empty
        batch = max(layout.micro_batches, config.parallel.pipeline) * micro_batch
        smallest = config.parallel.pipeline * micro_batch
        whole = per_rank // batch * batch
        rest = per_rank - whole
        padded = whole + (max(smallest, math.ceil(rest / micro_batch) * micro_batch) if rest else 0)
        padding = empty.expand(padded - per_rank, -1, -1)
        self.batches: tuple[Tensor, ...] = torch.cat((rows, padding)).split(batch)
        self.num_sequences = wanted
        tokenizer, seq_len, streams = config.data.tokenizer, config.train.seq_len, config.data.num_streams
        of = [config.run.seed, wanted, seq_len, streams, config.data.validation_fraction, loader.fingerprints]
        self.inputs = f"examples={digest(of)} tokenizer={Tokenizer.load(tokenizer).sha256[:12]}"
        """As of `ResultRow.inputs`."""

    def repeated(self, group: ProcessGroup) -> Counter[str]:
        """How many documents of each folder the sequences of all ranks of a group hold more than once. Collective."""
        parts: list[Any] = [None] * group.size()
        dist.all_gather_object(parts, self._documents, group=group)
        reads = Counter(document for part in parts for document in part)
        return Counter(document.folder for document, times in reads.items() if times > 1)

    def losses(self, engine: Engine, loops: Sequence[int], vote: StopVote) -> list[tuple[float, float | None]] | None:
        """Mean negative log-likelihood per token in nats over all ranks and its standard error, for each loop count;
        None where the ranks voted to stop before the end. Collective.
        """
        found = None
        for rows in self.batches:
            sums = engine.evaluate(rows, loops, vote)
            if vote.reason:
                return None
            found = sums if found is None else found + sums
        assert found is not None, "validation.num_sequences is at least 1"
        return found.means()
