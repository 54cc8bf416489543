"""Which layers of an unlooped model become the loop block.

A loop of k layers over n blocks stands for n·k layers, from some first one on. Of all places the best is taken,

    with a text      where the loss on it is least after surgery: the blocks merged, or one block run twice;
    without          where successive blocks have the likest weights: the mean cosine of layers i and i + k over kinds
                     of matrices (`pretrain/model/block_similarity.py`).

Weights of published models are hardly alike (SmolLM2-135M: |cosine| below 0.01 everywhere), so the second says little;
the first costs one pass over part of the layers for each place. A LoRA or an injection does not enter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pretrain.model.block_similarity import BlockSimilarity
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import Context
from pretrain.model.loop.recurrence import Application

MOST_TOKENS, WINDOW = 1024, 512
"""Tokens of the text that are read, in rows of 512 at most."""


@dataclass(frozen=True)
class Place:
    """A place of the loop among the layers."""

    first: int
    """Layers before it."""
    after: int
    """Layers after it."""
    likeness: float
    """Mean cosine of the weights of its successive blocks."""
    loss: float | None = None
    """Nats a token after surgery."""


def places(similarities: Sequence[BlockSimilarity], num_layers: int, size: int, num_blocks: int) -> list[Place]:
    """Every place of `num_blocks` blocks, 2 or more, of `size` layers, from the first layer on.

    Args:
        similarities: cosines of layers i and i + size, for each kind of weight matrix.
        num_layers: of the model.
        size: k.
        num_blocks: n.
    """
    pairs = size * (num_blocks - 1)
    by_layer = [sum(cosines) / len(similarities) for cosines in zip(*(s.cosines for s in similarities), strict=True)]
    return [
        Place(first, num_layers - first - size * num_blocks, sum(by_layer[first : first + pairs]) / pairs)
        for first in range(num_layers - size * num_blocks + 1)
    ]


@torch.no_grad()
def with_losses(
    found: Sequence[Place], model: LoopedGPT, tokens: Tensor, blocks_at: Callable[[int], list[list[int]]],
    block: int | None,
) -> tuple[list[Place], float]:  # fmt: skip
    """The places with the loss on `tokens` [b, s] when the blocks there are merged, and the loss of the model itself.

    Args:
        found: places.
        model: the unlooped model.
        tokens: the text.
        blocks_at: layers of each pass through the loop, from its first layer.
        block: which of the blocks is used. Default: their mean.
    """
    context = model.context(tokens[:, :-1])
    states, _ = model.begin(tokens[:, :-1], context)
    entering = [states]
    for number in range(len(model.loop)):
        entering.append(_run(model, number, _weights(model, [number]), entering[-1], context))
    measured = []
    for place in found:
        blocks = blocks_at(place.first)
        states = entering[place.first]
        for _ in blocks:
            for same in zip(*blocks, strict=True):
                chosen = list(same) if block is None else [same[block]]
                states = _run(model, chosen[0], _weights(model, chosen), states, context)
        for number in range(len(model.loop) - place.after, len(model.loop)):
            states = _run(model, number, _weights(model, [number]), states, context)
        measured.append(replace(place, loss=_loss(model, states, context, tokens)))
    return measured, _loss(model, entering[-1], context, tokens)


def _loss(model: LoopedGPT, states: Tensor, context: Context, tokens: Tensor) -> float:
    """Nats a token of the states that leave the last layer."""
    logits = model.logits(model.finish(states, context, 1))
    return F.cross_entropy(logits.float(), tokens[:, 1:].flatten()).item()


def _weights(model: LoopedGPT, layers: Sequence[int]) -> dict[str, Tensor]:
    """The mean of the weights of these layers."""
    of_layers = [dict(model.loop[str(number)].named_parameters()) for number in layers]
    return {name: torch.stack([each[name] for each in of_layers]).mean(0) for name in of_layers[0]}


def _run(model: LoopedGPT, number: int, weights: dict[str, Tensor], states: Tensor, context: Context) -> Tensor:
    """A layer with these weights: [t, d] -> [t, d]."""
    return functional_call(model.loop[str(number)], weights, (states, context, Application(number, None)))


def choose(found: Sequence[Place]) -> Place:
    """The place with the least loss, or without losses with the likest blocks."""
    return min(found, key=lambda place: -place.likeness if place.loss is None else place.loss)


def table(
    found: Sequence[Place], chosen: Place, size: int, num_blocks: int, before: float | None
) -> list[str]:  # fmt: skip
    """A line for each place, the chosen one marked; `before` is the loss without surgery, if there are losses."""
    rows = [("before", "after", "likeness", *([] if before is None else ["loss"]), "")]
    for place in found:
        loss = [] if place.loss is None else [f"{place.loss:.3f}"]
        rows.append((f"{place.first}", f"{place.after}", f"{place.likeness:.4f}", *loss, "*" * (place == chosen)))
    title = f"{num_blocks} blocks of {size} layers: mean cosine of their weights"
    title += "" if before is None else f", nats a token with them in a loop ({before:.3f} without)"
    return [title, *("  ".join(map(str.rjust, row, (6, 5, 8, 6, 1))).rstrip() for row in rows)]
