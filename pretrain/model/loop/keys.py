"""Which loop's keys and values a loop attends to, `model.loop.keys`. No torch at import.

    own      its own: every loop has keys, values and a cache of its own
    first    those of the first loop, for all loops
    every    those of the newest loop that has any, which is every n-th: 0, n, 2n, ...   (n: keys_every)

Queries are always the loop's own. So loops that compute no keys save their products and their part of the cache. It is
the sharing across layers of Brandon et al. 2024 (arXiv 2405.12981), with loops for layers; `first` is the recursive
sharing of Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524).

With `first`, later loops may attend to a window of their own keys and values too, those of the newest w tokens
(`keys_window`), a token itself among them. A gate of each head mixes what both give:

    g = sigmoid(u · q + c),    mixed = g · attention(q, first loop's) + (1 - g) · attention(q, own, newest w)

with a vector u and a number c of each head of a layer, shared by the loops, and the query q as attention sees it:
gated sliding-window attention of the Parallel Loop Transformer (Wu et al. 2025, arXiv 2510.24824). u and c begin as
zeros. The cache of a later loop ends at w tokens.

`last`, only the keys of the last loop, is refused: a loop would attend to what earlier tokens hold after all of theirs,
so training would run token after token (as the Feedback Transformer does, Fan et al. 2020, arXiv 2002.09402); where it
is used, to generate with a model that was trained otherwise (Geiping et al. 2025, arXiv 2502.05171, section 6), it
computes something else than training did.
"""

from typing import TYPE_CHECKING

from pretrain.model.loop.variant import Held
from pretrain.model.weight_kinds import Weight, Weights

if TYPE_CHECKING:
    from torch import Tensor

WHY_NOT_LAST = (
    "model.loop.keys=last cannot be trained exactly: a loop would attend to what earlier tokens hold after all of "
    "their loops, one token after the other; choose every, or first, with keys_window for later loops' newest keys"
)


def keys_of(keys: str, keys_every: int, loop: int) -> int:
    """The loop whose keys and values loop `loop` attends to, both counted from 0."""
    return {"own": loop, "first": 0, "every": loop - loop % keys_every}[keys]


def window_of(keys: str, keys_window: int, loop: int) -> int | None:
    """Tokens whose keys and values of loop `loop` itself it attends to beside those of `keys_of`; None: it has none."""
    return keys_window if keys_window and keys == "first" and loop > 0 else None


def window_weights(num_heads: int, head_dim: int) -> Weights:
    """Weights of the gate of one layer, heads split over ranks."""
    vectors = Weight(shape=(num_heads, head_dim), split=0, init="zeros", is_table=True)
    return {"gate": vectors, "offset": Weight(shape=(num_heads,), split=0, init="zeros")}


def gate_far_and_near(held: Held, queries: "Tensor", first: "Tensor", own: "Tensor") -> "Tensor":
    """[b, h, s, e] each: queries, what attention gives for them over the first loop's keys and values and over the
    window of the own -> what the gate makes of both."""
    log_odds = (queries * held["gate"][:, None]).sum(-1, keepdim=True) + held["offset"][:, None, None]
    return own + log_odds.sigmoid() * (first - own)
