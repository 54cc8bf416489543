"""Scoring answers: exact match, length, time and cost. `Answerer` answers and counts (`Tally`), the tallies of several
ranks add up, and `finetune/answers/results.py` makes their sum a row.

An answer is the text after the last answer mark ("#" in the paper's form), without commas; it is right if it equals the
wanted one, character by character (Hao et al. 2024, arXiv 2412.06769, and its published code). New tokens are latent
thoughts and text, as in the paper's table 1; pauses and eos do not count.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from finetune.config import FinetuneConfig
from finetune.examples.examples import EncodedExample, ExampleSet, TextForm, spoken
from finetune.examples.sequence import RowMaker
from finetune.latent.generation import Answer, AnswerSettings, answer_flops, generate_with_thoughts
from finetune.latent.stop import StopClassifier
from finetune.latent.ways import thinking_of
from finetune.method.curriculum import cut_at, final_stage
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.generation.packing import packed_weights
from pretrain.model.gpt import LoopedGPT


def answer_settings(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    *,
    stage: int | None = None,
    num_slots: int | None = None,
    num_loops: int | None = None,
) -> AnswerSettings:
    """How a method answers at a stage of the curriculum, by default its last one.

    `num_slots` (k) defaults to that of the stage, `num_loops` (L) to that of training. Neither depends on the example,
    whose chain is not known.

    Raises:
        ValueError: slots for a method that has none.
    """
    method, curriculum = config.chosen_method, config.curriculum
    maker = RowMaker(method, curriculum, config.method.markers_in_first_stage, tokenizer)
    if num_slots is None:
        stage = final_stage(curriculum, method) if stage is None else stage
        num_slots = cut_at(curriculum, method, stage, curriculum.num_stages).num_slots  # those of a long chain
    return AnswerSettings(
        max_new_tokens=config.validation.max_new_tokens,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        thinking=thinking_of(config.method),
        markers=maker.markers_at(num_slots),
        num_slots=num_slots,
        num_loops=num_loops or config.train.num_loops,
    )


def is_right(text: str, answer: str, form: TextForm) -> bool:
    """Whether the text that a model wrote ends in the wanted answer, which is given without its mark."""
    return stated_answer(text, form) == spoken(answer)


def stated_answer(text: str, form: TextForm) -> str:
    """The text after the last answer mark; all of it where there is none."""
    return spoken(text.rpartition(form.mark)[2] if form.mark else text)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over examples; tallies of disjoint examples add up."""

    right: Counter[int] = field(default_factory=Counter)
    """Right answers by the length of the chain of reasoning, in steps."""
    num_examples: Counter[int] = field(default_factory=Counter)
    """Examples by the length of their chain."""
    num_thoughts: int = 0
    num_text_tokens: int = 0
    seconds: float = 0.0
    flops: int = 0
    """Forward FLOPs, without padding."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def total(self) -> int:
        return self.num_examples.total()

    @property
    def accuracy(self) -> float:
        return self.right.total() / self.total


Track = Callable[[Sequence[Sequence[int]]], Iterable[Sequence[int]]]
"""Wraps the batches of questions, each a list of example numbers; to show progress."""


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model that answers questions, those of about one length together."""

    model: LoopedGPT
    """On its device, in its precision; or its tensor-parallel part."""
    tokenizer: Tokenizer
    settings: AnswerSettings
    batch: int
    """Questions answered at once; changes no answer."""
    stop_classifier: StopClassifier | None = None
    """Ends the thoughts. Default: a fixed number of them."""

    def prompts(self, examples: Sequence[EncodedExample]) -> list[tuple[int, ...]]:
        return [self.settings.markers.prompt(example.question) for example in examples]

    def answer(self, examples: Sequence[EncodedExample], track: Track = iter) -> list[Answer]:
        """Answer the questions of examples.

        Raises:
            ValueError: a question and its answer are longer than the model's table of positions.
        """
        prompts = self.prompts(examples)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        answers: list[Answer] = [Answer()] * len(prompts)
        batches = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        with packed_weights(self.model, len(prompts) * self.settings.num_new):
            for numbers in track(batches):
                questions = [prompts[number] for number in numbers]
                found = generate_with_thoughts(
                    self.model, questions, self.settings, stop_classifier=self.stop_classifier
                )
                for number, answer in zip(numbers, found, strict=True):
                    answers[number] = answer
        return answers

    def score(self, questions: ExampleSet, track: Track = iter) -> Tally:
        """Answer questions and count; errors as of `answer`."""
        start = time.perf_counter()
        answers = self.answer(questions.encoded, track)
        seconds = time.perf_counter() - start
        is_stopped = self.stop_classifier is not None
        right: Counter[int] = Counter()
        for example, answer in zip(questions.examples, answers, strict=True):
            text = self.tokenizer.decode(answer.text)
            right[len(example.steps)] += is_right(text, example.answer, questions.form)
        return Tally(
            right=right,
            num_examples=Counter(len(example.steps) for example in questions.examples),
            num_thoughts=sum(answer.num_thoughts for answer in answers),
            num_text_tokens=sum(len(answer.text) for answer in answers),
            seconds=seconds,
            flops=sum(
                answer_flops(self.model.config, len(prompt), self.settings, answer, is_stopped=is_stopped)
                for prompt, answer in zip(self.prompts(questions.encoded), answers, strict=True)
            ),
        )
