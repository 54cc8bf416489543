"""The state before the loop is added when a pass begins: x + e (Yang et al. 2024, arXiv 2311.12424, section 3)."""

from typing import TYPE_CHECKING, ClassVar

from pretrain.model.loop.variant import Held, Injection

if TYPE_CHECKING:
    from torch import Tensor


class Add(Injection):
    carries: ClassVar[bool] = True

    def enter(self, held: Held, states: "Tensor", carried: "Tensor", loop: int) -> "Tensor":
        return states + carried
