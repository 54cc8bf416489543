"""What differs inside the layers of the loop block: from other layers, and from loop to loop."""

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from pretrain.model.loop.variant import Held, Part, PerLoop, Residual, Shape

if TYPE_CHECKING:
    from torch import Tensor


class InLayers(NamedTuple):
    """Of all layers of the block."""

    variant: PerLoop
    update_scale: float
    """Factor of what a half of a layer adds to the residual stream."""
    residual: Residual

    def at(self, held: Held, connections: Held, number: int, loop: int | tuple[int, ...]) -> "InThisLoop":
        """Of layer `number` of the block, which has these weights of `variant` and of `residual`, in one loop, or in
        that of each token."""
        return InThisLoop(self.variant, self.update_scale, held, loop, self.residual, connections, number)


class InThisLoop(NamedTuple):
    """The hooks of `PerLoop` and `Residual` as a layer calls them."""

    variant: PerLoop
    update_scale: float
    held: Held
    loop: int | tuple[int, ...]
    """Or that of each token, alike ones in a row."""
    residual: Residual
    connections: Held
    number: int

    def branch(self, part: Part, states: "Tensor") -> "tuple[Tensor, Callable[[Tensor], Tensor]]":
        return self.connections(self.residual.branch, part, states, self.number)

    def normed(self, part: Part, states: "Tensor") -> "Tensor":
        return self._in_each(lambda loop, states: self.held(self.variant.normed, part, states, loop), states)

    def linear(self, name: str, inputs: "Tensor", outputs: "Tensor") -> "Tensor":
        act = self.variant.linear
        return self._in_each(lambda loop, *states: self.held(act, name, *states, loop), inputs, outputs)

    def update(self, part: Part, states: "Tensor") -> "Tensor":
        states = self._in_each(lambda loop, states: self.held(self.variant.update, part, states, loop), states)
        return states if self.update_scale == 1 else self.update_scale * states

    def _in_each(self, act: "Callable[..., Tensor]", *states: "Tensor") -> "Tensor":
        """What a hook, called with a loop and the states [t, ...] of tokens in it, makes of those of all tokens."""
        if isinstance(self.loop, int):
            return act(self.loop, *states)
        if not self.variant.changes_layers:
            return states[-1]
        joined, start = states[-1].new_empty(states[-1].shape), 0
        for loop, tokens in groupby(self.loop):
            rows = slice(start, start := start + len(list(tokens)))
            joined[rows] = act(loop, *(each[rows] for each in states))
        return joined


class _NoWeights(dict[str, Any]):
    """Of layers without any."""

    def __call__(self, act: Callable[..., Any], *arguments: Any) -> Any:
        return act(self, *arguments)


_SHAPE = Shape(width=0, num_loops=1, num_layers=1, linears={})
ALIKE = InThisLoop(PerLoop(_SHAPE, None), 1.0, _NoWeights(), 0, Residual(_SHAPE, None), _NoWeights(), 0)
"""Of layers that are the same in every loop, or outside it."""
