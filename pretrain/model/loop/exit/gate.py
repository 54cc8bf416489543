"""A gate that looks at the state after a loop and says with which probability to stop there (Zhu et al. 2025, "Ouro",
arXiv 2510.25741, section 3): λ = sigmoid(w · x / rms(x) + b), one number a token. Stopping after loop t then has the
probability λ_t Π_{j<t} (1 - λ_j), and the last loop takes the rest: `pretrain/model/exits.py`. It learns from
`train.loop_loss.over=expected`. Unlike Ouro's it reads the state before coda and final norm, so that deciding costs
neither; Ouro's is `linear.py`."""

from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.model.loop.variant import Exit, Held
from pretrain.model.weight_kinds import Weights, stream_vector
from pretrain.schema.section import Field, Section

if TYPE_CHECKING:
    from torch import Tensor


class GateSection(Section):
    log_odds: float = Field(default=0.0, ge=-20, le=20)
    """b at the start: 0 stops after each loop with probability 1/2, -2 with 0.12."""


class Gate(Exit):
    Section: ClassVar[Any] = GateSection
    has_gate: ClassVar[bool] = True

    def weights(self) -> Weights:
        return {
            "direction": stream_vector(self.shape.width, "zeros"),
            "bias": stream_vector(1, float(self.settings.log_odds)),
        }

    def log_odds(self, held: Held, states: "Tensor") -> "Tensor":
        wide = states if states.dtype.itemsize >= 4 else states.float()
        unit = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return (unit * held["direction"]).sum(-1) + held["bias"]
