"""Attention of the latent forward: slots attend to a long prefix without copying its keys and values, and without a
gradient of that size for each slot.

A latent forward runs over its rows in segments (`finetune/latent/forward.py`). With K and V the keys and values of the
first one, the prefix:

- the prefix attends to itself, causally;
- slots attend to K and to the few keys after it: one softmax over two products; nothing of K's size is concatenated;
- the last segment, the text, attends as slots do if it is short, else to all keys, concatenated once.

Backward, slots add to the gradients of K and V: dK = Σ dSᵀ q and dV = Σ Pᵀ dO over all of their queries, with P the
probabilities, dS the gradient of the scores and dO that of the output. A segment of slots only keeps its (q, dS, P,
dO); when the backward pass reaches the prefix, the sums are one product over the queries of all segments. So n slots
cost O(n·s) scores and no copy of K or dK.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pretrain.model.kept_keys import KeysValues
from pretrain.model.layers import KeyValueCache, attend
from pretrain.model.loop.recurrence import Application

Segment = Literal["whole", "prefix", "slots", "trial", "last"]
"""The whole is the only segment. A trial attends as slots do, but later segments do not see it."""

# Below, n = b·g pairs of sequence and group of heads, q queries of a pair, p positions of the prefix, j positions after
# it, e head width.


class _SlotShare(NamedTuple):
    """What the gradients of the prefix need of a segment of slots."""

    queries: Tensor  # [n, q, e], scaled
    score_gradient: Tensor  # [n, q, p]
    probabilities: Tensor  # [n, q, p]
    gradient: Tensor  # [n, q, e], of the output


@dataclass(frozen=True, kw_only=True)
class _Prefix:
    """The prefix in one application of one layer."""

    keys: Tensor  # [b, g, p, e], like the values
    values: Tensor
    shares: list[_SlotShare]
    order: Tensor
    """A scalar input of all segments of slots, so that the backward pass reaches the prefix after them."""


@dataclass(kw_only=True)
class LatentCache(KeyValueCache):
    """Keys and values of a latent forward, for one loop count; `entries` holds those after the prefix.

    The mask of a segment is a bias [b or 1, 1, s, keys] added to its scores; None for the prefix and the whole.
    Differentiable once.
    """

    segment: Segment
    """What the next forward pass runs over; set by the caller."""
    places: Tensor | None = None
    """[b or 1, s]: places of the segment's positions in the batch, for `finetune/latent/distillation.py`."""
    _prefixes: dict[int, _Prefix] = field(default_factory=dict)
    _newest: dict[int, KeysValues] = field(default_factory=dict)
    """Of applications that others read: what `extend` or `attend` made of this segment's."""

    @property
    def length(self) -> int:
        """Cached positions: the prefix, and the slots so far."""
        return next((prefix.keys.shape[2] for prefix in self._prefixes.values()), 0) + super().length

    def extend(self, application: Application, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base, for attention that knows no prefix (that of dropout); a trial leaves no trace."""
        before = self.entries.get(application.number)
        whole = super().extend(application._replace(window=None), keys, values)
        if self.segment == "trial" and before is not None:
            self.entries[application.number] = before
        if application.source is not None:
            self._newest[application.number] = KeysValues(*whole)
        return whole

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        return self._newest[number]

    def attend(
        self, application: Application, queries: Tensor, computed: KeysValues | None, mask: Tensor | None
    ) -> Tensor:
        if computed is None:
            assert application.source is not None, "it reads another's"
            return self._attend_to(application.source, queries, self._newest[application.source], mask)
        number = application.number
        if self.segment == "prefix":
            keys, values, shares = computed.keys.contiguous(), computed.values.contiguous(), []
            self._prefixes[number] = _Prefix(
                keys=keys, values=values, shares=shares, order=_GatherPrefixGradients.apply(keys, values, shares)
            )
            computed = KeysValues(keys, values)
        elif number in self.entries:
            pairs = zip(self.entries[number], computed, strict=True)
            computed = KeysValues(*(torch.cat(pair, dim=2) for pair in pairs))
        if self.segment == "slots":
            self.entries[number] = computed
        if application.source is not None:
            self._newest[number] = computed
        return self._attend_to(number, queries, computed, mask, application.window)

    def _attend_to(
        self, number: int, queries: Tensor, newest: KeysValues, mask: Tensor | None, window: int | None = None
    ) -> Tensor:
        """Attention over what application `number` has of the prefix and, after it, `newest`."""
        keys, values = newest
        if self.segment in ("whole", "prefix"):
            return attend(queries, keys, values, mask, window)
        assert mask is not None
        prefix = self._prefixes[number]
        if self.segment == "last" and not _is_short(queries, keys):
            return attend(
                queries, torch.cat((prefix.keys, keys), dim=2), torch.cat((prefix.values, values), dim=2), mask
            )
        return _AttendToPrefix.apply(queries, keys, values, mask, prefix, prefix.order)


def _is_short(queries: Tensor, keys: Tensor) -> bool:
    """Whether queries [b, h, s, e] have fewer scores per key, h·s, than the 2·g·e numbers that concatenating keys and
    values would copy."""
    return queries.shape[1] * queries.shape[2] < 2 * keys.shape[1] * keys.shape[3]


class _GatherPrefixGradients(torch.autograd.Function):
    """Keys and values [b, g, p, e] of the prefix to the scalar `order`; backward, their gradients from all slots."""

    @staticmethod
    def forward(ctx: FunctionCtx, keys: Tensor, values: Tensor, shares: list[_SlotShare]) -> Tensor:
        ctx.shares, ctx.shape = shares, keys.shape  # type: ignore[attr-defined]
        return keys.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, _: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        parts = [torch.cat(tensors, dim=1) for tensors in zip(*ctx.shares, strict=True)]  # type: ignore[attr-defined]
        ctx.shares.clear()  # type: ignore[attr-defined]
        queries, score_gradient, probabilities, gradient = parts
        key_gradient = torch.bmm(score_gradient.transpose(1, 2), queries)
        value_gradient = torch.bmm(probabilities.transpose(1, 2), gradient)
        return key_gradient.view(ctx.shape), value_gradient.view(ctx.shape), None  # type: ignore[attr-defined]


class _AttendToPrefix(torch.autograd.Function):
    """Softmax attention [b, h, s, e] of queries over the prefix and over keys and values [b, g, j, e] after it."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, prefix: _Prefix, order: Tensor
    ) -> Tensor:
        batch, groups, _, width = keys.shape
        shape = queries.shape
        scaled = (queries / math.sqrt(width)).reshape(batch * groups, -1, width)
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        far_keys, far_values = prefix.keys.flatten(0, 1), prefix.values.flatten(0, 1)
        scores = torch.cat(
            (torch.bmm(scaled, far_keys.transpose(1, 2)), torch.bmm(scaled, keys.transpose(1, 2))), dim=-1
        )
        scores.view(batch, groups, -1, shape[2], scores.shape[-1]).add_(bias[:, :, None])
        probabilities = torch.softmax(scores, dim=-1)
        far, near = probabilities.split((far_keys.shape[1], keys.shape[1]), dim=-1)
        mixed = torch.bmm(near, values).baddbmm_(far, far_values)
        ctx.save_for_backward(scaled, keys, values, probabilities)
        ctx.prefix = prefix  # type: ignore[attr-defined]
        return mixed.view(shape)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, Tensor]:
        scaled, keys, values, probabilities = ctx.saved_tensors  # type: ignore[attr-defined]
        prefix: _Prefix = ctx.prefix  # type: ignore[attr-defined]
        shape, (batch, groups) = gradient.shape, prefix.keys.shape[:2]
        outer = gradient.reshape(scaled.shape)
        far_keys, far_values = prefix.keys.detach().flatten(0, 1), prefix.values.detach().flatten(0, 1)
        inner = torch.cat(
            (torch.bmm(outer, far_values.transpose(1, 2)), torch.bmm(outer, values.transpose(1, 2))), dim=-1
        )
        inner = torch.ops.aten._softmax_backward_data(inner, probabilities, -1, inner.dtype)
        sizes = far_keys.shape[1], keys.shape[1]
        (far_inner, near_inner), (far, near) = inner.split(sizes, dim=-1), probabilities.split(sizes, dim=-1)
        prefix.shares.append(_SlotShare(scaled, far_inner, far, outer))
        query_gradient = torch.bmm(near_inner, keys).baddbmm_(far_inner, far_keys).div_(math.sqrt(keys.shape[-1]))
        key_gradient = torch.bmm(near_inner.transpose(1, 2), scaled).view(batch, groups, *keys.shape[1:])
        value_gradient = torch.bmm(near.transpose(1, 2), outer).view(batch, groups, *keys.shape[1:])
        return query_gradient.view(shape), key_gradient, value_gradient, None, None, gradient.new_zeros(())
