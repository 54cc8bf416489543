"""Each loop adds to every matrix of the shared block a product of rank r of its own: y + (α/r) B A x (Bae et al.
2024, "Relaxed recursive transformers", arXiv 2410.20672, section 3.2). B begins with zeros, so the loops begin
alike. Beyond the trained loops the last one repeats."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.model.loop.variant import Held, PerLoop, trained
from pretrain.model.weight_kinds import Weight, Weights, inside
from pretrain.schema.section import Field, Section

if TYPE_CHECKING:
    from torch import Tensor


class LoraSection(Section):
    rank: int = Field(default=8, gt=0)
    """r."""
    alpha: float = Field(default=16.0, gt=0)
    """α; the product is scaled by α / r."""


class Lora(PerLoop):
    Section: ClassVar[Any] = LoraSection
    changes_layers: ClassVar[bool] = True

    def layer_weights(self) -> Weights:
        return inside(
            {
                f"{loop}.{path}": self._pair(matrix)
                for loop in range(self.shape.num_loops)
                for path, matrix in self.shape.linears.items()
            }
        )

    def _pair(self, matrix: Weight) -> Weights:
        """A and B of a matrix: where its outputs are split B is split like them, where its inputs are, A."""
        outputs, inputs = matrix.shape
        shared = Weight(shape=(), init="normal", decays=True)
        if matrix.split == 0:
            down = replace(shared, shape=(self.settings.rank, inputs), partial_under="tensor")
            up = replace(shared, shape=(outputs, self.settings.rank), init="zeros", split=0)
        else:
            down = replace(shared, shape=(self.settings.rank, inputs), split=1)
            up = replace(shared, shape=(outputs, self.settings.rank), init="zeros", partial_under="sequence")
        return {"down.weight": down, "up.weight": up}

    def layer_flops(self) -> int:
        return sum(2 * self.settings.rank * sum(matrix.shape) for matrix in self.shape.linears.values())

    def last_flops(self, plain: int) -> int:
        return 2 * self.settings.rank * self.shape.width  # B of the layer's last matrix

    def selective_flops(self, plain: int) -> int:
        return plain + 2 * self.settings.rank * self.shape.linears["ffn.down"].shape[1]  # and A, for B

    def linear(self, held: Held, name: str, inputs: "Tensor", outputs: "Tensor", loop: int) -> "Tensor":
        pair = f"{trained(loop, self.shape.num_loops)}.{name}"
        return outputs + self.settings.alpha / self.settings.rank * held[f"{pair}.up"](held[f"{pair}.down"](inputs))
