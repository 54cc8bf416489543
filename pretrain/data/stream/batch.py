"""From a batch of packed token rows to what the model takes: inputs, labels and, on request, document borders.

A row is documents laid end to end, each `bos tokens eos`; it may start and end inside a document. Everything else
follows from where the bos tokens are, so the loader sends tokens only. With one token for both, each document is
`separator tokens`: positions and segments begin at the separator, which is a label like any other, as it is also the
end of the document before. A row of a reasoning task says itself what is to be predicted
(`pretrain/data/stream/entries.py`).
"""

from dataclasses import dataclass

import torch

from pretrain.data.stream.entries import LABEL_SHIFT
from pretrain.data.tokenizers.tokenizer import Separators

IGNORED = -100
"""Label of a position that has nothing to predict; the default `ignore_index` of torch's cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch as the model takes it; b sequences of s tokens."""

    tokens: torch.Tensor
    """int64 [b, s]."""
    labels: torch.Tensor
    """int64 [b, s]: the next token, or IGNORED where that is a bos that ends nothing (the eos before it is what there
    is to foretell)."""
    positions: torch.Tensor | None
    """int64 [b, s]: tokens since the document's first, counted from 0 for one that began before the row; None without a
    document mask."""
    segment_ids: torch.Tensor | None
    """int64 [b, s]: number of the document within the row; attention stays within equal numbers. None without a
    document mask."""


def make_inputs(tokens: torch.Tensor, separators: Separators, document_mask: bool) -> Inputs:
    """Split packed rows into inputs and labels and find the documents in them.

    Args:
        tokens: integers [b, s + 1], rows of the loader: tokens, or entries of `pretrain/data/stream/entries.py`.
        separators: what tells documents apart.
        document_mask: whether attention and positions stay within documents.

    Returns:
        The batch on the device of `tokens`.
    """
    tokens = tokens.long()
    wanted = tokens[:, :-1] >> LABEL_SHIFT
    tokens = tokens & ((1 << LABEL_SHIFT) - 1)
    inputs, following = tokens[:, :-1], tokens[:, 1:]
    labels = following if separators.are_one else following.masked_fill(following == separators.bos_id, IGNORED)
    labels = torch.where(wanted > 1, wanted - 2, labels.masked_fill(wanted == 1, IGNORED))
    if not document_mask:
        return Inputs(tokens=inputs, labels=labels, positions=None, segment_ids=None)
    is_first = inputs == separators.bos_id  # [b, s]
    places = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    starts = places.masked_fill(~is_first, 0).cummax(dim=1).values
    return Inputs(tokens=inputs, labels=labels, positions=places - starts, segment_ids=is_first.long().cumsum(dim=1))
