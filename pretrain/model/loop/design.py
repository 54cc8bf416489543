"""The design of a model's loop: one variant of each kind, together. What the model, its counts and the dry run ask.

    carried, states = what the first stage keeps of the states before the loop, and the start state
    pass begins:     injection, then what this loop adds                            (first stage)
    layer applied:   PerLoop.normed, .linear, .update                               (every stage)

No torch at import."""

from typing import TYPE_CHECKING, Any

from pretrain.model.loop.tables import INJECTIONS, PER_LOOP, STARTS
from pretrain.model.loop.variant import Held, NormalNoise, Shape
from pretrain.model.weight_kinds import Weights, inside

if TYPE_CHECKING:
    from torch import Tensor


class LoopDesign:
    """The variants that a configuration chooses (`LoopSection`), for a model of a shape."""

    def __init__(self, section: Any, shape: Shape) -> None:
        self.section = section
        tables = ("injection", INJECTIONS), ("start", STARTS), ("per_loop", PER_LOOP)
        chosen = ((table, getattr(section, kind)) for kind, table in tables)
        self.injection, self.start, self.per_loop = (
            table[name](shape, getattr(section, name, None)) for table, name in chosen
        )

    def is_plain(self, num_passes: int) -> bool:
        """Whether a model of plain layers, repeated so often, computes the same."""
        injects = self.carries and any(map(self.injects, range(num_passes)))
        return (self.section.start, self.section.per_loop, injects) == ("prelude", "none", False)

    @property
    def has_loop_weights(self) -> bool:
        """Whether loops have weights of their own."""
        return bool(self.per_loop.weights() or self.per_loop.layer_weights())

    @property
    def carries(self) -> bool:
        """Whether the states before the loop are kept for later."""
        return self.injection.carries

    def injects(self, loop: int) -> bool:
        """Whether the injection acts at the beginning of pass `loop`."""
        return {"later": loop > 0, "every": True, "first": loop == 0}[self.section.injection_at]

    def weights(self) -> Weights:
        """Weights outside the layers, all on the first stage."""
        return inside({"injection": self.injection.weights(), "per_loop": self.per_loop.weights()})

    def flops(self, num_passes: int) -> int:
        """Forward FLOPs outside the layers, for one token."""
        return sum(self.injection.flops() for loop in range(num_passes) if self.injects(loop))

    def begin(self, states: "Tensor", noise: NormalNoise) -> tuple["Tensor", "Tensor | None"]:
        """States [t, d] before the loop -> the start state, and what `enter` needs of them, if anything."""
        return self.start.begin(states, noise), states if self.carries else None

    def enter(self, injection: Held, per_loop: Held, states: "Tensor", carried: "Tensor | None", loop: int) -> "Tensor":
        """The states [t, d] with which a pass begins, from those that the pass before left."""
        if self.carries and self.injects(loop):
            assert carried is not None, "the first stage carries the states before the loop"
            states = self.injection.enter(injection, states, carried, loop)
        return self.per_loop.enter(per_loop, states, loop)
