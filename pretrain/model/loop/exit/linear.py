"""A gate without a norm of its own: λ = sigmoid(w · x + b) of the state x that a pass left. With
`model.loop.final_norm=passes` that state is normed, and this is Ouro's gate, read where Ouro reads it (Zhu et al. 2025,
arXiv 2510.25741, section 3)."""

from typing import TYPE_CHECKING

from pretrain.model.loop.exit.gate import Gate
from pretrain.model.loop.variant import Held

if TYPE_CHECKING:
    from torch import Tensor


class LinearGate(Gate):
    def log_odds(self, held: Held, states: "Tensor") -> "Tensor":
        wide = states if states.dtype.itemsize >= 4 else states.float()
        return (wide * held["direction"]).sum(-1) + held["bias"]
