"""What re-enters at the start of a loop: `model.input_injection`, by name.

A variant says what the first pipeline stage carries from before the loop (`carry`), and how a loop begins with it
(`enter`). Nothing else in the project knows injections: whoever runs the model keeps the carried tensor of each batch,
and the ring brings its gradient back to where it was made. A new variant is a class here or in a file beside this one,
a line in `INJECTIONS`, its name in `pretrain/config/model.py`, and its weights in `pretrain/model/weights.py`.
"""

from typing import ClassVar

from torch import Tensor, nn

from pretrain.model.modules import Modules
from pretrain.model.weights import Weights


class Injection(nn.Module):
    """Nothing re-enters (`none`): the state goes from loop to loop. Base class of the other variants.

    Shapes: states and what is carried are [t, d], under sequence parallelism this rank's rows.
    """

    can_unroll: ClassVar[bool] = True
    """Whether a model of plain layers, repeated L times, computes the same."""

    def __init__(self, modules: Modules, weights: Weights) -> None:
        """Args: what parameters are made of (`modules`), and of which shapes (`injection_weights`)."""
        super().__init__()

    def carry(self, states: Tensor) -> Tensor | None:
        """What is kept of the states before the loop, for `enter`; None = nothing."""
        return None

    def enter(self, states: Tensor, carried: Tensor | None, loop: int) -> Tensor:
        """The states with which loop `loop`, from 0, begins.

        Args:
            states: as the loop before left them; for loop 0, those before the loop.
            carried: what `carry` gave.
            loop: number of the pass.
        """
        return states


class AddedInput(Injection):
    """The state before the loop is added at the start of every loop but the first (`add`)."""

    can_unroll = False

    def carry(self, states: Tensor) -> Tensor | None:
        return states

    def enter(self, states: Tensor, carried: Tensor | None, loop: int) -> Tensor:
        if loop == 0:
            return states
        assert carried is not None, "the first stage carries the state before the loop"
        return states + carried


INJECTIONS: dict[str, type[Injection]] = {"none": Injection, "add": AddedInput}
