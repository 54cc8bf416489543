"""Which loops the training loss is of, as configuration: `train.loop_loss`."""

import math
from typing import Annotated, Literal

from pydantic import Field

from pretrain.model.count import Outputs
from pretrain.schema.section import Section


class LoopLossSection(Section):
    over: Literal["last", "every", "expected", "consistent"] = "last"
    """Loops whose output the loss is of: the last alone; every one, weighted (deep supervision); the one after which
    a token stops, as the gate of model.loop.exit expects it (Ouro); or the last and an earlier one, drawn in each
    step, whose final state is drawn to that of the last (LoopFormer). The state after a loop goes through coda, norm
    and head, as if the model had no more loops."""
    weights: Literal["uniform", "linear"] | tuple[Annotated[float, Field(gt=0)], ...] = "uniform"
    """Weights of the loops with over=every: equal, growing with the number of the loop, or one each as they are given
    (the last one serves later loops too); scaled to a sum of 1 over the loops of the step."""

    prior: Literal["uniform", "geometric", "poisson"] = "uniform"
    """Distribution over the loops of the step that the gate is drawn to with over=expected; uniform rewards its
    entropy (Ouro). Poisson: of the loops after the first."""
    prior_mean: float = Field(default=4.0, gt=1)
    """Mean loop count of a geometric or Poisson prior, before it is cut to the loops of the step."""
    prior_weight: float = Field(default=0.1, ge=0)
    """β: weight of KL(exit distribution ‖ prior) in the loss."""

    short_weight: float = Field(default=0.1, ge=0)
    """Weight of the loss of the earlier loop with over=consistent, beside 1 of the last."""
    consistency_weight: float = Field(default=0.1, ge=0)
    """Weight with over=consistent of the mean square, over width, of the difference of both final states."""

    @property
    def is_of_every_loop(self) -> bool:
        """Whether any loop may have a loss of its own."""
        return self.over != "last"

    @property
    def outputs(self) -> Outputs:
        """Loops after which coda and head run in a step."""
        return {"last": "last", "consistent": "two"}.get(self.over, "every")  # type: ignore[return-value]

    def without_effect(self) -> dict[str, str]:
        of_prior, of_short = ("prior", "prior_mean", "prior_weight"), ("short_weight", "consistency_weight")
        unread = {
            "last": ("weights", *of_prior, *of_short), "every": (*of_prior, *of_short),
            "expected": ("weights", *of_short), "consistent": ("weights", *of_prior),
        }[self.over]  # fmt: skip
        uniform = {} if self.prior != "uniform" else {"prior_mean": "prior=uniform"}
        return uniform | dict.fromkeys(unread, f"over={self.over}")

    def weights_of(self, num_passes: int) -> list[float]:
        """Weights of the losses of `num_passes` loops; their sum is 1. With over=consistent, of the last alone."""
        if self.over == "consistent":
            return [0.0] * (num_passes - 1) + [1.0]
        if isinstance(self.weights, tuple):
            raw = [self.weights[min(loop, len(self.weights) - 1)] for loop in range(num_passes)]
        else:
            raw = [1.0 if self.weights == "uniform" else loop + 1.0 for loop in range(num_passes)]
        return [weight / sum(raw) for weight in raw]

    def log_prior(self, num_passes: int) -> list[float]:
        """Log-probabilities of the prior on `num_passes` loops."""
        rate = self.prior_mean - 1
        if self.prior == "poisson":
            raw = [loop * math.log(rate) - math.lgamma(loop + 1) for loop in range(num_passes)]
        else:
            slope = math.log(rate / self.prior_mean) if self.prior == "geometric" else 0.0
            raw = [loop * slope for loop in range(num_passes)]
        largest = max(raw)
        total = largest + math.log(sum(math.exp(value - largest) for value in raw))
        return [value - total for value in raw]
