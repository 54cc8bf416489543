"""A gate between state and input of the loop, channel by channel: (1 - g) x + g e with g = sigmoid(W x + b) (the
coupled gate of Srivastava et al. 2015, "Highway networks", arXiv 1505.00387, section 2)."""

from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.model.loop.variant import Held, Injection
from pretrain.model.weight_kinds import Weights, inside, square, stream_vector
from pretrain.schema.section import Field, Section

if TYPE_CHECKING:
    from torch import Tensor


class GatedSection(Section):
    bias: float = Field(default=-2.0, ge=-20, le=20)
    """b at the start: -2 lets 12 % of the input in."""


class Gated(Injection):
    Section: ClassVar[Any] = GatedSection
    carries: ClassVar[bool] = True

    def weights(self) -> Weights:
        return {
            **inside({"gate": square(self.shape.width)}),
            "bias": stream_vector(self.shape.width, self.settings.bias),
        }

    def flops(self) -> int:
        return 2 * self.shape.width**2

    def state_flops(self) -> int:
        return self.flops()

    def enter(self, held: Held, states: "Tensor", carried: "Tensor", loop: int) -> "Tensor":
        gate = (held["gate"](states) + held["bias"]).sigmoid()
        return states + gate * (carried - states)
