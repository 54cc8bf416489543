"""Parameters and floating-point operations of the model, exactly, from its configuration alone (no torch).

Parameters: the weights of `pretrain/model/weights.py`; a shared weight counts once.

FLOPs: 2·m·n·k for a matrix product, so 2 for each weight of a linear layer and token, for *every application* of the
shared block:

    layer    = 2·(weights of its matrices) + 4·s·h·e           a token; 2·s·h·e each for q·kᵀ and for the mixing of
                                                               values (h heads of e)
    forward  = (prelude + k·L + coda) · layer + 2·d·v          v: vocabulary; an embedding is a look-up, 0; plus
                                                               what the design of the loop says; a loop that reads
                                                               another's keys and values (`model.loop.keys`) computes
                                                               none; a window of its own, of w tokens, has 4·2w·h·e
                                                               more: blocks of w queries look at 2w keys, the last
                                                               filled up
    training = 3 · forward (+ forward of what is recomputed)   backward = 2 · forward: one product for each of the two
                                                               operands; of passes cut off by train.backprop_loops
                                                               none, nor of their keys and values that others read;
                                                               nor has a start state without the input
    recomputed = passes with a gradient, or their layers and those outside the loop, each unit up to the last tensor
                                                               that its gradient needs: without the product that ends
                                                               it, unless a norm or the design looks at what that gives;
                                                               of segments all passes with a gradient once more, whole;
                                                               of activations of feed-forwards nothing, unless the
                                                               design looks at what their last product reads

Attention is counted over the full s × s square although it is causal: that is what `torch.utils.flop_counter` counts
and how MFU is usually stated (Chowdhery et al. 2022, appendix B). Only matrix products are counted, so neither gates of
windows, a product of vectors for each head, nor a fused kernel's second computation of the scores. The rule of thumb
6·N misses attention and, above all, counts a block once that runs L times.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pretrain.model.config import KEEPS_LAYERS, ModelSection, Recompute
from pretrain.model.loop.recurrence import WHOLE, Recurrence, Stage
from pretrain.model.weight_kinds import Weight
from pretrain.model.weights import head_weights, layer_weights, loop_design, stage_weights

Outputs = Literal["last", "two", "every"]
"""Loops after which coda and head run: the last, one more, or every one."""
LOSS_BLOCK_TOKENS = 2048
"""Tokens whose logits the loss of a whole head holds at a time (`pretrain/model/kernels/head_loss.py`). Fewer save
memory; but each block reads and writes the whole [v, d] gradient of the head."""


def count_parameters(model: ModelSection, seq_len: int) -> dict[str, int]:
    """Parameters by part of the model, in the order of a token's way; parts without parameters are left out.

    Learned positions, of `seq_len` rows, count to the embedding, and a tied head to it alone; a loop block counts once,
    whatever the loop count, and all blocks of a block-regularised model together.
    """
    sizes: Counter[str] = Counter()
    for name, weight in stage_weights(model, seq_len).items():
        sizes[name.partition(".")[0].removeprefix("position_")] += weight.numel
    return dict(sizes)


def count_shared(model: ModelSection, seq_len: int) -> int:
    """Parameters of the loop block that all loops apply: without those that each has for itself."""
    own = loop_design(model).per_loop.has_own_weights
    weights = stage_weights(model, seq_len).items()
    return sum(
        weight.numel for name, weight in weights if name.startswith("loop.") and not (own and ".per_loop." in name)
    )


def count(weights: Iterable[Weight], num_tensor_ranks: int = 1) -> int:
    """Parameters of `weights` that one of `num_tensor_ranks` tensor-parallel ranks holds."""
    return sum(weight.numel // (1 if weight.split is None else num_tensor_ranks) for weight in weights)


def layer_flops(model: ModelSection, num_keys: int) -> int:
    """Forward FLOPs of one application of one layer to one token that looks at `num_keys` positions."""
    matrices = sum(weight.numel for weight in layer_weights(model).values() if len(weight.shape) == 2)
    return 2 * matrices + attention_flops(model, num_keys)


def attention_flops(model: ModelSection, num_keys: int) -> int:
    """Forward FLOPs of one token's scores over `num_keys` positions, and of mixing their values."""
    return 4 * num_keys * model.num_attention_heads * model.head_dim


