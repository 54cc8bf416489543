"""The injections by name (`model.input_injection`): what re-enters at the start of a loop. No torch.

An entry says how the injection is built, which weights it has and what it costs; model, counts, plan, optimizer and
checkpoints read it here. A new one is a subclass of `Injection` (`pretrain/model/loop/injection.py`, or a file beside
it), an entry here, and its name in `pretrain/model/config.py`; to be exported to Hugging Face it also stands in
`pretrain/hf/modeling_looped_gpt.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain.model.config import ModelSection
from pretrain.model.weight_kinds import Weights
from pretrain.schema.choice import choose

if TYPE_CHECKING:
    from pretrain.model.loop.injection import Injection
    from pretrain.model.parallel_ops import ParallelOps


@dataclass(frozen=True, kw_only=True)
class InjectionKind:
    """One injection."""

    make: Callable[["ParallelOps", Weights], "Injection"]
    """Its module, made of its weights."""
    can_unroll: bool
    """Whether a model of plain layers, repeated L times, computes the same."""
    weights: Callable[[ModelSection], Weights] = lambda _: {}
    """Its weights, by their path inside the module."""
    flops: Callable[[ModelSection, int], int] = lambda *_: 0
    """(model, passes) -> forward FLOPs of `carry` and of entering all passes, for one token."""


def _none(_ops: "ParallelOps", _weights: Weights) -> "Injection":
    from pretrain.model.loop.injection import Injection

    return Injection()


def _add(_ops: "ParallelOps", _weights: Weights) -> "Injection":
    from pretrain.model.loop.injection import AddedInput

    return AddedInput()


INJECTIONS = {"none": InjectionKind(make=_none, can_unroll=True), "add": InjectionKind(make=_add, can_unroll=False)}


def injection_kind(model: ModelSection) -> InjectionKind:
    """The injection of a model.

    Raises:
        ValueError: there is none of this name.
    """
    return choose(INJECTIONS, model.input_injection, "model.input_injection")
