"""From a batch of samples to what the model takes: tokens, labels and, on request, document borders.

The tokens of a sample are documents laid end to end, each `bos tokens eos`; it may start and end inside a document.
Positions and segments follow from where the bos tokens are. With one token for both, each document is `separator
tokens`: positions and segments begin at the separator, which is also the end of the document before.
"""

from dataclasses import dataclass

import torch

from pretrain.model.kernels.documents import Documents


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch as the model takes it; b sequences of s tokens, int64 [b, s]."""

    tokens: torch.Tensor
    labels: torch.Tensor
    """What is predicted after each token, or IGNORED (`pretrain/data/stream/labels.py`)."""
    positions: torch.Tensor | None
    """Tokens since the document's first, counted from 0 for one that began before the row; None without a document
    mask."""
    documents: Documents | None
    """Within which attention stays; None without a document mask."""
    noise_rows: torch.Tensor | None = None
    """int32 [b]: keys of the rows in training, for a start state of noise."""
    loop_counts: tuple[int, ...] | None = None
    """Loops of each row in training, the most first; None: all of the step's."""

    def to(self, device: torch.device) -> "Inputs":
        """The same on a device, as from `make_inputs`."""
        positions = None if self.positions is None else self.positions.to(device)
        documents = None if self.documents is None else self.documents.to(device)
        tokens, labels = self.tokens.to(device), self.labels.to(device)
        return Inputs(tokens=tokens, labels=labels, positions=positions, documents=documents)


def make_inputs(samples: torch.Tensor, bos_id: int, document_mask: bool) -> Inputs:
    """Find the documents in samples [b, 2, s] of the loader, if attention and positions are to stay within them."""
    tokens, labels = samples.long().unbind(1)
    if not document_mask:
        return Inputs(tokens=tokens, labels=labels, positions=None, documents=None)
    is_first = tokens == bos_id  # [b, s]
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    starts = places.masked_fill(~is_first, 0).cummax(dim=1).values
    return Inputs(tokens=tokens, labels=labels, positions=places - starts, documents=Documents.of(starts))
