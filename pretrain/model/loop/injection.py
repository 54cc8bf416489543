"""What re-enters at the start of a loop, as modules. Their weights and costs: `pretrain/model/loop/injections.py`.

An injection says what the first pipeline stage carries from before the loop (`carry`), and how a loop begins with it
(`enter`). The model, and the ring that runs its stages, keep the carried tensor of each batch and bring its gradient
back to where it was made; they know nothing else of injections.
"""

from torch import Tensor, nn


class Injection(nn.Module):
    """Nothing re-enters (`none`): the state goes from loop to loop. Base class of the other injections.

    Shapes: states and what is carried are [t, d], under sequence parallelism this rank's rows.
    """

    def carry(self, states: Tensor) -> Tensor | None:
        """What is kept of the states before the loop, for `enter`; None = nothing."""
        return None

    def enter(self, states: Tensor, carried: Tensor | None, loop: int) -> Tensor:
        """The states with which pass `loop`, from 0, begins.

        Args:
            states: as the pass before left them; for pass 0, those before the loop.
            carried: what `carry` gave.
            loop: number of the pass.
        """
        return states


class AddedInput(Injection):
    """The state before the loop is added at the start of every loop but the first (`add`)."""

    def carry(self, states: Tensor) -> Tensor | None:
        return states

    def enter(self, states: Tensor, carried: Tensor | None, loop: int) -> Tensor:
        if loop == 0:
            return states
        assert carried is not None, "the first stage carries the state before the loop"
        return states + carried
