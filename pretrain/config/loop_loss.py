"""Which loops the training loss is of, as configuration: `train.loop_loss`."""

from typing import Annotated, Literal

from pydantic import Field

from pretrain.schema.section import Section


class LoopLossSection(Section):
    over: Literal["last", "every"] = "last"
    """Loops whose output the loss is of: the last alone, or every one, weighted (deep supervision). The state after a
    loop goes through coda, norm and head, as if the model had no more loops."""
    weights: Literal["uniform", "linear"] | tuple[Annotated[float, Field(gt=0)], ...] = "uniform"
    """Weights of the loops with over=every: equal, growing with the number of the loop, or one each as they are given
    (the last one serves later loops too); scaled to a sum of 1 over the loops of the step."""

    @property
    def is_of_every_loop(self) -> bool:
        """Whether coda and head run once a loop."""
        return self.over != "last"

    def without_effect(self) -> dict[str, str]:
        return {} if self.over == "every" else {"weights": f"over={self.over}"}

    def weights_of(self, num_passes: int) -> list[float]:
        """Weights of the losses of `num_passes` loops; their sum is 1."""
        if isinstance(self.weights, tuple):
            raw = [self.weights[min(loop, len(self.weights) - 1)] for loop in range(num_passes)]
        else:
            raw = [1.0 if self.weights == "uniform" else loop + 1.0 for loop in range(num_passes)]
        return [weight / sum(raw) for weight in raw]
