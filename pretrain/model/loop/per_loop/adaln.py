"""The number of the loop shifts, scales and gates both halves of every layer (adaLN-zero of Peebles and Xie 2023,
"DiT", arXiv 2212.09748, section 3.2; conditioned on the loop as in LoopFormer, arXiv 2602.11451). The number enters
as sines and cosines, so loops beyond the trained ones continue smoothly. The map begins with zeros: all loops begin
alike."""

import math
from typing import TYPE_CHECKING, ClassVar

from pretrain.model.loop.variant import Held, Part, PerLoop
from pretrain.model.weight_kinds import Weights, loop_table

if TYPE_CHECKING:
    from torch import Tensor

NUM_FREQUENCIES = 8
LONGEST = 64.0
"""Loops to a radian of the slowest wave."""


class AdaLN(PerLoop):
    changes_layers: ClassVar[bool] = True
    has_own_weights: ClassVar[bool] = False

    def layer_weights(self) -> Weights:
        names = (f"{part}_{what}" for part in ("attention", "ffn") for what in ("shift", "scale", "gate"))
        return {name: loop_table(2 * NUM_FREQUENCIES, self.shape.width, "zeros") for name in names}

    def normed(self, held: Held, part: Part, states: "Tensor", loop: int) -> "Tensor":
        return states * (1 + _mixed(held[f"{part}_scale"], loop)) + _mixed(held[f"{part}_shift"], loop)

    def update(self, held: Held, part: Part, states: "Tensor", loop: int) -> "Tensor":
        return states * (1 + _mixed(held[f"{part}_gate"], loop))


def _mixed(table: "Tensor", loop: int) -> "Tensor":
    """Features of the loop [2f] times the table [2f, d]."""
    angles = [loop * LONGEST ** (-number / (NUM_FREQUENCIES - 1)) for number in range(NUM_FREQUENCIES)]
    features = table.new_tensor([[wave(angle)] for wave in (math.sin, math.cos) for angle in angles])
    return (features * table).sum(0)
