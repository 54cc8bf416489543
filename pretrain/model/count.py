"""Parameters and floating-point operations of the model, exactly, from its configuration alone (no torch).

Parameters: the weights are listed by name and shape as `pretrain/model/gpt.py` builds them; a shared weight counts
once.

FLOPs: 2·m·n·k for a matrix product, so 2 for each weight of a linear layer and token, for *every application* of the
shared block:

    layer    = 2·(weights of its matrices) + 4·s·h·e           a token; 2·s·h·e each for q·kᵀ and for the mixing of
                                                               values (h heads of e)
    forward  = (prelude + k·L + coda) · layer + 2·d·v          v: vocabulary; an embedding is a look-up, 0
    training = 3 · forward (+ forward of what is recomputed)   backward = 2 · forward: one product for each of the two
                                                               operands

Attention is counted over the full s × s square although it is causal: that is what `torch.utils.flop_counter` counts
and how MFU is usually stated (Chowdhery et al. 2022, appendix B). A fused kernel's second computation of the scores is
its own affair and not counted, nor is anything that is no matrix product. The rule of thumb 6·N misses attention and,
above all, counts a block once that runs L times.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pretrain.config.model import ModelSection

Recompute = Literal["none", "loop", "layer"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter tensor."""

    name: str
    """Path inside its module, as in the state dict."""
    shape: tuple[int, ...]
    """Logical shape, before tensor parallelism."""
    is_split: bool
    """Whether tensor-parallel ranks each hold an equal part of it."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of the parts of a model; each shared weight once."""

    embedding: int
    """Tokens and, if learned, positions."""
    prelude: int
    loop: int
    """All layers of the loop block, whatever the loop count; all blocks of a block-regularised model."""
    coda: int
    final_norm: int
    head: int
    """0 if tied to the embedding."""

    @property
    def total(self) -> int:
        return self.embedding + self.prelude + self.loop + self.coda + self.final_norm + self.head


def count_parameters(model: ModelSection, seq_len: int) -> ParameterCount:
    """Parameters by part.

    Args:
        model: shape of the model.
        seq_len: rows of the learned position table, in tokens.
    """
    layer = count(layer_weights(model))
    return ParameterCount(
        embedding=count(embedding_weights(model, seq_len)),
        prelude=model.num_prelude_layers * layer,
        loop=model.num_loop_layers * layer,
        coda=model.num_coda_layers * layer,
        final_norm=count(_norm_weights("final_norm", model)),
        head=0 if model.tied_head else head_weight(model).numel,
    )


