"""The interface of a hook: what looks at a run between its steps, and whose numbers become rows of
`<run>/diagnostics.jsonl` and go to the loggers.

    train.hooks: [loop_diagnostics, {name: "my_hooks:LongestStep", every: 10, parameters: {...}}]

The contract:
- Every rank has the hook and calls it at the same steps, so that it may use collectives, in the same order on all. The
  model is this rank's part: a stage of the ring, its share of the tensor-parallel weights, no gradients needed.
- The numbers of rank 0 are kept; what the others return is not looked at.
- It changes nothing of the training: calls are made without gradients, and torch's random state is put back after each.
- An error in the first call of a method ends the run, while little is lost; one in a later call switches the hook off
  on all ranks, with a warning. Either is one line that names hook, step, file and line. Where the other ranks wait for
  the one with the error in a collective of the hook, any such error ends the run, with that line on every rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pretrain.config.layout import Layout
from pretrain.config.run import RunConfig
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.engine import Engine, StepResult
from pretrain.schema.section import Section

Numbers = Mapping[str, Any]
"""Numbers by name, such as "state_norm.loop3": family, then member."""


class NoParameters(Section):
    """Of hooks that have none."""


@dataclass(kw_only=True)
class WatchedRun:
    """What a hook may know of its run."""

    config: RunConfig
    layout: Layout
    engine: Engine
    """With the model, the process groups of this rank, and the passes over all depths."""
    step: int
    """Steps done."""


P = TypeVar("P", bound=Section)


class Hook(Generic[P]):
    """Base of all hooks; a hook has one of the two methods, or both.

    Args:
        parameters: its settings.
        run: what it may know, the same object in all calls.
    """

    parameters_type: ClassVar[type[Section]] = NoParameters
    every: ClassVar[int] = 1
    """Steps between calls where the configuration does not say."""
    is_regular: ClassVar[bool] = False
    """Whether each call of `on_step` gives numbers, so that a resumed run can name rows that are missing."""

    def __init__(self, parameters: P, run: WatchedRun) -> None:
        self.parameters, self.run = parameters, run

    def on_step(self, model: LoopedGPT, result: StepResult) -> Numbers | None:
        """Called after a step; the same result on every rank."""
        return None

    def on_validation(self, model: LoopedGPT, losses: Mapping[int, float]) -> Numbers | None:
        """Called after a validation, with the loss in nats per token at each loop count, the same on every rank."""
        return None
