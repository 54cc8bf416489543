"""The transformer layer: attention and feed-forward, each behind a norm, on a residual stream. Single-device code.

Legend: b batch, s positions of this call, t = b·s tokens, d hidden width, h heads held, g key/value heads held, e head
width, f feed-forward width held. States are [t, d] so that tokens can be split over ranks (sequence parallelism,
`parallel_ops.py`).

Two families by configuration: Llama (RMSNorm, rotary positions, SwiGLU, no bias; Touvron et al. 2023) and GPT-2
(LayerNorm, learned positions, GELU, bias; Radford et al. 2019). Attention is `scaled_dot_product_attention`: O(s²)
work, O(s) memory; within documents O(their lengths²), see `attend`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.config import ModelSection
from pretrain.model.dropout import Dropout, Site
from pretrain.model.feed_forward import FeedForward
from pretrain.model.kept_keys import KeptKeys, KeysValues
from pretrain.model.kernels.blocked_attention import blocked_attention
from pretrain.model.kernels.documents import Documents, attend_within
from pretrain.model.kernels.elementwise import RootMeanSquareNorm, Rotation
from pretrain.model.kernels.window_attention import band, newest_visible, window_attention
from pretrain.model.loop.held import HeldWeights
from pretrain.model.loop.keys import gate_far_and_near
from pretrain.model.loop.per_loop.this import ALIKE, InLayers, InThisLoop
from pretrain.model.loop.recurrence import Application
from pretrain.model.parallel_ops import ParallelOps
from pretrain.model.weight_kinds import Weight, Weights, under


@dataclass(kw_only=True)
class KeyValueCache:
    """Keys and values of every application of the layers held here, in order of application; gradients flow through it.

    A looped layer has one entry for each loop that computes keys, so a cache serves one loop count. `length` counts the
    cached positions, by the first application on this stage. Of windows no more is kept than they see, the newest
    positions, so all of these must be visible to later queries.
    """

    entries: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return next((keys.shape[2] for keys, _ in self.entries.values()), 0)

    def extend(self, application: Application, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values [b, g, s, e] to the entry of one layer application and return the whole."""
        if application.number in self.entries:
            old_keys, old_values = self.entries[application.number]
            keys, values = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        kept = slice(None) if application.window is None else slice(-application.window, None)
        self.entries[application.number] = (keys[:, :, kept], values[:, :, kept])
        return keys, values

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of application `number`, which this forward pass has come by."""
        return self.entries[number]

    def attend(
        self, application: Application, queries: Tensor, computed: KeysValues | None, mask: Tensor | None
    ) -> Tensor:
        """Attention of new queries [b, h, s, e] over what is cached and over new keys and values, which are cached too,
        or over those of the application's source: [b, h, s, e]. A mask is of the window, if that is asked for."""
        window = None if computed is None else application.window
        return attend(queries, *self.keys_values(application, computed), mask, window)

    def keys_values(self, application: Application, computed: KeysValues | None) -> tuple[Tensor, Tensor]:
        """What an application attends to, from what it computed, if it did."""
        if computed is not None:
            return self.extend(application, *computed)
        assert application.source is not None, "it reads another's"
        return self.read(application.source)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a layer needs to know of the sequences, the same for all layers of a forward pass."""

    batch: int
    positions: Tensor
    """[b or 1, s] of each token in its sequence."""
    rotary: tuple[Tensor, Tensor] | None
    """Cosine and sine [b or 1, s, 1, e/2] of each position's rotation, or None with learned positions."""
    mask: Tensor | None
    """[b or 1, 1, s, keys] True where a query may look, or None for plain causal attention, within `documents`."""
    cache: KeyValueCache | None
    dropout: Dropout | None = None
    noise_rows: Tensor | None = None
    """int32 [b] keys of the rows, for a start state of noise (`hashed_numbers.py`); None: alike."""
    loop_counts: tuple[int, ...] | None = None
    """Loops of each row, the most first; None: all loops that are run."""
    kept: KeptKeys | None = None
    """What later loops attend to, where they do and there is no cache."""
    documents: Documents | None = None
    """Within which attention stays; within sequences where None."""
    _masks: dict[int, Tensor] = field(default_factory=dict)
    """The mask of each window."""

    def mask_of(self, window: int) -> Tensor | None:
        """The mask, of the newest `window` keys that a query may look at; None as `mask`."""
        if self.mask is not None and window not in self._masks:
            self._masks[window] = newest_visible(self.mask, window)
        return self._masks.get(window)

    def num_active(self, loop: int) -> int:
        """Rows, the first ones, that take part in pass `loop`."""
        return self.batch if self.loop_counts is None else sum(loop < count for count in self.loop_counts)

    def first(self, num_rows: int) -> "Context":
        """That of the first rows alone, without a cache or dropout."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[:num_rows] if tensor.shape[0] == self.batch else tensor

        return Context(
            batch=num_rows, positions=cut(self.positions),
            rotary=None if self.rotary is None else (cut(self.rotary[0]), cut(self.rotary[1])),
            mask=None if self.mask is None else cut(self.mask), cache=None, kept=self.kept,
            documents=None if self.documents is None else self.documents.first(num_rows),
        )  # fmt: skip

    def keys_values(self, application: Application, computed: KeysValues | None) -> tuple[Tensor, Tensor]:
        """Keys and values [b, g, keys, e] that an application attends to, from what it computed, if it did."""
        if self.cache is not None:
            return self.cache.keys_values(application, computed)
        if computed is not None and (application.source is None or application.source != application.number):
            return computed  # without reading the number where it can be helped: a compiled layer is traced for each
        assert self.kept is not None and application.source is not None
        if computed is None:
            return self.kept.read(application.source, self.batch)
        return self.kept.keep(application.number, computed)

    def drop(self, states: Tensor, site: Site, application: Application) -> Tensor:
        """[t, d] -> [t, d]: what a layer adds to the residual stream, with dropout if there is any."""
        return states if self.dropout is None else self.dropout.states(states, site, application.number)


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in fp32 or wider (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, states: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or states.is_cuda:
            return F.rms_norm(states, self.weight.shape, self.weight, self.epsilon)
        return RootMeanSquareNorm.apply(states, self.weight, self.epsilon)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / deviation · weight + bias (Ba et al. 2016); its weights are left to `initialise.py`."""

    def reset_parameters(self) -> None:
        pass


