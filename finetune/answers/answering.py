"""Answering the questions of a run on all of its ranks: its validations, and the test of its best weights."""

from collections.abc import Callable
from dataclasses import asdict

import torch.distributed as dist

from finetune.answers.results import Cell, CoconutRow, ScoredRun
from finetune.answers.scoring import Answerer, Tally, answer_settings
from finetune.config import FinetuneConfig
from finetune.examples.examples import ExampleSet
from finetune.latent.stop import StopClassifier
from finetune.run.start import Start
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.groups import Groups
from pretrain.run.logger import RunMetrics
from pretrain.tasks.task import Split


class Answering:
    """Answers sets of questions as a stage of the curriculum does.

    Args:
        config: of the run.
        start: its model and tokenizer.
        groups: data-parallel ranks share out the questions.
        agree_to_stop: asked between batches, on all ranks: the agreed stop code.
    """

    def __init__(self, config: FinetuneConfig, start: Start, groups: Groups, agree_to_stop: Callable[[], int]) -> None:
        self._config, self._start, self._groups, self._agree_to_stop = config, start, groups, agree_to_stop

    def score(
        self, model: LoopedGPT, stop_classifier: StopClassifier | None, examples: ExampleSet, stage: int
    ) -> tuple[Tally | None, int]:
        """Answer all questions: the tally of all ranks, None if they agreed to stop; and the stop code. Collective."""
        size, tokenizer = self._config.validation.batch, self._start.tokenizer
        settings = answer_settings(self._config, tokenizer, stage=stage)
        answerer = Answerer(
            model=model, tokenizer=tokenizer, settings=settings, batch=size, stop_classifier=stop_classifier
        )
        replicas, tally = self._groups.data.size(), Tally()
        for turn in range(0, len(examples.examples), size * replicas):
            first = turn + self._groups.data.rank() * size
            if first < len(examples.examples):
                tally += answerer.score(examples.part(first, first + size))
            stop = self._agree_to_stop()
            if stop:
                return None, stop
        shares: list[Tally] = [tally] * replicas
        dist.all_gather_object(shares, tally, group=self._groups.data)
        return sum(shares[1:], start=shares[0]), 0

    def row(self, tally: Tally, split: Split, stage: int, *, step: int, epoch: int) -> CoconutRow:
        """The row of a tally of a stage."""
        num_slots = answer_settings(self._config, self._start.tokenizer, stage=stage).num_slots
        subject = ScoredRun(self._config.run.name, step, epoch, stage, self._config.method.name, split)
        return CoconutRow.of(tally, Cell(num_slots, self._start.run.model.num_loops), subject)


def log_row(metrics: RunMetrics, row: CoconutRow) -> None:
    """Keep and show a row of a run."""
    accuracy, error = 100 * row.accuracy, 100 * row.stderr
    line = f"step {row.step}, stage {row.stage}: {row.split} accuracy {accuracy:.1f}% ± {error:.1f}, "
    line += f"{row.new_tokens:.1f} new tokens"
    metrics.log_result(
        asdict(row), line, {f"{row.split}/accuracy": row.accuracy, f"{row.split}/new_tokens": row.new_tokens}
    )
