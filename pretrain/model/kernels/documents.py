"""Where documents lie in a batch of sequences: attention stays within each.

Made once for a batch, on the host, and used by every layer in every loop. What attention then costs is the sum of the
squares of the documents' lengths, not the square of the sequence's: on a CPU by blocks of query rows that look at keys
of their own documents alone (`blocked_attention.py`), on a GPU by attention of variable length.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Block = tuple[int, int, int, int, bool]
"""Query rows of one sequence: its number, the first key that they see, the first row, the end of the rows, and whether
they are of several documents, whole ones."""


BLOCK_ROWS = 128
"""R: query rows of a block. Smaller skips more of the masked half, larger makes better matrix products."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The documents of b sequences of s tokens."""

    starts: Tensor
    """int64 [b, s]: of each token, the place in its sequence where its document begins."""
    bounds: Tensor
    """int32 [documents + 1], on the host: where each begins in the flattened batch, then its end."""
    places: Tensor
    """What attention goes by: on a CPU int64 [blocks, 5], all rows as `Block`s; on a GPU `bounds`, there."""

    @classmethod
    def of(cls, starts: Tensor) -> "Documents":
        """From the beginnings of the tokens' documents, int64 [b, s]."""
        host = starts.cpu()
        first = (host == torch.arange(host.shape[1])).flatten().nonzero().flatten()
        return cls._within(starts, torch.cat((first, first.new_tensor([host.numel()]))).int())

    @classmethod
    def _within(cls, starts: Tensor, bounds: Tensor) -> "Documents":
        if starts.device.type == "cpu":
            places = torch.tensor(_blocks(bounds.tolist(), starts.shape[1])).view(-1, 5)
        else:
            places = bounds.to(starts.device, non_blocking=True)
        return cls(starts=starts, bounds=bounds, places=places)

    def to(self, device: torch.device) -> "Documents":
        return self if device == self.starts.device else self._within(self.starts.to(device), self.bounds)

    def first(self, num_rows: int) -> "Documents":
        """Those of the first sequences."""
        return self._within(self.starts[:num_rows], self.bounds[self.bounds <= num_rows * self.starts.shape[1]])

    def mask(self) -> Tensor:
        """[b, 1, s, s] True where a query may look: earlier tokens of its document, itself."""
        places = torch.arange(self.starts.shape[1], device=self.starts.device)
        return ((places >= self.starts[..., None]) & (places <= places[:, None]))[:, None]


def attend_within(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Tensor:
    """Causal attention of queries [b, h, s, e] within documents, on a GPU: [b, h, s, e]. Keys and values are [b, g, s,
    e]."""
    from torch.nn.attention.varlen import varlen_attn  # loads the compiler, a second for which a CPU has no use

    flat = [each.transpose(1, 2).flatten(0, 1) for each in (queries, keys, values)]  # [t, heads, e]
    bounds, seq, shares = documents.places, queries.shape[2], queries.shape[1] != keys.shape[1]
    mixed = varlen_attn(flat[0], flat[1], flat[2], bounds, bounds, seq, seq, window_size=(-1, 0), enable_gqa=shares)
    return mixed.unflatten(0, (-1, seq)).transpose(1, 2)  # type: ignore[union-attr]


def _blocks(bounds: list[int], seq: int) -> list[Block]:
    """Each of a part of one document, or of several short ones."""
    found: list[Block] = []
    for begin, end in pairwise(bounds):
        number, start, length = begin // seq, begin % seq, end - begin
        stop = start + length
        if length < BLOCK_ROWS and found:
            of, key, row, before, _ = found[-1]
            if of == number and key == row and before == start and stop - row <= BLOCK_ROWS:
                found[-1] = (of, key, row, stop, True)
                continue
        size = -(-length // -(-length // BLOCK_ROWS))  # parts of about one size
        found += [(number, start, row, min(row + size, stop), False) for row in range(start, stop, size)]
    return found
