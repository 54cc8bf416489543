"""Labels: what is predicted after each token. A sample is int64 [2, seq_len]: its tokens, and the label of each."""

import numpy as np

from pretrain.data.tokenizers.tokenizer import Separators

IGNORED = -100
"""Label of a position that has nothing to predict; the default `ignore_index` of torch's cross-entropy."""


def label_text(tokens: np.ndarray, separators: Separators) -> np.ndarray:
    """Packed text [..., s + 1] as samples [..., 2, s]: the label is the next token, or IGNORED where that is a bos that
    ends nothing (the eos before it is the target)."""
    labels = tokens[..., 1:]
    if not separators.are_one:
        labels = np.where(labels == separators.bos_id, IGNORED, labels)
    return np.stack((tokens[..., :-1], labels), axis=-2)
