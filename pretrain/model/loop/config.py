"""The design of the loop as configuration: the choices of `tables.py`, and a section for each variant that has
settings.

The settings of a variant stand under its own name: `model.loop.injection=diagonal`, `model.loop.diagonal.decay=0.9`;
those of one of a user's file, `model.loop.injection=my_loops:Leaky`, under its kind: `model.loop.own.injection`."""

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, create_model, field_validator, model_validator

from pretrain.model.loop.keys import WHY_NOT_LAST, window_of
from pretrain.model.loop.plugins import plugin_settings
from pretrain.model.loop.residual_scale import ResidualScale
from pretrain.model.loop.tables import TABLES, variant_class
from pretrain.schema.plugin import PluginName
from pretrain.schema.section import Section

if TYPE_CHECKING:
    InjectionName: TypeAlias = str
    StartName: TypeAlias = str
    PerLoopName: TypeAlias = str
    ResidualName: TypeAlias = str
    ExitName: TypeAlias = str
    FinalNormName: TypeAlias = str
else:
    InjectionName, StartName, PerLoopName, ResidualName, ExitName, FinalNormName = (
        Literal[tuple(table)] | PluginName for table in TABLES.values()
    )


class _Choices(Section):
    injection: InjectionName = "none"
    """What re-enters when a pass begins: nothing, or the state before the loop, brought in by add (x + e), concat (a
    matrix over both), gated or diagonal."""
    injection_at: Literal["later", "every", "first"] = "later"
    """Passes at which it re-enters: every one but the first, every one, or only the first."""
    start: StartName = "prelude"
    """State with which the first pass begins: the prelude's output, zeros, or noise."""
    per_loop: PerLoopName = "none"
    """What differs from loop to loop: nothing, an embedding of the loop, norm_scales, lora on every matrix of the
    block, or adaln (shift, scale and gate from the number of the loop)."""
    residual: ResidualName = "plain"
    """How layers of the loop block read the residual stream and add to it: plainly, or hyper, several streams with
    learned connections."""
    exit: ExitName = "none"
    """What says with which probability a token stops after a loop: nothing, or a gate on the state, which
    train.loop_loss.over=expected trains: gate norms the state first, linear takes it as it is, normed already with
    final_norm=passes (Ouro)."""
    final_norm: FinalNormName = "end"
    """Where the final norm of the model acts: once, at the end; at the end of all passes, so that what enters the next,
    the exit and the head is normed (Ouro, Nanbeige 4.2); or before the coda and at the end (Huginn)."""
    residual_scale: ResidualScale = "one"
    """What the layers of the loop block add to the residual stream, times 1, 1/√L, 1/L or 1/(L·√k): the updates of a
    shared block add up, so that with more loops the same learning rate moves the state further (Wang et al. 2026, arXiv
    2606.18524: the fourth, for k layers of their own weights). deep_norm and deep_loop: norm(α·x + f(x)) with smaller
    first weights, by k·L (DeepNorm, arXiv 2203.00555; DeepLoop, 2607.13491); for model.norm_place=sum or around."""
    keys: Literal["own", "first", "every"] = "own"
    """Keys and values that a loop attends to: its own, those of the first loop, or those of the newest loop that
    computed any, every keys_every-th. Loops that compute none have no cache."""
    keys_every: int = Field(default=2, gt=1)
    """Loops that share keys and values with keys=every."""
    keys_window: int = Field(default=0, ge=0)
    """With keys=first, later loops attend to their own keys and values too, of the newest so many tokens, and a gate of
    each head mixes both (Parallel Loop Transformer: Wu et al. 2025, arXiv 2510.24824); 0: they do not."""
    made_for: int | None = Field(default=None, gt=0)
    """L in residual_scale, and loops that have weights of their own in per_loop; more may be run. Default:
    model.num_loops."""

    own: dict[str, Any] = Field(default_factory=dict)
    """Settings of variants of your own file (pretrain/EXTENDING.md), by kind: {injection: {rate: 0.5}}."""

    @property
    def plugins(self) -> dict[str, str]:
        """Kind -> name of each variant of a user's file."""
        return {kind: name for kind, table in TABLES.items() if (name := getattr(self, kind)) not in table}

    @property
    def depends_on_loops(self) -> bool:
        """Whether the model is another one for another `made_for`."""
        return self.per_loop != "none" or self.residual_scale != "one"

    def without_effect(self) -> dict[str, str]:
        idle = {
            name: f"{kind}={getattr(self, kind)}"
            for kind, table in TABLES.items()
            for name, variant in table.items()
            if variant.Section is not None and name != getattr(self, kind)
        }
        if self.injection == "none":
            idle["injection_at"] = "injection=none"
        if not self.depends_on_loops:
            idle["made_for"] = "per_loop=none"
        if self.keys != "every":
            idle["keys_every"] = f"keys={self.keys}"
        if self.keys != "first":
            idle["keys_window"] = f"keys={self.keys}"
        if not self.plugins:
            idle["own"] = f"injection={self.injection}"
        return idle

    def chosen(self) -> dict[str, Any]:
        """The choices with the settings of each, as plain values; empty where nothing differs from a plain loop."""
        if self == type(self)():
            return {}
        values, idle = self.model_dump(mode="json"), self.without_effect()
        return {name: value for name, value in values.items() if name not in idle}

    @field_validator("keys", mode="before")
    @classmethod
    def _refuse_last(cls, keys: Any) -> Any:
        if keys == "last":
            raise ValueError(WHY_NOT_LAST)
        return keys

    @model_validator(mode="after")
    def _check_keys(self) -> "_Choices":
        if self.keys != "own" and window_of(self.keys, self.keys_window, 1) is None and self.per_loop == "lora":
            raise ValueError(
                f"model.loop.keys={self.keys} leaves the matrices that per_loop=lora has for the keys and values of "
                "each loop without use: choose keys=own or another per_loop"
            )
        return self

    @model_validator(mode="after")
    def _check_input(self) -> "_Choices":
        for kind in self.own.keys() - self.plugins.keys():
            raise ValueError(f"model.loop.own.{kind}: there is no variant of your own file under model.loop.{kind}")
        for kind, name in self.plugins.items():
            plugin_settings(kind, variant_class(kind, name), self.own)
        start: Any = variant_class("start", self.start)
        if start.uses_input:
            return self
        if self.injection == "none":
            raise ValueError(
                f"model.loop.start={self.start} needs model.loop.injection: nothing else brings the input into the loop"
            )
        if self.injection_at == "later":
            raise ValueError(
                f"model.loop.start={self.start} needs model.loop.injection_at=every or first: the first pass would not "
                "see the input"
            )
        return self


if TYPE_CHECKING:

    class LoopSection(_Choices):
        """`model.loop`: the choices, and a section for each variant that has settings."""

else:
    LoopSection = create_model(
        "LoopSection",
        __base__=_Choices,
        __module__=__name__,
        **{
            name: (variant.Section, Field(default=variant.Section(), description=f"Settings of {kind}={name}."))
            for kind, table in TABLES.items()
            for name, variant in table.items()
            if variant.Section is not None
        },
    )
