"""Each loop scales the output of the shared norms by a vector of its own (as in Csordas et al. 2024, "MoEUT", arXiv
2405.16039, norms are what layers of a group do not share). Beyond the trained loops the last one repeats."""

from typing import TYPE_CHECKING, ClassVar

from pretrain.model.loop.variant import Held, Part, PerLoop, trained
from pretrain.model.weight_kinds import Weights, loop_table

if TYPE_CHECKING:
    from torch import Tensor


class NormScales(PerLoop):
    changes_layers: ClassVar[bool] = True

    def layer_weights(self) -> Weights:
        return {part: loop_table(self.shape.num_loops, self.shape.width, "ones") for part in ("attention", "ffn")}

    def normed(self, held: Held, part: Part, states: "Tensor", loop: int) -> "Tensor":
        table = held[part]
        return states * table[trained(loop, self.shape.num_loops)]
