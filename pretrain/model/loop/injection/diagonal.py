"""A diagonal linear system driven by the input of the loop: a x + b e, with every a between 0 and 1 by construction, so
that the state stays bounded however often it loops (Prairie et al. 2026, "Parcae", arXiv 2604.12946).

It is one unit of time of dx/dt = -r x + c e, r = softplus(rate) > 0:

    a = exp(-r)
    b = c (1 - a) / r       zero-order hold: exact for an input that stays the same during a pass
    b = c                   Euler: its first-order approximation, and less stable where r is large

with c = r · gain, so that the state goes towards gain · e, or c = gain, which brings in all of the input where r is
small.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pretrain.model.loop.variant import Held, Injection
from pretrain.model.weight_kinds import Weights, stream_vector
from pretrain.schema.section import Field, Section

if TYPE_CHECKING:
    from torch import Tensor


class DiagonalSection(Section):
    decay: float = Field(default=0.5, gt=0, lt=1)
    """a of every channel at the start."""
    hold: Literal["zero_order", "euler"] = "zero_order"
    """How the input is integrated over a pass."""
    drive: Literal["scaled", "free"] = "scaled"
    """c: the gain times the rate of decay, or the gain alone."""


class Diagonal(Injection):
    Section: ClassVar[Any] = DiagonalSection
    carries: ClassVar[bool] = True

    def weights(self) -> Weights:
        rate = math.log(math.expm1(-math.log(self.settings.decay)))
        return {"rate": stream_vector(self.shape.width, rate), "gain": stream_vector(self.shape.width, 1.0)}

    def enter(self, held: Held, states: "Tensor", carried: "Tensor", loop: int) -> "Tensor":
        rate = held["rate"]
        log_decay = -(rate.clamp_min(0) + rate.abs().neg().exp().log1p())  # -softplus
        share = -log_decay.expm1() if self.settings.hold == "zero_order" else -log_decay
        if self.settings.drive == "free":
            share = share / (-log_decay).clamp_min(1e-30)
        return log_decay.exp() * states + share * held["gain"] * carried
