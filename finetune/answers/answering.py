"""Answering questions on all ranks of a run: its validations, and the test of its best weights."""

import torch.distributed as dist

from finetune.answers.results import Cell, CoconutRow, ScoredRun, floor_of_examples, inputs_of
from finetune.answers.scoring import Answerer, Tally, answer_settings
from finetune.config import FinetuneConfig
from finetune.examples.examples import ExampleSet
from finetune.examples.sequence import RowMaker
from finetune.latent.stop import StopClassifier
from finetune.method.curriculum import final_stage
from pretrain.checkpoint.counters import Counters
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.groups import Groups
from pretrain.parallel.stop_vote import StopVote
from pretrain.rows.identity import RunIdentity
from pretrain.run.logger import RunMetrics
from pretrain.tasks.shortcuts import Floor
from pretrain.tasks.task import Split


class StageAnswerer:
    """Answers questions as a stage of the curriculum does. The data-parallel ranks share them and vote whether to stop
    after each batch."""

    def __init__(
        self, config: FinetuneConfig, saved: SavedModel, tokenizer: Tokenizer, groups: Groups, vote: StopVote
    ) -> None:
        self._config, self._saved, self._tokenizer, self._groups, self._vote = config, saved, tokenizer, groups, vote

    def check_lengths(self, split: Split, examples: ExampleSet) -> list[str]:
        """A warning if an example, with its chain and its slots, is longer than those that are trained on.

        Raises:
            ValueError: the model learned its positions and has none for all of the longest question and its answer, at
                some stage.
        """
        config, seq_len = self._config, self._saved.seq_len
        source = getattr(config.data, split).named(split)
        if self._saved.model.positions != "learned":
            maker = RowMaker(
                config.chosen_method, config.curriculum, config.method.markers_in_first_stage, self._tokenizer
            )
            lengths = list(map(maker.most_tokens, examples.encoded))
            if (most := max(lengths)) <= seq_len:
                return []
            return [
                f"{source}: example {lengths.index(most)} can have {most} tokens, and nothing longer than "
                f"train.seq_len={seq_len} is trained on"
            ]
        last, wanted = final_stage(config.curriculum, config.chosen_method), 0
        longest = max(range(len(examples.encoded)), key=lambda number: len(examples.encoded[number].question))
        for stage in range(last + 1):
            settings = answer_settings(config, self._tokenizer, stage=stage)
            prompt = settings.markers.prompt(examples.encoded[longest].question)
            wanted = max(wanted, len(prompt) + settings.num_new - 1)  # the last new token is never an input
        if wanted > seq_len:
            raise ValueError(
                f"{source}: example {longest}: a question with its answer can take {wanted} positions, more than the "
                f"{seq_len} that the model learned: leave it out or lower validation.max_new_tokens"
            )
        return []

    def score(
        self, model: LoopedGPT, stop_classifier: StopClassifier | None, examples: ExampleSet, stage: int,
        num_slots: int | None = None,
    ) -> Tally | None:  # fmt: skip
        """Answer all questions, by default with the slots of the stage: the tally over all ranks, None if they voted to
        stop. Collective."""
        size, tokenizer = self._config.validation.batch, self._tokenizer
        settings = answer_settings(self._config, tokenizer, stage=stage, num_slots=num_slots)
        answerer = Answerer(
            model=model, tokenizer=tokenizer, settings=settings, batch=size, stop_classifier=stop_classifier
        )
        replicas, tally = self._groups.data.size(), Tally()
        for turn in range(0, len(examples.examples), size * replicas):
            first = turn + self._groups.data.rank() * size
            if first < len(examples.examples):
                tally += answerer.score(examples.part(first, first + size))
            self._vote.hold()
            if self._vote.reason:
                return None
        shares: list[Tally] = [tally] * replicas
        dist.all_gather_object(shares, tally, group=self._groups.data)
        return sum(shares[1:], start=shares[0])

    def row(
        self, tally: Tally, questions: ExampleSet, split: Split, stage: int, *, counters: Counters, epoch: int,
        identity: RunIdentity, num_slots: int | None = None,
    ) -> CoconutRow:  # fmt: skip
        """The row of a tally of a split's questions; the counters are those of the weights that answered."""
        num_slots = answer_settings(self._config, self._tokenizer, stage=stage, num_slots=num_slots).num_slots
        subject = ScoredRun(
            self._config.run.name, counters.step, epoch, stage, self._config.method.name, split,
            counters.tokens_seen, counters.train_flops,
        )  # fmt: skip
        return CoconutRow.of_tally(
            tally, Cell(num_slots, self._saved.model.num_loops), subject, identity, self._saved.model,
            inputs=inputs_of(questions, self._tokenizer.sha256), batch=self._config.validation.batch,
            floor=floor_of_examples(getattr(self._config.data, split)),
        )  # fmt: skip


def log_row(metrics: RunMetrics, row: CoconutRow) -> None:
    """Keep and show a row of a run."""
    accuracy, error = 100 * row.accuracy, 100 * row.stderr
    line = f"step {row.step}, stage {row.stage}: {row.split} accuracy {accuracy:.1f}% ± {error:.1f}, "
    line += f"{row.new_tokens:.1f} new tokens"
    line += Floor(row.shortcut, row.chance).described if row.split == "test" else ""
    charted = {f"{row.split}/accuracy": row.accuracy, f"{row.split}/new_tokens": row.new_tokens}
    metrics.log_result(row, row.step, line, charted)
