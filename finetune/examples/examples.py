"""Examples of reasoning as token ids: read or generated once, encoded once, then only cut and laid out
(`finetune/examples/sequence.py`).

Files: JSON of {question, steps, answer}, a list or a row a line (`pretrain/tasks/example_file.py`), or the text form of
GSM8k-Aug (`finetune/examples/text_lines.py`). Tasks: any of `pretrain/tasks` that has steps.

Question, steps and answer are encoded separately, each with the text that ends or begins it, as in the published code
of Coconut: removing steps does not change the tokens of the rest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, assert_never

from finetune.config import ExamplesSection
from finetune.examples.text_lines import read_lines
from finetune.method.methods import Removal
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.rows.identity import digest
from pretrain.run.progress import tracked
from pretrain.tasks.example_file import is_json, read_examples
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example, Split, Task

Item = TypeVar("Item")


class Track(Protocol):
    """Shows how far work on items is while they are taken, as `tracked` does."""

    def __call__(self, items: Iterable[Item], total: int, what: str, /) -> Iterable[Item]: ...


def untracked(items: Iterable[Item], _: int, __: str) -> Iterable[Item]:
    """For a rank whose work another one shows."""
    return items


class TextForm(NamedTuple):
    """The text between the parts of an example."""

    question_end: str = Task.question_end
    step_end: str = Task.step_end
    answer_start: str = Task.answer_start

    @property
    def mark(self) -> str:
        """What an answer is told by: the text after the last one is the answer; empty if it has none."""
        return "#" if self.answer_start.startswith("#") else self.answer_start.strip()

    @classmethod
    def of(cls, task: Task[Any] | type[Task[Any]]) -> "TextForm":
        return cls(task.question_end, task.step_end, task.answer_start)


def form_of(section: ExamplesSection) -> TextForm:
    """The form of the texts of a section: that of its task, or of files."""
    return TextForm() if section.task is None else TextForm.of(make_task(section.task, section.parameters))


class EncodedExample(NamedTuple):
    question: tuple[int, ...]
    """With its end, and bos if the tokenizer has its own token for it."""
    steps: tuple[tuple[int, ...], ...]
    """Each with its end."""
    answer: tuple[int, ...]
    """With its mark, and eos."""
    num_mark_tokens: int = 0
    """Tokens at the start of the answer that are its mark."""

    def chain(self, removal: Removal) -> Sequence[tuple[int, ...]]:
        """The chain of reasoning in the units that a method removes."""
        match removal:
            case "step":
                return self.steps
            case "token":
                return [(token,) for step in self.steps for token in step]
            case _:
                assert_never(removal)


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """Examples as text, and the same ones as tokens."""

    examples: list[Example]
    encoded: list[EncodedExample]
    form: TextForm

    def part(self, start: int, stop: int) -> "ExampleSet":
        return ExampleSet(examples=self.examples[start:stop], encoded=self.encoded[start:stop], form=self.form)


def load_example_set(
    section: ExamplesSection, split: Split, seed: int, tokenizer: Tokenizer, track: Track = tracked, *,
    needs_steps: bool = True,
) -> ExampleSet:  # fmt: skip
    """Load and encode the examples of a section; arguments and errors as of `load_examples` and `encode_examples`."""
    examples, form = load_examples(section, split, seed, track, needs_steps=needs_steps)
    encoded = encode_examples(examples, form, tokenizer, section.named(split), track)
    return ExampleSet(examples=examples, encoded=encoded, form=form)


def load_examples(
    section: ExamplesSection, split: Split, seed: int, track: Track = tracked, *, needs_steps: bool = True
) -> tuple[list[Example], TextForm]:
    """The examples of a file, or of a split of a task with `section.seed` or else `seed`; `track` shows how far it is.
    A task must have steps of reasoning unless the answers alone are wanted.

    Raises:
        ValueError: a malformed row (named by file and index from 0), one whose answer could not be given, fewer rows
            or problems than asked for, an unknown task, or one without steps.
        OSError: the file cannot be read.
    """
    if section.task is not None:
        task = make_task(section.task, section.parameters)
        seed = seed if section.seed is None else section.seed
        count = section.num_examples or 0
        is_train = split == "train"  # what is scored holds no problem twice
        found = (
            (task.pick(split, seed, n) for n in range(count)) if is_train else task.pick_distinct(split, seed, count)
        )
        examples = list(track(found, count, f"drawing data.{split}"))
        if len(examples) < count:
            raise ValueError(
                f"task {section.task}: has {len(examples)} different problems in {split}, "
                f"data.{split}.num_examples={count}: lower that or make the task harder"
            )
        if needs_steps and not any(example.steps for example in examples):
            raise ValueError(f"task {section.task} has no steps of reasoning: it cannot be fine-tuned on")
        return examples, TextForm.of(task)
    path, form = Path(section.path or ""), TextForm()
    if is_json(path):
        if section.step_separator is not None:
            raise ValueError(f"{path}: its steps are lists already: leave out step_separator")
        examples = read_examples(path)
    else:
        examples = read_lines(path, section.step_separator)
    if len(examples) < (section.num_examples or 1):
        raise ValueError(f"{path}: has {len(examples)} examples, data.{split}.num_examples={section.num_examples or 1}")
    require_answers(examples, form, section.path or "")
    return examples[: section.num_examples], form


def require_answers(examples: Sequence[Example], form: TextForm, source: str) -> None:
    """Raise a ValueError that names the first example whose answer could not be given in a form."""
    for number, example in enumerate(examples):
        if not spoken(example.answer):
            raise ValueError(f"{source}: example {number}: its answer {example.answer[:60]!r} has nothing to compare")
        if form.mark and form.mark in example.answer:
            raise ValueError(
                f"{source}: example {number}: its answer {example.answer[:60]!r} holds {form.mark!r}, which marks "
                "where the answer begins: no given answer could equal it"
            )


def data_fingerprint(section: ExamplesSection, train: ExampleSet) -> str:
    """Of what a run is trained on: the examples of a file, or the task, whose examples follow from the seed."""
    of_file = repr(train.examples) if section.task is None else ""
    return digest([section.model_dump(mode="json", exclude={"path"}), of_file])


def spoken(answer: str) -> str:
    """An answer as it is compared: without commas and white space around it."""
    return answer.replace(",", "").strip()


def encode_examples(
    examples: Sequence[Example], form: TextForm, tokenizer: Tokenizer, source: str, track: Track = tracked
) -> list[EncodedExample]:
    """Encode every part of every example of a source, which errors name; `track` shows how far it is.

    Raises:
        ValueError: the tokenizer cannot encode a text.
    """
    start = () if tokenizer.separators.are_one else (tokenizer.bos_id,)
    mark = tokenizer.encode(form.answer_start)
    encoded = []
    for number, example in enumerate(track(examples, len(examples), f"encoding {source}")):
        try:
            encoded.append(_encode(example, form, tokenizer, start, mark))
        except ValueError as error:
            raise ValueError(f"{source}: example {number}: {error}") from None
    return encoded


def _encode(
    example: Example, form: TextForm, tokenizer: Tokenizer, start: tuple[int, ...], mark: Sequence[int]
) -> EncodedExample:
    question = tokenizer.encode(example.question + form.question_end)
    steps = tuple(tuple(tokenizer.encode(step + form.step_end)) for step in example.steps)
    answer = tokenizer.encode(form.answer_start + example.answer)
    # the common beginning: a tokenizer may join the end of the mark with the answer
    num_mark_tokens = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mark, answer, strict=False)))
    return EncodedExample((*start, *question), steps, (*answer, tokenizer.eos_id), num_mark_tokens)
