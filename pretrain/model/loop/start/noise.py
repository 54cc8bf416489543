"""The first pass begins with normal noise, so that the loop learns to find its way from anywhere (Geiping et al.
2025, "Huginn", arXiv 2502.05171, section 3.1). In training the noise is a function of the sample and the position;
at evaluation of the position alone: whatever the batch, the ranks and the cache, a token begins with the same."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.model.loop.variant import NormalNoise, Start
from pretrain.schema.section import Field, Section

if TYPE_CHECKING:
    from torch import Tensor


class NoiseSection(Section):
    std: float = Field(default=1.0, gt=0)
    """Standard deviation."""
    within: float = Field(default=0.0, ge=0)
    """Standard deviations within which it lies, cut off there as in Huginn, where it is 3; 0: anywhere."""


class Noise(Start):
    Section: ClassVar[Any] = NoiseSection
    uses_input: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    def begin(self, states: "Tensor", noise: NormalNoise) -> "Tensor":
        drawn = noise(states)
        within = getattr(self.settings, "within", 0.0)  # older exports do not have it
        if within:  # the number that has the same share of what is left of the distribution below it
            root = math.sqrt(2)
            drawn = (root * (math.erf(within / root) * (drawn.double() / root).erf()).erfinv()).to(drawn.dtype)
        return self.settings.std * drawn