class SplitRMSNorm(nn.Module):
    """RMSNorm over the outputs of a column layer, all ranks' together; [t, outputs held] -> the same."""

    def __init__(self, weight: Weight, epsilon: float, ops: ParallelOps) -> None:
        super().__init__()
        self.weight = ops.parameter(weight)
        self.width, self.epsilon, self.all_reduce = weight.numel, epsilon, ops.all_reduce_shared

    def forward(self, states: Tensor) -> Tensor:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        mean_square = self.all_reduce(wide.square().sum(-1, keepdim=True)) / self.width
        return (wide * torch.rsqrt(mean_square + self.epsilon) * self.weight).to(states.dtype)


NORMS = {"rms": RMSNorm, "layer": LayerNorm, "plain": partial(LayerNorm, elementwise_affine=False)}


def make_norm(config: ModelSection) -> nn.Module:
    return NORMS[config.norm](config.hidden_size, config.norm_epsilon)


def rotary_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation of each position (Su et al. 2021), computed in fp64 and rounded once.

    Args:
        positions: [b or 1, s] integers.
        head_dim: e, even.
        theta: base of the wavelengths.
        dtype: of the result.

    Returns:
        Two tensors [b or 1, s, 1, e/2].
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions[..., None, None].to(torch.float64) * theta**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs (i, i + e/2) of [b, s, h, e] by the angle of each position; the pairing of Hugging Face's Llama."""
    cosine, sine = rotary
    if not torch.compiler.is_compiling():
        return Rotation.apply(states, cosine, sine)
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


