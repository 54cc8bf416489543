"""Scoring answers: exact match as the paper's, length, time and cost, counted on a share of the examples and reported
over all of them.

An answer is what stands after the last mark of an answer ("#" in the paper's form), without commas; it is right if it
is the wanted one, character by character (Hao et al. 2024, arXiv 2412.06769, and its published code). New tokens are
latent thoughts and text, as in the paper's table 1; pauses and eos are neither.

`score_examples` counts (`Tally`); tallies of several ranks add up; `finetune/answers/results.py` makes their sum a row.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from finetune.config import FinetuneConfig
from finetune.examples.examples import EncodedExample, TextForm
from finetune.latent.flops import answer_flops
from finetune.latent.generation import Answer, AnswerSettings, generate_with_thoughts
from finetune.method.curriculum import final_stage
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.model.gpt import LoopedGPT
from pretrain.tasks.task import Example


def answer_settings(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    *,
    stage: int | None = None,
    num_thoughts: int | None = None,
    num_loops: int | None = None,
) -> AnswerSettings:
    """How a method answers at a stage.

    Args:
        config: of the fine-tuning run.
        tokenizer: knows the special ids.
        stage: of the curriculum. Default: the last one of the method.
        num_thoughts: slots; default: those of the stage. Never a function of the example, whose chain is not known.
        num_loops: L; default: the one trained with.
    """
    method, curriculum = config.chosen_method, config.curriculum
    if stage is None:
        stage = final_stage(curriculum, method)
    has_markers = method.slots != "none" and curriculum.max_slots > 0
    if num_thoughts is None:
        num_thoughts = curriculum.thoughts_per_step * min(stage, curriculum.num_stages) if has_markers else 0
        has_markers = has_markers and (num_thoughts > 0 or config.method.markers_in_first_stage)
    return AnswerSettings(
        max_new_tokens=config.validation.max_new_tokens,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        slots=method.slots if has_markers else "none",
        num_thoughts=num_thoughts,
        eot_id=tokenizer.eot_id if has_markers else None,
        pause_id=tokenizer.pause_id if has_markers else None,
        jacobi_passes=config.method.jacobi_passes if has_markers else None,
        latent_id=tokenizer.latent_id if has_markers else None,
        num_loops=num_loops or config.train.num_loops,
    )


def prompt_of(example: EncodedExample, settings: AnswerSettings, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What stands before the first slot: the question, and <bot> where the method has markers."""
    return example.question if settings.slots == "none" else (*example.question, tokenizer.bot_id)


def is_right(text: str, answer: str, form: TextForm) -> bool:
    """Whether a text ends in the wanted answer.

    Args:
        text: all that was written.
        answer: the wanted one, without its mark.
        form: has the mark of an answer.
    """
    return stated_answer(text, form) == answer.replace(",", "").strip()


def stated_answer(text: str, form: TextForm) -> str:
    """What a text says after its last mark of an answer; all of it where there is none."""
    mark = "#" if form.answer_start.startswith("#") else form.answer_start.strip()
    return (text.rpartition(mark)[2] if mark else text).replace(",", "").strip()


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over examples. Those of several shares add up."""

    right: dict[int, int] = field(default_factory=dict)
    """Right answers by the length of the chain of reasoning, in steps."""
    num_examples: dict[int, int] = field(default_factory=dict)
    """Examples by the length of their chain."""
    num_thoughts: int = 0
    num_text_tokens: int = 0
    seconds: float = 0.0
    """Time to answer all of them, in the batches that were chosen."""
    flops: int = 0
    """Forward FLOPs of each answer alone."""

    def __add__(self, other: "Tally") -> "Tally":
        lengths = sorted(self.num_examples.keys() | other.num_examples.keys())
        return Tally(
            right={length: self.right.get(length, 0) + other.right.get(length, 0) for length in lengths},
            num_examples={
                length: self.num_examples.get(length, 0) + other.num_examples.get(length, 0) for length in lengths
            },
            num_thoughts=self.num_thoughts + other.num_thoughts,
            num_text_tokens=self.num_text_tokens + other.num_text_tokens,
            seconds=self.seconds + other.seconds,
            flops=self.flops + other.flops,
        )

    @property
    def total(self) -> int:
        """Examples."""
        return sum(self.num_examples.values())

    @property
    def accuracy(self) -> float:
        return sum(self.right.values()) / self.total


def answer_examples(
    model: LoopedGPT,
    examples: Sequence[EncodedExample],
    tokenizer: Tokenizer,
    settings: AnswerSettings,
    *,
    batch: int,
    stop_classifier: nn.Module | None = None,
    track: Callable[[Sequence[Sequence[int]]], Iterable[Sequence[int]]] = iter,
) -> list[Answer]:
    """Answer the questions, those of about one length together.

    Args:
        model: on its device, in its precision.
        examples: whose questions are asked.
        tokenizer: knows <bot>.
        settings: how.
        batch: questions answered at once; changes no answer.
        stop_classifier: as of `generate_with_thoughts`.
        track: wraps the batches, each the numbers of its examples; to show progress.
    """
    prompts = [prompt_of(example, settings, tokenizer) for example in examples]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: list[Answer] = [Answer()] * len(prompts)
    for numbers in track([order[start : start + batch] for start in range(0, len(order), batch)]):
        found = generate_with_thoughts(
            model, [prompts[number] for number in numbers], settings, stop_classifier=stop_classifier
        )
        for number, answer in zip(numbers, found, strict=True):
            answers[number] = answer
    return answers


def score_examples(
    model: LoopedGPT,
    examples: Sequence[Example],
    encoded: Sequence[EncodedExample],
    form: TextForm,
    tokenizer: Tokenizer,
    settings: AnswerSettings,
    *,
    batch: int,
    stop_classifier: nn.Module | None = None,
    track: Callable[[Sequence[Sequence[int]]], Iterable[Sequence[int]]] = iter,
) -> Tally:
    """Answer the questions of examples and count.

    Args:
        examples: any share of a data set.
        encoded: the same ones.
        form: how their text is put together.
        The others: as of `answer_examples`.
    """
    start = time.perf_counter()
    answers = answer_examples(
        model, encoded, tokenizer, settings, batch=batch, stop_classifier=stop_classifier, track=track
    )
    seconds = time.perf_counter() - start
    tally = Tally(
        num_thoughts=sum(answer.num_thoughts for answer in answers),
        num_text_tokens=sum(len(answer.text) for answer in answers),
        seconds=seconds,
    )
    is_stopped = stop_classifier is not None
    for example, row, answer in zip(examples, encoded, answers, strict=True):
        num_prompt_tokens = len(prompt_of(row, settings, tokenizer))
        tally += Tally(
            right={len(example.steps): int(is_right(tokenizer.decode(answer.text), example.answer, form))},
            num_examples={len(example.steps): 1},
            flops=answer_flops(model.config, num_prompt_tokens, settings, answer, is_stopped=is_stopped),
        )
    return tally
