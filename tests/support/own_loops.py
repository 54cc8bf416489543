"""Variants of the loop as a user's file has them, one of each kind, with weights where the kind may have any."""

from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.model.loop.exit.gate import Gate
from pretrain.model.loop.variant import Held, Injection, NormalNoise, Part, PerLoop, Start
from pretrain.model.weight_kinds import Weights, inside, loop_table, square, stream_vector
from pretrain.schema.section import Field, Section

if TYPE_CHECKING:
    from torch import Tensor


class MixSection(Section):
    share: float = Field(default=0.5, gt=0, le=1)


class Mix(Injection):
    Section: ClassVar[Any] = MixSection
    carries: ClassVar[bool] = True

    def weights(self) -> Weights:
        return inside({"turn": square(self.shape.width)})

    def flops(self) -> int:
        return 2 * self.shape.width**2

    def enter(self, held: Held, states: "Tensor", carried: "Tensor", loop: int) -> "Tensor":
        return states + self.settings.share * held["turn"](carried) / (loop + 1)


class Half(Start):
    def begin(self, states: "Tensor", noise: NormalNoise) -> "Tensor":
        return 0.5 * states


class Louder(PerLoop):
    changes_layers: ClassVar[bool] = True

    def layer_weights(self) -> Weights:
        return {"volume": loop_table(self.shape.num_loops, self.shape.width, "ones")}

    def update(self, held: Held, part: Part, states: "Tensor", loop: int) -> "Tensor":
        return states * held["volume"][min(loop, self.shape.num_loops - 1)]


class OwnGate(Gate):
    Section: ClassVar[Any] = None

    def weights(self) -> Weights:
        return {"direction": stream_vector(self.shape.width, "ones"), "bias": stream_vector(1, 0.5)}

    def log_odds(self, held: Held, states: "Tensor") -> "Tensor":
        return states.mean(-1) * held["direction"].mean() + held["bias"]


LOOP: dict[str, Any] = {
    "injection": f"{__name__}:Mix", "start": f"{__name__}:Half", "per_loop": f"{__name__}:Louder",
    "own": {"injection": {"share": 0.25}},
}  # fmt: skip
