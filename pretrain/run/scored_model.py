"""A model that is scored, as the rows of its scores describe it: the one place that makes an `EvaluationRow`."""

from dataclasses import dataclass, replace

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.saved_model import SavedModel
from pretrain.model.count import count_parameters, forward_flops_per_token
from pretrain.run.counters import Counters
from pretrain.run.rows import EvaluationRow


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    saved: SavedModel
    counters: Counters
    """Of its training."""

    @classmethod
    def of(cls, reader: CheckpointReader) -> "ScoredModel":
        """The model of a checkpoint."""
        counters = replace(Counters.read(reader.meta), step=reader.step)
        return cls(saved=SavedModel.read(reader.meta), counters=counters)

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
            num_params=parameters.total,
            num_loop_params=parameters.loop,
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
