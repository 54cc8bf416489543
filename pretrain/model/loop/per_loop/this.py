"""What differs inside the layers of the loop block: from other layers, and from loop to loop."""

from collections.abc import Callable
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

    def at(self, held: Held, connections: Held, number: int, loop: int) -> "InThisLoop":
        """Of layer `number` of the block, which has these weights of `variant` and of `residual`, in one loop."""
        return InThisLoop(self.variant, self.update_scale, held, loop, self.residual, connections, number)


class InThisLoop(NamedTuple):
    """The hooks of `PerLoop` and `Residual` as a layer calls them."""

    variant: PerLoop
    update_scale: float
    held: Held
    loop: int
    residual: Residual
    connections: Held
    number: int

    def branch(self, part: Part, states: "Tensor") -> "tuple[Tensor, Callable[[Tensor], Tensor]]":
        return self.connections(self.residual.branch, part, states, self.number)

    def normed(self, part: Part, states: "Tensor") -> "Tensor":
        return self.held(self.variant.normed, part, states, self.loop)

    def linear(self, name: str, inputs: "Tensor", outputs: "Tensor") -> "Tensor":
        return self.held(self.variant.linear, name, inputs, outputs, self.loop)

    def update(self, part: Part, states: "Tensor") -> "Tensor":
        states = self.held(self.variant.update, part, states, self.loop)
        return states if self.update_scale == 1 else self.update_scale * states


class _NoWeights(dict[str, Any]):
    """Of layers without any."""

    def __call__(self, act: Callable[..., Any], *arguments: Any) -> Any:
        return act(self, *arguments)


_SHAPE = Shape(width=0, num_loops=1, num_layers=1, linears={})
ALIKE = InThisLoop(PerLoop(_SHAPE, None), 1.0, _NoWeights(), 0, Residual(_SHAPE, None), _NoWeights(), 0)
"""Of layers that are the same in every loop, or outside it."""
