"""The first pass begins with zeros; the input comes in by injection alone (Yang et al. 2024, arXiv 2311.12424)."""

from typing import TYPE_CHECKING, ClassVar

from pretrain.model.loop.variant import NormalNoise, Start

if TYPE_CHECKING:
    from torch import Tensor


class Zeros(Start):
    uses_input: ClassVar[bool] = False

    def begin(self, states: "Tensor", noise: NormalNoise) -> "Tensor":
        return states.new_zeros(states.shape)