def window_flops(model: ModelSection, num_keys: int, window: int) -> int:
    """`attention_flops` over the newest `window` of the keys: blocks of `window` queries look at twice as many keys,
    and the last block of a sequence is filled up."""
    if num_keys <= 2 * window:
        return attention_flops(model, num_keys)
    return attention_flops(model, 2 * window) * (-(-num_keys // window) * window) // num_keys


def pass_flops(model: ModelSection, num_keys: int, passes: range) -> int:
    """Forward FLOPs of one layer of the block in these passes, for one token that looks at `num_keys` positions."""
    design, weights = loop_design(model), layer_weights(model)
    of_keys = 2 * sum(weights[f"attention.{name}.weight"].numel for name in ("key", "value"))
    windows = [window for loop in passes if (window := design.window_of(loop)) is not None]
    num_reading = sum(design.keys_of(loop) != loop for loop in passes) - len(windows)
    in_windows = sum(window_flops(model, num_keys, window) for window in windows)
    return len(passes) * (layer_flops(model, num_keys) + design.layer_flops()) + in_windows - num_reading * of_keys


def cached_numbers(model: ModelSection, num_loops: int | None = None) -> int:
    """Numbers of keys and values that a cache holds for a token, but for those of windows; at the configuration's loop
    count by default."""
    return 2 * model.kv_heads * model.head_dim * model.cached_depth(num_loops)


def window_numbers(model: ModelSection, num_loops: int | None = None) -> int:
    """Numbers of keys and values that a cache holds for the windows of a sequence (`model.loop.keys_window`), however
    long it is beyond that; at the configuration's loop count by default."""
    windows = (model.window_of(loop) or 0 for loop in range(model.num_passes(num_loops)))
    return 2 * model.kv_heads * model.head_dim * model.pass_layers * sum(windows)


def body_flops(model: ModelSection, num_keys: int, num_loops: int | None = None, stage: Stage = WHOLE) -> int:
    """Forward FLOPs for one token that looks at `num_keys` positions, of what a stage holds between embedding and final
    norm; at the configuration's loop count by default."""
    held, passes = Recurrence(config=model, stage=stage), model.num_passes(num_loops)
    outside = (held.num_prelude_layers + held.num_coda_layers) * layer_flops(model, num_keys)
    in_loop = held.num_pass_layers * pass_flops(model, num_keys, range(passes))
    return outside + in_loop + (loop_design(model).flops(passes) if stage.is_first else 0)


def head_flops(model: ModelSection) -> int:
    """Forward FLOPs of the head for one token."""
    return 2 * head_weights(model)["weight"].numel


def forward_flops_per_token(model: ModelSection, seq_len: int, num_loops: int | None = None) -> int:
    """Forward FLOPs for one token of a sequence of `seq_len`, every loop counted; at the configuration's loop count by
    default."""
    return body_flops(model, seq_len, num_loops) + head_flops(model)


def train_flops_per_token(
    model: ModelSection,
    seq_len: int,
    num_loops: int | None = None,
    recompute: Recompute = "none",
    *,
    outputs: Outputs = "last",
    backprop_loops: int | None = None,
) -> int:
    """Forward and backward FLOPs for one token, with what the backward pass computes again; coda and head run after
    `outputs` of the loops (`train.loop_loss`); passes before the last `backprop_loops` (all by default) have no
    backward.

    MFU and `train_flops` use "none", the work the model asks for; the run's own mode gives the work the machine does.
    """
    passes, design = model.num_passes(num_loops), loop_design(model)
    more = {"last": 0, "two": min(1, passes - 1), "every": passes - 1}[outputs]
    codas = more * model.num_coda_layers
    num_cut = max(0, passes - (backprop_loops or passes))
    cut, kept = (
        model.pass_layers * pass_flops(model, seq_len, some) for some in (range(num_cut), range(num_cut, passes))
    )
    flops = 3 * (forward_flops_per_token(model, seq_len, num_loops) + more * head_flops(model))
    flops += 3 * codas * layer_flops(model, seq_len) - 2 * (cut + design.flops(num_cut))
    num_outside = model.num_prelude_layers + model.num_coda_layers + codas
    outside = num_outside * layer_flops(model, seq_len)
    num_given = sum(design.keys_of(loop) < num_cut for loop in range(num_cut, passes))
    flops -= num_given * model.pass_layers * attention_flops(model, seq_len)  # of two products one operand has none
    flops -= design.start_flops() if num_cut == 0 else 0
    in_layers = kept + outside
    segments = kept + design.flops(passes) - design.flops(num_cut)
    of_layers = recompute not in (*KEEPS_LAYERS, "loop")
    selective = (passes - num_cut) * model.pass_layers
    selective *= design.per_loop.selective_flops(2 * model.ffn_size * model.hidden_size)
    again = {"none": 0, "selective": selective, "loop": kept, "segment": segments + in_layers}.get(recompute, in_layers)
    units = 0 if recompute in KEEPS_LAYERS else (passes - num_cut) * (model.pass_layers if of_layers else 1)
    last = 2 * model.ffn_size * model.hidden_size if model.norm_place == "before" else 0
    ends = units * (design.last_flops(last) if last else 0) + num_outside * last * of_layers
    return flops + again - ends
