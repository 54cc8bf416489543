"""What differs inside the layers, in one loop: a variant, its weights in a layer, and the number of the loop."""

from typing import TYPE_CHECKING, NamedTuple

from pretrain.model.loop.variant import Held, Part, PerLoop, Shape

if TYPE_CHECKING:
    from torch import Tensor


class InThisLoop(NamedTuple):
    """The hooks of `PerLoop` as a layer calls them."""

    variant: PerLoop
    held: Held
    loop: int

    def normed(self, part: Part, states: "Tensor") -> "Tensor":
        return self.variant.normed(self.held, part, states, self.loop)

    def linear(self, name: str, inputs: "Tensor", outputs: "Tensor") -> "Tensor":
        return self.variant.linear(self.held, name, inputs, outputs, self.loop)

    def update(self, part: Part, states: "Tensor") -> "Tensor":
        return self.variant.update(self.held, part, states, self.loop)


ALIKE = InThisLoop(PerLoop(Shape(width=0, num_loops=1, linears={}), None), {}, 0)
"""Of layers that are the same in every loop, or outside it."""
