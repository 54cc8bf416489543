"""Tasks during training: what tools/eval_depth.py does to a checkpoint, done to the weights in training, on the ranks
that train them.

Rank 0 runs the harness, the others work for it (`pretrain/eval/scorer.py`). A signal ends the evaluation between two
batches; tasks that are finished by then keep their rows, and the resumed run scores the others before it goes on.
Training notices nothing: no random numbers are drawn, no gradients touched, no data read that it reads.

A run does not use the network here: tasks are generators or files of `validation.data_dir`, read when the run starts.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from lm_eval.api.task import Task

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.eval.evaluate import Subject, evaluate, load, prepare_harness
from pretrain.eval.groups import ResolvedTask, SkippedTask, tasks_of
from pretrain.eval.harness import LoopedLM
from pretrain.eval.scorer import Scorer, Stopped
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.groups import Groups
from pretrain.run.rows import EvaluationRow


class TaskEvaluation:
    """The tasks of `validation.tasks` at the loop counts of `validation.num_loops`.

    Args:
        config: of the run.
        model: this rank's stage of it.
        groups: process groups.
        tokenizer: of the run.
        file: rows of the run, looked up for tasks that are done.
        wish: gives this rank's wish to stop, 0 for none.

    Raises:
        ValueError: a task is unknown, or a file of one is malformed.
    """

    def __init__(
        self, config: RunConfig, model: LoopedGPT, groups: Groups, tokenizer: Tokenizer, file: Path,
        wish: Callable[[], int],
    ) -> None:  # fmt: skip
        settings = config.validation
        self.config, self.tokenizer, self.file = config, tokenizer, file
        self.loops = tuple(dict.fromkeys(config.validation_loops))
        self.scorer = Scorer(
            model, groups, batch_size=config.train.micro_batch, sequence_parallel=config.parallel.sequence, wish=wish
        )  # fmt: skip
        data_dir = None if settings.data_dir is None else Path(settings.data_dir)
        found = tasks_of(config, settings.tasks, data_dir, allow_network=False)
        self.skipped = [task for task in found if isinstance(task, SkippedTask)]
        """Tasks that cannot be run here, for the report."""
        self.tasks = [task for task in found if isinstance(task, ResolvedTask)]
        self.loaded: dict[str, list[Task]] = {}
        if dist.get_rank() == 0:
            prepare_harness()
            with contextlib.redirect_stderr(io.StringIO()):  # bars
                self.loaded = {task.name: load(task, data_dir, settings.num_examples) for task in self.tasks}

    def run(self, step: int, train_flops: float, report: Callable[[list[EvaluationRow]], None]) -> int:
        """Score the tasks that have no rows of this step yet. Collective.

        Args:
            step: steps done.
            train_flops: of all these steps.
            report: takes the rows of each task as it ends, on rank 0.

        Returns:
            The agreed stop code, 0 if all tasks are done.
        """
        try:
            if dist.get_rank():
                self.scorer.serve()
            else:
                self._score(Subject(config=self.config, step=step, train_flops=train_flops), report)
                self.scorer.close()
        except Stopped as stopped:
            return stopped.code
        return 0

    def _score(self, subject: Subject, report: Callable[[list[EvaluationRow]], None]) -> None:
        lm = LoopedLM(self.scorer, self.tokenizer, self.loops, max_length=self.config.train.seq_len)
        num_examples = self.config.validation.num_examples
        results = evaluate(
            lm, subject, self.tasks, lambda task: self.loaded[task.name], num_examples=num_examples, file=self.file
        )
        for _, rows in results:
            report(rows)
