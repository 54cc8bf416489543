"""What a variant of the loop can say and do: the interfaces that the files of this room implement. No torch at import.

A design (`pretrain/model/loop/design.py`) has one variant of each kind:

    Injection   what re-enters from before the loop, when a pass begins          (`injection/`)
    Start       the state with which the first pass begins                       (`start/`)
    PerLoop     what differs from loop to loop inside the shared layers          (`per_loop/`)
    Residual    how layers of the block read the residual stream and add to it   (`residual/`)
    Exit        with which probability a token stops after a loop                (`exit/`)
    FinalNorm   where the final norm of the model acts inside too                (`final_norm/`)

A variant describes its weights, counts what it costs and computes, as a function of tensors; it keeps nothing between
calls. The weights come to it by name (`Held`): a vector or table as a tensor, a matrix "x.weight" as the linear map
`held["x"]`, whatever the tensor parallelism. So the same file serves the model on one device, each stage of a ring,
cached generation and the exported class of transformers (which gets a copy of it). New: a file with such a class, and a
line in a table of `pretrain/model/loop/tables.py`.

Shapes: t tokens (under sequence parallelism this rank's), d hidden width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pretrain.model.weight_kinds import Weight, Weights

if TYPE_CHECKING:
    from torch import Tensor

Part = str
"""A half of a layer: "attention" or "ffn"."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a variant may know of the model."""

    width: int
    """d."""
    num_loops: int
    """L that the model is made for; other counts may be run."""
    num_layers: int
    """k: layers of the block."""
    linears: Mapping[str, Weight]
    """The matrices of one layer by their paths inside it, such as "attention.query"."""


class Held(Protocol):
    """The weights of one variant, by name."""

    def __getitem__(self, name: str, /) -> Any: ...

    def __call__(self, act: Callable[..., Any], /, *arguments: Any) -> Any:
        """`act(self, *arguments)`, with the weights at hand."""
        ...


class Variant:
    """One choice of a design; `settings` is its own section of the configuration, if it has one."""

    Section: ClassVar[Any] = None

    def __init__(self, shape: Shape, settings: Any) -> None:
        self.shape, self.settings = shape, settings


class Injection(Variant):
    """Nothing re-enters: the state goes from loop to loop. Base of the other injections."""

    carries: ClassVar[bool] = False
    """Whether the state before the loop is kept for `enter`."""

    def weights(self) -> Weights:
        """Its weights, all on the first stage."""
        return {}

    def identity(self) -> "Mapping[str, Literal['identity', 'zeros']] | None":
        """For each of its matrices, the one with which the injection changes nothing, so that it can join a trained
        model; None: there are none."""
        return None if self.carries else {}

    def flops(self) -> int:
        """Forward FLOPs of entering one pass, for one token."""
        return 0

    def state_flops(self) -> int:
        """Those of them that are products of weights and state: a state without gradient asks for none back."""
        return 0

    def enter(self, held: Held, states: "Tensor", carried: "Tensor", loop: int) -> "Tensor":
        """The states [t, d] with which a pass begins.

        Args:
            held: weights.
            states: [t, d] as the pass before left them; for the first, the start state.
            carried: [t, d] the states before the loop.
            loop: number of the pass, from 0.
        """
        return states


class Start(Variant):
    """The state before the loop: the prelude's output. Base of the other start states."""

    uses_input: ClassVar[bool] = True
    """Whether the start state holds what the prelude made of the tokens."""
    draws: ClassVar[bool] = False
    """Whether it asks for noise."""

    def begin(self, states: "Tensor", noise: "NormalNoise") -> "Tensor":
        """The states [t, d] with which the first pass begins.

        Args:
            states: [t, d] the states before the loop.
            noise: standard normal numbers for them.
        """
        return states


class NormalNoise(Protocol):
    """Draws standard normal numbers like some states, by row and position alone."""

    def __call__(self, like: "Tensor") -> "Tensor": ...


