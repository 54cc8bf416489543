"""What differs inside the layers of the loop block: from other layers, and from loop to loop."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pretrain.model.loop.variant import Held, Part, PerLoop, Shape

if TYPE_CHECKING:
    from torch import Tensor


class InLayers(NamedTuple):
    """Of all layers of the block."""

    variant: PerLoop
    update_scale: float
    """Factor of what a half of a layer adds to the residual stream."""

    def at(self, held: Held, loop: int) -> "InThisLoop":
        """Of one layer, which has these weights, in one loop."""
        return InThisLoop(self.variant, self.update_scale, held, loop)


class InThisLoop(NamedTuple):
    """The hooks of `PerLoop` as a layer calls them."""

    variant: PerLoop
    update_scale: float
    held: Held
    loop: int

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


ALIKE = InThisLoop(PerLoop(Shape(width=0, num_loops=1, linears={}), None), 1.0, _NoWeights(), 0)
"""Of layers that are the same in every loop, or outside it."""