HALF = (torch.bfloat16, torch.float16)
"""Types that the fastest kernels of a GPU are for."""


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    window: int | None = None,
    documents: Documents | None = None,
) -> Tensor:
    """Softmax attention of queries [b, h, s, e] over keys and values [b, g, keys, e], causal where there is no mask,
    then within documents if there are any, or over the newest `window` of them: [b, h, s, e]. Of a mask the last
    columns are used, as many as there are keys."""
    if mask is not None:
        mask = mask[..., -keys.shape[2] :]
    if window is not None:
        return window_attention(queries, keys, values, mask, window)
    if mask is None and queries.device.type == "cpu":
        return blocked_attention(queries, keys, values, documents=documents)
    if documents is not None:
        return attend_within(queries, keys, values, documents)
    shares = queries.shape[1] != keys.shape[1]
    # no fused kernel of a GPU knows groups with a mask or in wider types
    if shares and queries.is_cuda and (mask is not None or queries.dtype not in HALF):
        keys, values = (each.repeat_interleave(queries.shape[1] // each.shape[1], 1) for each in (keys, values))
        shares = False
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=shares
    )


class Attention(nn.Module):
    """Causal multi-head attention with grouped key/value heads."""

    def __init__(self, config: ModelSection, ops: ParallelOps, weights: Weights) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.ops = ops
        self.query, self.key, self.value, self.output = (
            ops.linear(under(weights, name)) for name in ("query", "key", "value", "output")
        )
        make: Callable[[str], nn.Module | None] = {
            "none": lambda _: None,
            "head": lambda _: RMSNorm(config.head_dim, config.norm_epsilon),
            "all": lambda name: SplitRMSNorm(weights[f"{name}.weight"], config.norm_epsilon, ops),
        }[config.qk_norm]
        self.norms_heads = config.qk_norm == "head"
        of_window = under(weights, "window")
        self.window = HeldWeights(ops, of_window) if of_window else None
        self.query_norm, self.key_norm = make("query_norm"), make("key_norm")

    def forward(self, states: Tensor, context: Context, application: Application, this: InThisLoop) -> Tensor:
        states = self.ops.to_split(states)
        queries = self._heads("query", self.query_norm, states, context, this)
        computed = None
        if application.computes_keys:
            keys = self._heads("key", self.key_norm, states, context, this)
            values = this.linear("attention.value", states, self.value(states))
            values = values.view(context.batch, -1, keys.shape[1], self.head_dim).transpose(1, 2)
            computed = KeysValues(keys, values)
        if application.window is None:
            mixed = self._attend(queries, computed, context, application)
        else:
            assert self.window is not None
            far, near = (self._attend(queries, each, context, application) for each in (None, computed))
            mixed = self.window(gate_far_and_near, queries, far, near)
        mixed = mixed.transpose(1, 2).reshape(states.shape[0], -1)
        return this.linear("attention.output", mixed, self.output(mixed))

    def _attend(
        self, queries: Tensor, computed: KeysValues | None, context: Context, application: Application
    ) -> Tensor:
        """What queries [b, h, s, e] find in keys and values that were computed, or in those of the application's
        source: [b, h, s, e]."""
        window = None if computed is None else application.window
        mask = context.mask if window is None else context.mask_of(window)
        if context.dropout is not None:
            keys, values = context.keys_values(application, computed)
            if window is not None and mask is None:
                mask = band(queries.shape[2], keys.shape[2], window, keys.device)
            first_head = self.ops.rank * queries.shape[1]
            place = application.number if window is None else -1 - application.number
            return context.dropout.attend(queries, keys, values, mask, first_head, place)
        if context.cache is None:
            return attend(queries, *context.keys_values(application, computed), mask, window, context.documents)
        return context.cache.attend(application, queries, computed, mask)

    def _heads(
        self, name: Literal["query", "key"], norm: nn.Module | None, states: Tensor, context: Context, this: InThisLoop
    ) -> Tensor:
        """Queries or keys [b, h or g, s, e] of states [t, d]: projected, normed, rotated."""
        heads = this.linear(f"attention.{name}", states, self.get_submodule(name)(states))
        if norm is not None:
            heads = norm(heads.view((-1, self.head_dim) if self.norms_heads else (states.shape[0], -1)))
        heads = heads.view(context.batch, states.shape[0] // context.batch, -1, self.head_dim)
        return (heads if context.rotary is None else rotate(heads, context.rotary)).transpose(1, 2)


class Layer(nn.Module):
    """One transformer layer: attention, then feed-forward, each a half f on the residual stream x; by model.norm_place

    before   x + f(norm(x))
    after    x + norm(f(x))
    both     x + post_norm(f(norm(x)))            Ouro (arXiv 2510.25741); sandwich norms (Ding et al. 2021, 2105.13290)
    around   post_norm(x + f(norm(x)))            Huginn (arXiv 2502.05171, section 3.2)
    sum      norm(x + f(x))                       Vaswani et al. 2017 (1706.03762); DeepNorm (2203.00555)
    """

    def __init__(
        self, config: ModelSection, ops: ParallelOps, weights: Weights, in_loop: InLayers | None, number: int,
        is_selective: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.number = number
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, ops, under(weights, "attention"))
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config, ops, under(weights, "ffn"), is_selective)
        self.norm_place, self.attention_post_norm, self.ffn_post_norm = config.norm_place, None, None
        if config.norm_place in ("both", "around"):
            self.attention_post_norm, self.ffn_post_norm = make_norm(config), make_norm(config)
        self.in_loop = in_loop
        if in_loop is not None:
            self.per_loop = HeldWeights(ops, under(weights, "per_loop"))
            self.residual = HeldWeights(ops, under(weights, "residual"))

    def forward(self, states: Tensor, context: Context, application: Application) -> Tensor:
        this = ALIKE
        if self.in_loop is not None and application.loop is not None:
            this = self.in_loop.at(self.per_loop, self.residual, self.number, application.loop)
        attend = partial(self.attention, context=context, application=application, this=this)
        drop = partial(context.drop, application=application)
        states = self._half("attention", states, attend, (self.attention_norm, self.attention_post_norm), this, drop)
        feed = partial(self.ffn, this=this)
        return self._half("ffn", states, feed, (self.ffn_norm, self.ffn_post_norm), this, drop)

    def _half(
        self, part: Site, states: Tensor, compute: Callable[[Tensor], Tensor],
        norms: tuple[nn.Module, nn.Module | None], this: InThisLoop, drop: Callable[[Tensor, Site], Tensor],
    ) -> Tensor:  # fmt: skip
        """States [t, d] after a half of the layer, `compute`, has joined them; several streams are side by side."""
        norm, post_norm = norms
        entering, join = this.branch(part, states)
        if self.norm_place == "sum":
            return this.normed(part, norm(join(drop(this.update(part, compute(entering)), part))))
        if self.norm_place == "after":
            update = this.normed(part, norm(compute(entering)))
        else:
            update = compute(this.normed(part, norm(entering)))
        if post_norm is not None and self.norm_place == "both":
            update = post_norm(update)
        states = join(drop(this.update(part, update), part))
        return post_norm(states) if post_norm is not None and self.norm_place == "around" else states