class PerLoop(Variant):
    """All loops are alike. Base of what makes them differ; see each one for what happens beyond the trained loops."""

    changes_layers: ClassVar[bool] = False
    """Whether the layers of the loop block hold weights of it and call it."""
    has_own_weights: ClassVar[bool] = True
    """Whether each loop has weights of its own in the layers, which no other applies."""

    def weights(self) -> Weights:
        """Its weights outside the layers, on the first stage."""
        return {}

    def layer_weights(self) -> Weights:
        """Its weights inside each layer of the loop block."""
        return {}

    def layer_flops(self) -> int:
        """Forward FLOPs of one application of one layer, for one token, on top of the layer's own."""
        return 0

    def last_flops(self, plain: int) -> int:
        """Forward FLOPs of the product that ends a layer, for one token, if no gradient needs what it gives: that is
        not computed again. `plain`: of the layer's own, which is the last where nothing acts on it."""
        acts = type(self).linear is not PerLoop.linear or type(self).update is not PerLoop.update
        return 0 if acts else plain

    def selective_flops(self, plain: int) -> int:
        """Forward FLOPs, for one token, that come between the activation of a feed-forward and the last tensor that a
        gradient needs, which is all that is computed again with the activation. `plain`: of the layer's own product."""
        return 0 if type(self).linear is PerLoop.linear else plain

    def enter(self, held: Held, states: "Tensor", loop: int) -> "Tensor":
        """The states [t, d] with which a pass begins, after the injection."""
        return states

    def normed(self, held: Held, part: Part, states: "Tensor", loop: int) -> "Tensor":
        """[t, d] -> [t, d]: what leaves the norm of a half of a layer."""
        return states

    def linear(self, held: Held, name: str, inputs: "Tensor", outputs: "Tensor", loop: int) -> "Tensor":
        """[t, outputs] -> the same: what a linear map of a layer, named by its path, makes of `inputs`."""
        return outputs

    def update(self, held: Held, part: Part, states: "Tensor", loop: int) -> "Tensor":
        """[t, d] -> [t, d]: what a half of a layer adds to the residual stream."""
        return states


class Residual(Variant):
    """One residual stream, to which every half of a layer adds. Base of what has more of them inside the loop; n
    streams are states [t, n·d] there."""

    @property
    def num_streams(self) -> int:
        """n."""
        return 1

    def layer_weights(self) -> Weights:
        """Its weights inside each layer of the loop block."""
        return {}

    def layer_flops(self) -> int:
        """Forward FLOPs of one application of one layer, for one token, on top of the layer's own."""
        return 0

    def expand(self, states: "Tensor") -> "Tensor":
        """The state [t, d] before the first pass -> [t, n·d]."""
        return states

    def combine(self, states: "Tensor") -> "Tensor":
        """States [t, n·d] that a pass left -> [t, d]."""
        return states

    def branch(
        self, held: Held, part: Part, states: "Tensor", number: int
    ) -> "tuple[Tensor, Callable[[Tensor], Tensor]]":
        """What a half of layer `number` of the block, counted from 0, reads of states [t, n·d]: [t, d]; and a function
        of what it adds [t, d] that gives the states [t, n·d] after it."""
        return states, lambda update: states + update


class Exit(Variant):
    """Nothing says when to stop. Base of what does."""

    has_gate: ClassVar[bool] = False
    """Whether it has a say, `log_odds`."""

    def weights(self) -> Weights:
        """Its weights, all on the last stage."""
        return {}

    def log_odds(self, held: Held, states: "Tensor") -> "Tensor":
        """[t, d] states that a pass left -> [t] log-odds of stopping there, in fp32 or wider."""
        raise NotImplementedError


class FinalNorm(Variant):
    """The final norm of the model acts once, behind everything. Base of what has the same norm act earlier too."""

    ends_passes: ClassVar[bool] = False
    """Whether each pass ends with it."""
    begins_coda: ClassVar[bool] = False
    """Whether it acts on what enters the coda, if there is one."""


def trained(loop: int, num_loops: int) -> int:
    """The loop whose weights serve loop `loop`: itself, or the last that has any."""
    return min(loop, num_loops - 1)
