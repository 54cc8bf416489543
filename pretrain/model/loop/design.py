"""The design of a model's loop: one variant of each kind, together. What the model, its counts and the dry run ask.

    carried, states = what the first stage keeps of the states before the loop, and the start state
    pass begins:     injection, then what this loop adds                            (first stage)
    layer applied:   PerLoop.normed, .linear, .update                               (every stage)

No torch at import."""

from typing import TYPE_CHECKING, Any

from pretrain.model.loop.keys import keys_of, window_of
from pretrain.model.loop.per_loop.this import InLayers
from pretrain.model.loop.plugins import plugin_settings
from pretrain.model.loop.residual_scale import first_gains, update_scale
from pretrain.model.loop.tables import TABLES, variant_class
from pretrain.model.loop.variant import Exit, FinalNorm, Held, Injection, NormalNoise, PerLoop, Residual, Shape, Start
from pretrain.model.weight_kinds import Weight, inside

if TYPE_CHECKING:
    from torch import Tensor


class LoopDesign:
    """The variants that a configuration chooses (`LoopSection`), for a model of a shape."""

    def __init__(self, section: Any, shape: Shape) -> None:
        self.section, self.shape = section, shape
        self.injection: Injection = self._variant("injection")
        self.start: Start = self._variant("start")
        self.per_loop: PerLoop = self._variant("per_loop")
        self.residual: Residual = self._variant("residual")
        self.exit: Exit = self._variant("exit")
        self.final_norm: FinalNorm = self._variant("final_norm")

    def _variant(self, kind: str) -> Any:
        section, name = self.section, getattr(self.section, kind)
        variant, is_ours = variant_class(kind, name), name in TABLES[kind]
        settings = getattr(section, name, None) if is_ours else plugin_settings(kind, variant, section.own)
        return variant(self.shape, settings)

    @property
    def update_scale(self) -> float:
        """Factor of what the layers of the loop block add to the residual stream."""
        return update_scale(self.section.residual_scale, self.shape.num_layers, self.shape.num_loops)

    @property
    def first_gains(self) -> dict[str, float]:
        """Matrices of the layers of the loop block whose first weights have model.init_std times a factor."""
        return first_gains(self.section.residual_scale, self.shape.num_layers, self.shape.num_loops)

    def is_plain(self, num_passes: int) -> bool:
        """Whether a model of plain layers, repeated so often, computes the same and holds all there is."""
        injects = self.carries and any(map(self.injects, range(num_passes)))
        names = ("start", "per_loop", "residual", "final_norm")
        choices = (*(getattr(self.section, name) for name in names), self.update_scale)
        alike = choices == ("prelude", "none", "plain", "end", 1.0)
        shares = any(self.keys_of(loop) != loop for loop in range(num_passes))
        return alike and not injects and not self.exit.has_gate and not shares

    @property
    def shares_keys(self) -> bool:
        """Whether some loops attend to the keys and values of others."""
        return self.section.keys != "own"

    def keys_of(self, loop: int) -> int:
        """The loop whose keys and values a loop attends to."""
        return keys_of(self.section.keys, self.section.keys_every, loop)

    def window_of(self, loop: int) -> int | None:
        """Tokens whose keys and values of the loop itself it attends to beside those; None: it has none."""
        return window_of(self.section.keys, self.section.keys_window, loop)

    @property
    def has_windows(self) -> bool:
        """Whether later loops have windows."""
        return self.window_of(1) is not None

    @property
    def layers(self) -> "InLayers | None":
        """What the layers of the loop block do differently; None: nothing."""
        changes = self.per_loop.changes_layers or self.update_scale != 1 or self.section.residual != "plain"
        return InLayers(self.per_loop, self.update_scale, self.residual) if changes else None

    @property
    def carries(self) -> bool:
        """Whether the states before the loop are kept for later."""
        return self.injection.carries

    def injects(self, loop: int) -> bool:
        """Whether the injection acts at the beginning of pass `loop`."""
        return {"later": loop > 0, "every": True, "first": loop == 0}[self.section.injection_at]

    def weights(self) -> dict[str, Weight]:
        """Weights outside the layers on the first stage."""
        return inside({"injection": self.injection.weights(), "per_loop": self.per_loop.weights()})

    def exit_weights(self) -> dict[str, Weight]:
        """Weights outside the layers on the last stage."""
        return inside({"exit": self.exit.weights()})

    def flops(self, num_passes: int) -> int:
        """Forward FLOPs outside the layers, for one token."""
        num_streams = self.residual.num_streams
        return sum(num_streams * self.injection.flops() for loop in range(num_passes) if self.injects(loop))

    def start_flops(self) -> int:
        """Backward FLOPs, for one token, that the injection is spared in the first pass, where the state with which it
        begins holds nothing of the input and so has no gradient."""
        is_given = self.injects(0) and not self.start.uses_input
        return self.residual.num_streams * self.injection.state_flops() if is_given else 0

    def layer_flops(self) -> int:
        """Forward FLOPs of one application of one layer of the block, for one token, on top of the layer's own."""
        return self.per_loop.layer_flops() + self.residual.layer_flops()

    def last_flops(self, plain: int) -> int:
        """Forward FLOPs, for one token, of the product that ends a layer of the block, if no gradient needs what it
        gives; `plain`: of the layer's own."""
        return self.per_loop.last_flops(plain) if type(self.residual).branch is Residual.branch else 0

    def begin(self, states: "Tensor", noise: NormalNoise) -> tuple["Tensor", "Tensor | None"]:
        """States [t, d] before the loop -> the start state [t, n·d], and what `enter` needs of them, if anything."""
        return self.residual.expand(self.start.begin(states, noise)), states if self.carries else None

    def enter(self, injection: Held, per_loop: Held, states: "Tensor", carried: "Tensor | None", loop: int) -> "Tensor":
        """The states [t, n·d] with which a pass begins, from those that the pass before left; each of n streams has its
        part."""
        num_streams = self.residual.num_streams
        if num_streams > 1:
            states = states.unflatten(-1, (num_streams, -1))  # [t, n, d]
            carried = None if carried is None else carried.unsqueeze(-2).expand_as(states)
        if self.carries and self.injects(loop):
            assert carried is not None, "the first stage carries the states before the loop"
            states = injection(self.injection.enter, states, carried, loop)
        states = per_loop(self.per_loop.enter, states, loop)
        return states if num_streams == 1 else states.flatten(-2)
