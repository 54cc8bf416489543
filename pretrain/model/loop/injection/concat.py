"""State and input of the loop side by side through one matrix: W [x; e] (Geiping et al. 2025, "Huginn", arXiv
2502.05171, section 3.2). The two halves of the matrix are kept apart, x U + e V."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pretrain.model.loop.variant import Held, Injection
from pretrain.model.weight_kinds import Weights, inside, square

if TYPE_CHECKING:
    from torch import Tensor


class Concat(Injection):
    carries: ClassVar[bool] = True

    def weights(self) -> Weights:
        return inside({name: square(self.shape.width) for name in ("state", "input")})

    def identity(self) -> Mapping[str, Literal["identity", "zeros"]]:
        return {"state.weight": "identity", "input.weight": "zeros"}

    def flops(self) -> int:
        return 2 * 2 * self.shape.width**2

    def state_flops(self) -> int:
        return 2 * self.shape.width**2

    def enter(self, held: Held, states: "Tensor", carried: "Tensor", loop: int) -> "Tensor":
        return held["state"](states) + held["input"](carried)
