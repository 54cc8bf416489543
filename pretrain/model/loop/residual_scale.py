"""How much the layers of the loop block add to the residual stream, `model.loop.residual_scale`; of a block of k layers
made for L loops. No torch at import.

                 update, times       first weights, times
    one          1                   1
    sqrt         1/√L                1
    inverse      1/L                 1
    factored     1/(L·√k)            1
    deep_norm    1/α, α = (2N)^¼     β = (8N)^-¼             N = k·L
    deep_loop    1/α, α = (2N)^½     β = (8N)^-½             N = k·L

The updates of a shared block add up, so that with more loops the same learning rate moves the state further. The first
four: Wang et al. 2026 (arXiv 2606.18524), `factored` for k layers of their own weights.

The last two are x <- norm(α·x + f(x)): DeepNorm (Wang et al. 2022, arXiv 2203.00555, decoder) and DeepLoop (Li et al.
2026, arXiv 2607.13491), which counts the unrolled layers and raises the exponent from 1/4 to 1/2, because the updates
of a block are written and read again by all of its visits. Computed is norm(x + f(x)/α), the same but for
model.norm_epsilon; so the stream must be normed behind every sum, model.norm_place=sum (as both papers have it) or
around. β is for the first weights of value and output of attention and of up and down of the feed-forward layer, with
model.init_std, in place of the scale of projections into the residual stream. A gate keeps its own: with β too the
update would shrink by β³, where both papers' f shrinks by β². Layers of prelude and coda are as without.

Of DeepLoop the abstract and summaries were at hand, not its text or code; what its models do with a gate, or outside
the loop, is not known from them.
"""

from typing import Literal

ResidualScale = Literal["one", "sqrt", "inverse", "factored", "deep_norm", "deep_loop"]
EXPONENTS = {"deep_norm": 0.25, "deep_loop": 0.5}
"""Of those that norm the sum, and have first weights of their own."""
GAINED = ("attention.value", "attention.output", "ffn.up", "ffn.down")
"""Matrices of a layer that begin with β."""


def update_scale(name: ResidualScale, num_layers: int, num_loops: int) -> float:
    """Factor of what a half of a layer adds to the residual stream."""
    if name in EXPONENTS:
        return (2 * num_layers * num_loops) ** -EXPONENTS[name]
    factored = 1 / (num_loops * num_layers**0.5)
    return {"one": 1.0, "sqrt": num_loops**-0.5, "inverse": 1 / num_loops, "factored": factored}[name]


def first_gains(name: ResidualScale, num_layers: int, num_loops: int) -> dict[str, float]:
    """The matrices of a layer, by their paths inside it, whose first weights have model.init_std times a factor."""
    if name not in EXPONENTS:
        return {}
    return dict.fromkeys(GAINED, (8 * num_layers * num_loops) ** -EXPONENTS[name])
