"""Evaluation rows: one number about one model at one loop count, a line of `<run>/eval/depth.jsonl`; validation losses
are such rows. `ScoredModel.row` is the one place that makes them."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat

from pretrain.checkpoint.counters import Counters
from pretrain.config.saved_model import Family, SavedModel
from pretrain.model.count import count_parameters, forward_flops_per_token

NonNegative = Annotated[FiniteFloat, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0, le=sys.maxsize)]
PositiveInt = Annotated[int, Field(gt=0, le=sys.maxsize)]
"""Of 64 bits, as tables of numbers hold them."""
Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that need not be finite; in a file of rows null stands for one that is not."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One number about one model at one loop count; all that tools/scaling_plot.py needs. The types are checked when a
    row is read."""

    run: str
    """Name of the run."""
    step: NonNegativeInt
    """Steps done when the model was scored."""
    tokens_seen: NonNegativeInt | None
    """Tokens that the run trained on until then; null where nobody counted them, as for imported weights."""
    train_flops: NonNegative | None
    """FLOPs of the run's training until then; null where nobody counted them."""
    num_params: PositiveInt
    """Parameters, each shared one counted once."""
    task: str
    """What was scored; "validation" for the held-out text of the run."""
    task_group: str
    """Tasks that are averaged in a plot."""
    metric: str
    """Name of the number; "nll" is nats per token."""
    value: Measured
    """The number; not finite where the model's loss was not, or overflowed."""
    stderr: NonNegative | None
    """Its standard error over examples, where known."""
    num_examples: PositiveInt
    """Examples scored."""
    num_loops: PositiveInt
    """Loops the model was run with."""
    effective_depth: PositiveInt
    """Layers a token passed."""
    eval_flops_per_token: NonNegative
    """Forward FLOPs per token at that depth."""
    family: Family
    """Kind of model; see `SavedModel.family`."""
    inputs: str | None = None
    """What the number was made from, as "name=value" between spaces: hashes of the task's examples and shots, the
    tokenizer, the checkpoint, and whether texts began with bos. Unknown in rows of validation and in old ones."""
    num_loop_params: NonNegativeInt | None = None
    """Those of the parameters that are in the loop block, applied `num_loops` times; the joint law of the scaling plot
    needs it."""


@dataclass(frozen=True)
class ResultKey:
    """What tells the row of one result from those of others."""

    run: str
    step: int
    task: str
    num_loops: int
    metric: str
    num_examples: int

    @classmethod
    def of(cls, row: EvaluationRow) -> "ResultKey":
        return cls(row.run, row.step, row.task, row.num_loops, row.metric, row.num_examples)


@dataclass(frozen=True)
class FoundResult(ResultKey):
    """A row in a file of results."""

    inputs: str | None = None


def are_alike(inputs: str | None, others: str | None) -> bool:
    """Whether two `EvaluationRow.inputs` agree in all that both name."""
    first, second = (dict(part.split("=", 1) for part in (text or "").split(" ") if part) for text in (inputs, others))
    return all(first[name] == second[name] for name in first.keys() & second.keys())


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    saved: SavedModel
    counters: Counters
    """Of its training."""
    checkpoint: str | None = None
    """Hash of its checkpoint; None for a model that is being trained."""

    @classmethod
    def of(cls, meta: Mapping[str, Any], step: int, checkpoint: str | None = None) -> "ScoredModel":
        """The model of a checkpoint, from its `meta`, step and hash."""
        return cls(saved=SavedModel.read(meta), counters=replace(Counters.read(meta), step=step), checkpoint=checkpoint)

    def row(
        self, task: str, task_group: str, metric: str, value: float, *, num_loops: int, num_examples: int,
        stderr: float | None = None,
    ) -> EvaluationRow:  # fmt: skip
        """The row of a number; the arguments are the fields of the same name."""
        model, seq_len = self.saved.model, self.saved.seq_len
        parameters = count_parameters(model, seq_len)
        return EvaluationRow(
            run=self.saved.run,
            step=self.counters.step,
            tokens_seen=self.counters.tokens_seen,
            train_flops=self.counters.train_flops,
            num_params=sum(parameters.values()),
            num_loop_params=parameters["loop"],
            task=task,
            task_group=task_group,
            metric=metric,
            value=value,
            stderr=stderr,
            num_examples=num_examples,
            num_loops=num_loops,
            effective_depth=model.effective_depth(num_loops),
            eval_flops_per_token=forward_flops_per_token(model, seq_len, num_loops),
            family=self.saved.family,
        )
