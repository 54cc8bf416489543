"""A fine-tuned run in Python, for notebooks and scripts: what `pretrain/api.py` offers of any run, and its thoughts.

from finetune import load_run

run = load_run("runs/prosqa_coconut_small")
run.questions("test", 3)                                # examples: question, steps, answer
run.answer(question, num_thoughts=2)                    # the text after two thoughts
run.thoughts(question, num_thoughts=3)                  # [3, d]
run.score_answers(num_thoughts=[0, 1, 2, 3])            # a table
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from finetune.answers.evaluation import choose_cells, evaluate_cells, load_questions
from finetune.answers.results import CoconutRow
from finetune.answers.scoring import Answerer, answer_settings
from finetune.examples.examples import encode_examples, form_of, untracked
from finetune.latent.decoding import Decoding
from finetune.latent.generation import AnswerSettings, think
from finetune.reinforce.rows import GrpoRow
from finetune.run.finetuned_model import FinetunedModel, load_finetuned
from finetune.run.rows import FinetuneRow
from pretrain.api import LoadedRun, Prompts, table, table_of
from pretrain.rows.jsonl import JsonLines
from pretrain.tasks.task import Example, Split

if TYPE_CHECKING:
    from pandas import DataFrame


def load_run(run_dir: str | Path, *, step: int | None = None, device: str | None = None) -> "FinetunedRun":
    """Open a fine-tuned run.

    Args:
        run_dir: its directory.
        step: of the checkpoint. Default: the best one or, if there is none, the newest good one.
        device: such as "cpu" or "cuda:1". Default: a GPU where there is one.

    Raises:
        ValueError: there is no such run or checkpoint, it is damaged, or it was not fine-tuned.
        OSError: a file cannot be read.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    finetuned = load_finetuned(Path(run_dir), torch.device(where), step=step)
    for problem in finetuned.trained.problems:
        warnings.warn(problem, stacklevel=2)
    return FinetunedRun(finetuned)


class FinetunedRun(LoadedRun):
    """A fine-tuned model with its tokenizer and its rows; `load_run` makes it."""

    row_type = FinetuneRow

    def __init__(self, finetuned: FinetunedModel) -> None:
        super().__init__(finetuned.run_dir, finetuned.trained)
        if finetuned.is_rewarded:
            self.row_type = GrpoRow
        self.finetuned, self.config = finetuned, finetuned.config

    def questions(self, split: Split = "test", num_examples: int | None = None) -> list[Example]:
        """The first examples of a split of the run's data.

        Raises:
            ValueError: the run has no such split.
        """
        return load_questions(self.finetuned, split=split, num_examples=num_examples).examples

    def answer(self, questions: Prompts, *, num_thoughts: int | None = None, num_loops: int | None = None) -> Prompts:
        """What the model writes after a question, and after its thoughts: reasoning if its method writes any, and the
        answer. Each is as if its question were alone.

        Args:
            questions: one, or several in one batch.
            num_thoughts: k, slots of thoughts or pauses. Default: those of the last stage of training.
            num_loops: L. Default: that of training.

        Raises:
            ValueError: the method has no slots, a text that the tokenizer cannot hold, or more positions than the
                model learned.
        """
        texts = [questions] if isinstance(questions, str) else list(questions)
        settings = self._settings(num_thoughts, num_loops)
        answerer = Answerer(
            model=self.model, tokenizer=self.tokenizer, settings=settings, batch=max(1, len(texts)),
            stop_classifier=self.finetuned.stop_classifier,
        )  # fmt: skip
        examples = [Example(question=text, steps=(), answer="") for text in texts]
        encoded = encode_examples(examples, form_of(self.config.data.train), self.tokenizer, "questions", untracked)
        written = [self.tokenizer.decode(answer.text) for answer in answerer.answer(encoded)]
        if isinstance(questions, str):
            return written[0]
        return written

    @torch.no_grad()
    def thoughts(self, question: str, *, num_thoughts: int | None = None, num_loops: int | None = None) -> Tensor:
        """The latent thoughts about a question, [k, d], as they enter the model; none where slots hold pauses.
        `run.head` says what each would be as a token. Arguments and errors as of `answer`."""
        settings = replace(self._settings(num_thoughts, num_loops), max_new_tokens=1)
        example = Example(question=question, steps=(), answer="")
        (encoded,) = encode_examples([example], form_of(self.config.data.train), self.tokenizer, "question", untracked)
        decoding = Decoding(
            self.model, [settings.markers.prompt(encoded.question)], settings.num_new, settings.num_loops
        )
        return think(decoding, settings, self.finetuned.stop_classifier)[0].thoughts[0]

    def score_answers(
        self, num_thoughts: Sequence[int] | Literal["all"] | None = None, num_loops: Sequence[int] | None = None, *,
        split: Split = "test", num_examples: int | None = None, batch: int | None = None,
    ) -> "DataFrame":  # fmt: skip
        """Answer a split at several numbers of thoughts and loops: a row each, with accuracy and cost.

        Nothing is written; `tools/eval_coconut.py` keeps its rows in the run.

        Args:
            num_thoughts: numbers, or "all": none up to those of the last stage. Default: those.
            num_loops: loop counts. Default: that of training.
            split: of the run's data.
            num_examples: only the first ones. Default: all.
            batch: questions answered at once; changes no answer. Default: validation.batch.

        Raises:
            ValueError: the method has no slots, or the run no such split.
        """
        questions = load_questions(self.finetuned, split=split, num_examples=num_examples)
        cells = choose_cells(self.finetuned, num_thoughts, num_loops)
        with TemporaryDirectory() as folder:
            file = JsonLines(Path(folder) / "rows.jsonl")
            size = batch or self.config.validation.batch
            return table(list(evaluate_cells(self.finetuned, questions, cells, file, batch=size)))

    def answers(self) -> "DataFrame":
        """The rows of `eval/coconut.jsonl`, as training and tools/eval_coconut.py left them."""
        return table_of(self.run_dir / "eval" / "coconut.jsonl", CoconutRow)

    def _settings(self, num_thoughts: int | None, num_loops: int | None) -> AnswerSettings:
        choose_cells(
            self.finetuned,
            None if num_thoughts is None else [num_thoughts],
            None if num_loops is None else [num_loops],
        )
        slots = num_thoughts if self.finetuned.has_slots else None
        return answer_settings(self.config, self.tokenizer, num_slots=slots, num_loops=num_loops)
