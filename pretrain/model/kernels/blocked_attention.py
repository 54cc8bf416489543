"""Causal attention on a CPU as blocks of matrix products: less time than torch's CPU kernel, and the same O(s) memory.

Forward, for each group of heads and each block of R query rows: scores against the keys up to the block's last row,
softmax, product with the values. Keys after a block are never touched, so about half of the s² work is skipped; with
documents (`documents.py`) nor are those before the document of a block.
Backward computes the probabilities P of a block again and, with dO the gradient of the output (Dao et al. 2022, arXiv
2205.14135, appendix B.4):

    dV += Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP - rowsum(P ∘ dP)),  dQ = dS K / √e,  dK += dSᵀ Q / √e.

Cost: 4·s²·e·(1/2 + R/2s) operations a head forward and 2.5 times that backward, nearly all in matrix products that run
at the rate of large ones; torch's kernel works in tiles too small for that. Scratch: `SCRATCH_ELEMENTS` scores at a
time, whatever the batch; nothing but queries, keys and values is kept for the backward pass. In bf16 the scores of a
block are rounded to bf16 (their sums are in fp32), as in attention written out as matrix products.

A custom operator, so that torch.compile takes it as one node and compiles what lies around it.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pretrain.model.kernels.documents import BLOCK_ROWS, Documents

SCRATCH_ELEMENTS = 2**19
"""Scores held at a time (2 MiB in fp32), so that they stay in the caches between the products and the softmax."""


def blocked_attention(queries: Tensor, keys: Tensor, values: Tensor, *, documents: Documents | None = None) -> Tensor:
    """Causal softmax(q kᵀ / √e) v of sequences that start together.

    Args:
        queries: [b, h, s, e].
        keys: [b, g, s, e], g dividing h: head i looks at group i · g / h.
        values: [b, g, s, e].
        documents: within which attention stays; within sequences by default.

    Returns:
        [b, h, s, e], differentiable once.
    """
    batch, groups, seq, width = keys.shape
    rows = (batch * groups, queries.shape[1] // groups, seq, width)
    cut = (None, None) if documents is None else (documents.places, documents.starts)
    mixed = _forward(queries.reshape(rows), keys.reshape(-1, seq, width), values.reshape(-1, seq, width), *cut)
    return mixed.view(queries.shape)


# Below, n = b·g pairs of sequence and group, r = h/g query heads of a group: queries [n, r, s, e], keys and values [n,
# s, e]. Where there are documents, `blocks` are theirs and `starts` [b, s] their beginnings (`documents.py`).


@torch.library.custom_op("looped::blocked_attention", mutates_args=())
def _forward(queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor | None, starts: Tensor | None) -> Tensor:
    mixed = torch.empty_like(queries)
    for part, rows, seen, hidden in _blocks(queries, blocks, starts):
        probabilities = _probabilities(queries[part, :, rows], keys[part, seen], hidden)
        block = torch.bmm(probabilities, values[part, seen])
        mixed[part, :, rows] = block.view(mixed[part, :, rows].shape)
    return mixed


@torch.library.custom_op("looped::blocked_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    scale = 1 / math.sqrt(queries.shape[-1])
    wide = torch.promote_types(queries.dtype, torch.float32)  # sums over blocks are kept in fp32 or wider
    query_gradient = torch.empty_like(queries)
    key_gradient, value_gradient = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
    for part, rows, seen, hidden in _blocks(queries, blocks, starts):
        block = queries[part, :, rows]
        probabilities = _probabilities(block, keys[part, seen], hidden)  # [n, r·R, z]
        outer = gradient[part, :, rows].reshape(*probabilities.shape[:2], -1)
        value_gradient[part, seen] += torch.bmm(probabilities.transpose(1, 2), outer)
        inner = torch.bmm(outer, values[part, seen].transpose(1, 2))
        inner = torch.ops.aten._softmax_backward_data(inner, probabilities, -1, inner.dtype)
        query_gradient[part, :, rows] = torch.bmm(inner, keys[part, seen]).mul_(scale).view(block.shape)
        key_gradient[part, seen] += torch.bmm(inner.transpose(1, 2), block.reshape(outer.shape)).mul_(scale)
    return query_gradient, key_gradient.to(keys.dtype), value_gradient.to(values.dtype)


def _blocks(
    queries: Tensor, blocks: Tensor | None, starts: Tensor | None
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Pieces of the work as (pairs of sequence and group, query rows, keys they see), and what is added to the scores
    of the rows against the last so many keys: -inf where they may not look, 0 elsewhere."""
    count, heads, seq, _ = queries.shape
    most = min(BLOCK_ROWS, seq)
    future = queries.new_full((most, most), -torch.inf).triu_(1)
    if blocks is None or starts is None:
        share = max(1, SCRATCH_ELEMENTS // (heads * most * seq))
        for first in range(0, count, share):
            for start in range(0, seq, BLOCK_ROWS):
                stop = min(start + BLOCK_ROWS, seq)
                yield slice(first, first + share), slice(start, stop), slice(0, stop), future
        return
    groups = count // len(starts)
    for number, key, start, stop, are_several in blocks.tolist():
        hidden = future
        if are_several:
            places, firsts = torch.arange(start, stop), starts[number, start:stop]
            hidden = future[: stop - start, : stop - start].masked_fill(places < firsts[:, None], -torch.inf)
        share = max(1, SCRATCH_ELEMENTS // (heads * (stop - start) * (stop - key)))
        for first in range(number * groups, (number + 1) * groups, share):
            part = slice(first, min(first + share, (number + 1) * groups))
            yield part, slice(start, stop), slice(key, stop), hidden


def _probabilities(block: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
    """Softmax of the scores of a block of queries [n, r, R, e], the last R of the keys seen [n, z, e]: [n, r·R, z]."""
    count, heads, rows, width = block.shape
    scores = block.new_empty(count, heads * rows, seen.shape[1])
    block = block.reshape(count, heads * rows, width)
    torch.baddbmm(scores, block, seen.transpose(1, 2), beta=0, alpha=1 / math.sqrt(width), out=scores)
    scores.view(count, heads, rows, -1)[..., -rows:].add_(hidden[:rows, :rows])
    return torch.softmax(scores, dim=-1, out=scores)


@_forward.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor | None, starts: Tensor | None) -> Tensor:
    return torch.empty_like(queries)


@_backward.register_fake
def _(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)


# FLOPs as torch's counter has them for attention: the whole square, that of the sequence whatever documents it has, and
# none for what is computed a second time.


@register_flop_formula(torch.ops.looped.blocked_attention)
def _flops(queries: torch.Size, *shapes: object, **_: object) -> int:
    return 4 * queries.numel() * queries[2]


@register_flop_formula(torch.ops.looped.blocked_attention_backward)
def _backward_flops(gradient: torch.Size, *shapes: object, **_: object) -> int:
    return 8 * gradient.numel() * gradient[2]


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[arg-type]


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *_backward(gradient.contiguous(), *ctx.saved_tensors), None, None  # type: ignore[attr-defined]


_forward.register_autograd(_differentiate, setup_context=_save)
