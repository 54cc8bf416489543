"""Evaluation rows: one number about one model at one loop count, a line of `<run>/eval/depth.jsonl`; validation losses
are such rows. `ScoredModel.row` is the one place that makes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from pretrain.checkpoint.counters import Counters
from pretrain.config.run import BYTES
from pretrain.config.saved_model import Family, SavedModel
from pretrain.model.count import cached_numbers, count_parameters, count_shared, forward_flops_per_token, window_numbers
from pretrain.rows.identity import NonNegative, NonNegativeInt, PositiveInt, ResultRow, RunIdentity

Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that need not be finite; in a file of rows null stands for one that is not."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow(ResultRow):
    """One number about one model at one loop count; all that tools/scaling_plot.py needs. The types are checked when a
    row is read."""

    num_params: PositiveInt
    """Parameters, each shared one counted once."""
    task: str
    """What was scored; "validation" for the held-out text of the run."""
    task_group: str
    """Tasks that are averaged in a plot."""
    metric: str
    """Name of the number; "nll" is nats per token."""
    is_main: bool | None = None
    """Whether it is the number that its task is judged by; unknown in old rows."""
    value: Measured
    """The number; not finite where the model's loss was not, or overflowed."""
    effective_depth: PositiveInt
    """Layers a token passed."""
    eval_flops_per_token: NonNegative
    """Forward FLOPs per token at that depth."""
    cache_bytes_per_token: NonNegative | None = None
    """Keys and values that a cache holds for a token at that depth, in the type of training and in a sequence of its
    length; unknown in old rows."""
    step_time_s: NonNegative | None = None
    """Median time of the training steps of the run, which says something where runs have the same machine and batch;
    the plot reads it from the metrics that lie beside the rows."""
    family: Family
    """Kind of model; see `SavedModel.family`."""
    num_loop_params: NonNegativeInt | None = None
    """Those of the parameters that are in the loop block and applied `num_loops` times; the joint law of the scaling
    plot needs it. In old rows also those of the block that each loop has for itself (LoRA, norm scales)."""


@dataclass(frozen=True)
class ResultKey:
    """What tells the row of one result from those of others in a file of rows."""

    run: str
    step: int
    task: str
    num_loops: int
    metric: str
    num_examples: int

    @classmethod
    def of(cls, row: "EvaluationRow | FoundResult") -> "ResultKey":
        return cls(row.run, row.step, row.task, row.num_loops, row.metric, row.num_examples)


@dataclass(frozen=True, kw_only=True)
class FoundResult(RunIdentity):
    """A row in a file of results, as much of it as says whether it is the one that is asked for."""

    run: str
    step: int
    task: str
    num_loops: int
    metric: str
    num_examples: int
    inputs: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    saved: SavedModel
    counters: Counters
    """Of its training."""
    identity: RunIdentity = field(default_factory=RunIdentity)
    checkpoint: str | None = None
    """Hash of its checkpoint; None for a model that is being trained."""

    @classmethod
    def of(cls, meta: Mapping[str, Any], step: int, checkpoint: str | None = None) -> "ScoredModel":
        """The model of a checkpoint, from its `meta`, step and hash."""
        return cls(
            saved=SavedModel.read(meta), counters=replace(Counters.read(meta), step=step),
            identity=RunIdentity.read(meta), checkpoint=checkpoint,
        )  # fmt: skip

    def row(
        self, task: str, task_group: str, metric: str, value: float, *, num_loops: int, num_examples: int,
        stderr: float | None = None, inputs: str | None = None, is_main: bool | None = None,
        shortcut: float | None = None, chance: float | None = None,
    ) -> EvaluationRow:  # fmt: skip
        """The row of a number; the arguments are the fields of the same name."""
        model, seq_len = self.saved.model, self.saved.seq_len
        parameters = count_parameters(model, seq_len)
        return EvaluationRow(
            **vars(self.identity),
            run=self.saved.run,
            step=self.counters.step,
            num_prelude_layers=model.num_prelude_layers,
            num_loop_layers=model.num_loop_layers,
            num_coda_layers=model.num_coda_layers,
            num_loops=num_loops,
            tokens_seen=self.counters.tokens_seen,
            train_flops=self.counters.train_flops,
            num_params=sum(parameters.values()),
            num_loop_params=count_shared(model, seq_len),
            task=task,
            task_group=task_group,
            metric=metric,
            is_main=is_main,
            value=value,
            stderr=stderr,
            num_examples=num_examples,
            shortcut=shortcut,
            chance=chance,
            inputs=inputs,
            effective_depth=model.effective_depth(num_loops),
            eval_flops_per_token=forward_flops_per_token(model, seq_len, num_loops),
            cache_bytes_per_token=BYTES[self.saved.precision]
            * (cached_numbers(model, num_loops) + window_numbers(model, num_loops) / seq_len),
            family=self.saved.family,
        )
