"""Tasks during training, as tools/eval_depth.py runs them on a checkpoint, on the ranks that train.

Rank 0 runs the harness, the others work for it (`pretrain/eval/scorer.py`). A signal ends the evaluation between two
batches; finished tasks keep their rows, and the resumed run scores the others before it continues. Training is
unaffected: no random numbers are drawn, no gradients touched, none of its data read. The network is not used: tasks are
generators, files of `validation.data_dir` or those of `validation.include_path`, read when the run starts.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from lm_eval.api.task import Task

from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.eval.evaluate import evaluate, prepare_harness
from pretrain.eval.groups import ResolvedTask, SkippedTask, tasks_of
from pretrain.eval.harness import LoopedLM
from pretrain.eval.loading import load_tasks
from pretrain.eval.scorer import Scorer, Stopped
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.groups import Groups
from pretrain.parallel.stop_vote import StopVote
from pretrain.rows.evaluation import EvaluationRow, ScoredModel
from pretrain.rows.jsonl import JsonLines


class TaskEvaluation:
    """The tasks of `validation.tasks` at the loop counts of `validation.num_loops`, for this rank's stage of the model;
    `file` has the rows of tasks that are done.

    Raises:
        ValueError: a task is unknown, or a file of one is malformed.
    """

    def __init__(
        self, config: RunConfig, model: LoopedGPT, groups: Groups, tokenizer: Tokenizer, file: Path,
        vote: StopVote,
    ) -> None:  # fmt: skip
        settings = config.validation
        self.config, self.tokenizer, self.file = config, tokenizer, JsonLines(file)
        self.loops = tuple(dict.fromkeys(config.validation_loops))
        self.scorer = Scorer(
            model, groups, batch_size=config.train.micro_batch, sequence_parallel=config.parallel.sequence, vote=vote
        )  # fmt: skip
        data_dir = None if settings.data_dir is None else Path(settings.data_dir)
        own = None if settings.include_path is None else Path(settings.include_path)
        found = tasks_of(SavedModel.of(config), settings.tasks, data_dir, allow_network=False, include_path=own)
        self.skipped = [task for task in found if isinstance(task, SkippedTask)]
        """Tasks that cannot be run here, for the report."""
        self.tasks = [task for task in found if isinstance(task, ResolvedTask)]
        self.loaded: dict[str, list[Task]] = {}
        if dist.get_rank() == 0:
            prepare_harness()
            with contextlib.redirect_stderr(io.StringIO()):  # bars
                num_examples = settings.num_examples
                self.loaded = {task.name: load_tasks(task, data_dir, num_examples=num_examples) for task in self.tasks}

    def run(
        self, subject: ScoredModel, report: Callable[[list[EvaluationRow]], None], say: Callable[[str], None]
    ) -> None:
        """Score the tasks that have no rows of this step yet, or until the ranks vote to stop. Collective.

        `report` takes the rows of each task as it ends, on rank 0, and `say` what is wrong with them.
        """
        with contextlib.suppress(Stopped):
            if dist.get_rank():
                self.scorer.serve()
            else:
                self._score(subject, report)
                for problem in self.file.problems:
                    say(f"warning: {problem}")
                self.file.problems.clear()
                self.scorer.close()

    def _score(self, subject: ScoredModel, report: Callable[[list[EvaluationRow]], None]) -> None:
        lm = LoopedLM(self.scorer, self.tokenizer, self.loops, max_length=self.config.train.seq_len)
        num_examples = self.config.validation.num_examples
        results = evaluate(
            lm, subject, self.tasks, lambda task: self.loaded[task.name], num_examples=num_examples, file=self.file
        )
        for _, rows in results:
            report(rows)
