"""A vector for each loop is added to the state when the loop begins (Dehghani et al. 2019, "Universal transformers",
arXiv 1807.03819, section 2.1, learned here). Beyond the trained loops the last vector repeats."""

from typing import TYPE_CHECKING

from pretrain.model.loop.variant import Held, PerLoop, trained
from pretrain.model.weight_kinds import Weights, loop_table

if TYPE_CHECKING:
    from torch import Tensor


class LoopEmbedding(PerLoop):
    def weights(self) -> Weights:
        return {"embedding": loop_table(self.shape.num_loops, self.shape.width, "normal")}

    def enter(self, held: Held, states: "Tensor", loop: int) -> "Tensor":
        table = held["embedding"]
        return states + table[trained(loop, self.shape.num_loops)]
