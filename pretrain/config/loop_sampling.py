"""How many loops a step of training runs and how far back its gradient goes, as configuration; the numbers of a step
come from `pretrain/optim/loop_count.py`."""

from typing import Literal

from pydantic import Field, model_validator

from pretrain.model.config import ModelSection
from pretrain.schema.section import Section


class GrowthSection(Section):
    """A number that grows over the steps of a run: `start` until the share `begin` of `train.steps`, then in a straight
    line, its full value from the share `end` on."""

    start: int | None = Field(default=None, gt=0)
    """Value at which training starts, below the full one. Default: the full value from the first step on."""
    begin: float = Field(default=0.0, ge=0, le=1)
    """Share of train.steps after which it grows."""
    end: float = Field(default=1.0, ge=0, le=1)
    """Share of train.steps from which on it has its full value; equal to begin: it jumps."""

    def without_effect(self) -> dict[str, str]:
        return {} if self.start is not None else dict.fromkeys(("begin", "end"), "start=null")

    def at(self, full: int, step: int, steps: int) -> float:
        """The value in a step, counted from 0, of a run of `steps`; its full value is `full`."""
        if self.start is None or step >= self.end * steps:
            return full
        passed = max(0.0, step - self.begin * steps) / ((self.end - self.begin) * steps or 1)
        return self.start + passed * (full - self.start)

    def mean(self, full: int) -> float:
        """Mean of the value over a long run."""
        return full if self.start is None else full - (full - self.start) * (self.begin + self.end) / 2

    def require_below(self, key: str, full_key: str, full: int) -> None:
        """Raise a ValueError unless the section, at `key`, leaves its value room to grow."""
        if self.start is not None and self.start >= full:
            raise ValueError(f"{key}.start={self.start} must be below {full_key}={full}, to which it grows")

    @model_validator(mode="after")
    def _check_order(self) -> "GrowthSection":
        if self.begin > self.end:
            raise ValueError(f"growth begins at {self.begin} of the steps, after its end at {self.end}")
        return self


class LoopSamplingSection(Section):
    distribution: Literal["fixed", "uniform", "poisson", "poisson_lognormal"] = "fixed"
    """Loop count of a step: always model.num_loops; uniform in [minimum, maximum]; 1 + Poisson; or 1 + Poisson of a
    log-normal rate (Huginn)."""
    minimum: int = Field(default=1, gt=0)
    """Smallest loop count drawn."""
    maximum: int = Field(default=32, gt=0)
    """Largest loop count drawn; larger draws are cut to it."""
    sigma: float = Field(default=0.5, ge=0, le=10)
    """Log-normal spread of the Poisson rate; the mean count is model.num_loops."""
    per: Literal["step", "sequence"] = "step"
    """What has a loop count of its own: each step, or each sequence, which leaves the batch when its loops are over."""
    growth: GrowthSection = GrowthSection()
    """What grows over the steps: the count (fixed), the mean (poisson, poisson_lognormal) or the maximum (uniform)."""

    def without_effect(self) -> dict[str, str]:
        unread = {"fixed": ("minimum", "maximum", "sigma", "per"), "poisson_lognormal": ()}.get(
            self.distribution, ("sigma",)
        )
        return dict.fromkeys(unread, f"distribution={self.distribution}")

    @model_validator(mode="after")
    def _check_range(self) -> "LoopSamplingSection":
        if self.minimum > self.maximum:
            raise ValueError(f"train.loop_sampling.minimum={self.minimum} is larger than maximum={self.maximum}")
        start = self.growth.start
        if self.distribution == "uniform" and start is not None and start < self.minimum:
            raise ValueError(f"train.loop_sampling.growth.start={start} is below minimum={self.minimum}")
        return self

    def full(self, num_loops: int) -> tuple[str, int]:
        """Key and value of what growth ends at; `num_loops` is the model's."""
        if self.distribution == "uniform":
            return "train.loop_sampling.maximum", self.maximum
        return "model.num_loops", num_loops


def require_gradient(model: ModelSection, backprop_loops: int, max_loops: int) -> None:
    """Raise a ValueError if some weights would get no gradient where it reaches back `backprop_loops` loops of
    `max_loops`: prelude and embedding get theirs through the injection alone."""
    if model.num_blocks > 1:
        raise ValueError(f"train.backprop_loops={backprop_loops}: a block-regularised model has no loops")
    loop = model.loop
    period = {"own": 1, "first": 1 if loop.keys_window else max_loops, "every": loop.keys_every}[loop.keys]
    if backprop_loops < min(period, max_loops):
        raise ValueError(
            f"train.backprop_loops={backprop_loops} with up to {max_loops} loops can leave the matrices of keys and "
            f"values without gradient, as model.loop.keys={loop.keys}: let it be at least {period}, or choose keys=own"
        )
    if backprop_loops < max_loops and (loop.injection == "none" or loop.injection_at == "first"):
        found = f"injection={loop.injection}" if loop.injection == "none" else "injection_at=first"
        raise ValueError(
            f"train.backprop_loops={backprop_loops} with up to {max_loops} loops leaves prelude and embedding without "
            f"gradient, as model.loop.{found}: let the injection act at later passes"
        )
