"""Attention to the newest keys alone, of `model.loop.keys_window`: O(s·w) work for sequences of s tokens.

Where queries and keys are of the same tokens, blocks of w queries look at two blocks of keys, the one before them and
their own, which hold every window: 4·2w·h·e operations a token forward. Elsewhere, with a cache or where two windows
are the whole, one product with all keys is masked.

Legend: b batch, h query heads, g key/value heads, s queries, e head width, w window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, window: int) -> Tensor:
    """Softmax attention over the newest `window` keys, a query's own token among them.

    Args:
        queries: [b, h, s, e], of the last s of the tokens that keys are of.
        keys: [b, g, keys, e].
        values: as the keys.
        mask: [b or 1, 1, s, keys] True where a query may look, at no more than the newest keys (`newest_visible`), or
            a number that is added to the score; None: by places alone.
        window: w.

    Returns:
        [b, h, s, e].
    """
    num_queries, num_keys = queries.shape[2], keys.shape[2]
    if num_queries == num_keys > 2 * window:
        return _in_blocks(queries, keys, values, mask, window)
    if mask is None:
        mask = band(num_queries, num_keys, window, queries.device)
    return _masked(queries, keys, values, mask)


def band(num_queries: int, num_keys: int, window: int, device: torch.device) -> Tensor:
    """[s, keys] True where a query, one of the last, may look: the newest `window` keys up to its own."""
    places = torch.arange(num_keys, device=device)
    back = places[num_keys - num_queries :, None] - places
    return (back >= 0) & (back < window)


def newest_visible(mask: Tensor, window: int) -> Tensor:
    """A mask [b or 1, 1, s, keys] that leaves, of the keys that each query may look at, the newest `window`; True or 0
    where it may look."""
    visible = mask if mask.dtype == torch.bool else mask > -torch.inf
    newer = visible.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1)  # visible keys from each one on
    near = newer <= window
    return mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, -torch.inf)


def _in_blocks(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, window: int) -> Tensor:
    batch, _, seq, _ = queries.shape
    missing = -seq % window
    num_blocks = (seq + missing) // window
    rows = F.pad(queries, (0, 0, 0, missing)).unflatten(2, (num_blocks, window))

    def with_block_before(heads: Tensor) -> Tensor:
        """[b, g, s, e] -> [b·blocks, g, 2w, e]"""
        blocks = F.pad(heads, (0, 0, window, missing)).unflatten(2, (num_blocks + 1, window))
        return torch.cat((blocks[:, :, :-1], blocks[:, :, 1:]), dim=3).transpose(1, 2).flatten(0, 1)

    visible = _block_mask(mask, batch, seq, num_blocks, window, queries.device)
    mixed = _masked(
        rows.transpose(1, 2).flatten(0, 1), with_block_before(keys), with_block_before(values), visible
    )  # [b·blocks, h, w, e]
    return mixed.unflatten(0, (batch, num_blocks)).transpose(1, 2).flatten(2, 3)[:, :, :seq]


def _block_mask(
    mask: Tensor | None, batch: int, seq: int, num_blocks: int, window: int, device: torch.device
) -> Tensor:  # fmt: skip
    """[b·blocks, 1, w, 2w] the mask of each block; what pads the last one looks at itself."""
    places = torch.arange(num_blocks * window, device=device).view(num_blocks, window, 1)
    looked_at = torch.arange(-window, window, device=device) + window * torch.arange(num_blocks, device=device)[:, None]
    looked_at = looked_at[:, None]  # [blocks, 1, 2w]
    back = places - looked_at
    near = (back >= 0) & (back < window) & (looked_at >= 0)  # [blocks, w, 2w]
    if mask is None:
        return near.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
    found = mask[:, 0, places.clamp_max(seq - 1), looked_at.clamp(0, seq - 1)]  # [b or 1, blocks, w, 2w]
    inside = near & (places < seq)
    if mask.dtype == torch.bool:
        found = (found & inside) | ((back == 0) & (places >= seq))
    else:
        found = found.masked_fill(~inside, -torch.inf).masked_fill((back == 0) & (places >= seq), 0.0)
    return found.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]


def _masked(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    has_groups = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=has_groups)