def count(weights: tuple[Weight, ...], num_tensor_ranks: int = 1) -> int:
    """Parameters of `weights` that one of `num_tensor_ranks` tensor-parallel ranks holds."""
    return sum(weight.numel // (num_tensor_ranks if weight.is_split else 1) for weight in weights)


def layer_weights(model: ModelSection) -> tuple[Weight, ...]:
    """Every parameter of one transformer layer."""
    width, ffn = model.hidden_size, model.ffn_size
    q_width, kv_width = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    linears = {
        "attention.query": (q_width, width),
        "attention.key": (kv_width, width),
        "attention.value": (kv_width, width),
        "attention.output": (width, q_width),
        "ffn.gate": (ffn, width),
        "ffn.up": (ffn, width),
        "ffn.down": (width, ffn),
    }
    if model.activation != "swiglu":
        del linears["ffn.gate"]
    weights = [*_norm_weights("attention_norm", model), *_norm_weights("ffn_norm", model)]
    for name, shape in linears.items():
        weights.append(Weight(name=f"{name}.weight", shape=shape, is_split=True))
        if model.bias == "all" or (
            model.bias == "qkv" and name in ("attention.query", "attention.key", "attention.value")
        ):
            # added after the sum over ranks, so every rank holds it
            is_into_stream = name in ("attention.output", "ffn.down")
            weights.append(Weight(name=f"{name}.bias", shape=shape[:1], is_split=not is_into_stream))
    if model.qk_norm != "none":
        widths = (model.head_dim, model.head_dim) if model.qk_norm == "head" else (q_width, kv_width)
        for name, size in zip(("query", "key"), widths, strict=True):
            weights.append(Weight(name=f"attention.{name}_norm.weight", shape=(size,), is_split=model.qk_norm == "all"))
    return tuple(weights)


def embedding_weights(model: ModelSection, seq_len: int) -> tuple[Weight, ...]:
    """The token table and, if positions are learned, theirs."""
    weights = [Weight(name="embedding.weight", shape=(model.vocab_size, model.hidden_size), is_split=True)]
    if model.positions == "learned":
        weights.append(Weight(name="position_embedding.weight", shape=(seq_len, model.hidden_size), is_split=False))
    return tuple(weights)


def final_weights(model: ModelSection) -> tuple[Weight, ...]:
    """The final norm and the head. A tied head is listed too: the last of several pipeline stages holds a copy of the
    embedding."""
    return (*_norm_weights("final_norm", model), head_weight(model))


def stage_weights(model: ModelSection, seq_len: int, index: int = 0, num_stages: int = 1) -> tuple[Weight, ...]:
    """Every parameter that pipeline stage `index` of `num_stages` holds; one stage holds the whole model."""
    is_first, is_last = index == 0, index == num_stages - 1
    num_layers = model.num_loop_layers // num_stages
    num_layers += is_first * model.num_prelude_layers + is_last * model.num_coda_layers
    weights = num_layers * layer_weights(model)
    if is_first:
        weights += embedding_weights(model, seq_len)
    if is_last:
        weights += final_weights(model)
    if is_first and is_last and model.tied_head:
        weights = weights[:-1]  # the head is the embedding
    return weights


def head_weight(model: ModelSection) -> Weight:
    return Weight(name="head.weight", shape=(model.vocab_size, model.hidden_size), is_split=True)


def _norm_weights(name: str, model: ModelSection) -> tuple[Weight, ...]:
    parts = {"rms": ("weight",), "layer": ("weight", "bias"), "plain": ()}[model.norm]
    return tuple(Weight(name=f"{name}.{part}", shape=(model.hidden_size,), is_split=False) for part in parts)


def layer_flops(model: ModelSection, seq_len: int) -> int:
    """Forward FLOPs of one application of one layer to one token of a sequence of `seq_len`."""
    matrices = sum(weight.numel for weight in layer_weights(model) if len(weight.shape) == 2)
    return 2 * matrices + 4 * seq_len * model.num_attention_heads * model.head_dim


def head_flops(model: ModelSection) -> int:
    """Forward FLOPs of the head for one token."""
    return 2 * head_weight(model).numel


def forward_flops_per_token(model: ModelSection, seq_len: int, num_loops: int | None = None) -> int:
    """Forward FLOPs for one token, every loop counted.

    Args:
        model: shape of the model.
        seq_len: tokens per sequence; attention is counted over all of them.
        num_loops: loops actually run; the configuration's by default.
    """
    return model.effective_depth(num_loops) * layer_flops(model, seq_len) + head_flops(model)


def train_flops_per_token(
    model: ModelSection, seq_len: int, num_loops: int | None = None, recompute: Recompute = "none"
) -> int:
    """Forward and backward FLOPs for one token.

    Args:
        model: shape of the model.
        seq_len: tokens per sequence.
        num_loops: loops actually run; the configuration's by default.
        recompute: what the backward pass computes again. MFU and `train_flops` use "none", the work the model asks for;
            with the run's own mode this is the work the machine does.
    """
    flops = 3 * forward_flops_per_token(model, seq_len, num_loops)
    if recompute == "none":
        return flops
    layers = units = model.effective_depth(num_loops)
    if recompute == "loop":
        layers -= model.num_prelude_layers + model.num_coda_layers
        units = layers // model.pass_layers
    # a unit's last output is not needed again, so torch stops before it
    last_product = 2 * model.ffn_size * model.hidden_size
    return flops + layers * layer_flops(model, seq_len) - units * last_product
