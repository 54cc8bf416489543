"""Examples of reasoning as token ids: read or generated once, encoded once, then only cut and laid out
(`finetune/examples/sequence.py`).

Files: a JSON list of {question, steps, answer} (`pretrain/tasks/example_file.py`), or the text form of GSM8k-Aug, a
line `question||step step ... #### answer` an example (Deng et al. 2023, arXiv 2311.01460). Tasks: any of
`pretrain/tasks` that has steps.

Question, every step and the answer are encoded each by itself, with what ends or begins them, as the published code of
Coconut does: taking steps away changes no token of what stays.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from finetune.config import ExamplesSection
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.storage import read_file
from pretrain.tasks.example_file import read_examples
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example, Split, Task


class TextForm(NamedTuple):
    """What stands between the parts of an example's text."""

    question_end: str = Task.question_end
    step_end: str = Task.step_end
    answer_start: str = Task.answer_start


class EncodedExample(NamedTuple):
    question: tuple[int, ...]
    """With bos, if the tokenizer has one of its own, and the question's end."""
    steps: tuple[tuple[int, ...], ...]
    """Each with its end."""
    answer: tuple[int, ...]
    """With its mark, and eos."""
    num_mark_tokens: int = 0
    """Tokens of the answer that only mark it as one."""


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """A set of examples, as text and as tokens."""

    examples: list[Example]
    encoded: list[EncodedExample]
    """The same ones."""
    form: TextForm

    def part(self, start: int, stop: int) -> "ExampleSet":
        """Those with numbers from `start` to before `stop`."""
        return ExampleSet(examples=self.examples[start:stop], encoded=self.encoded[start:stop], form=self.form)


def load_example_set(section: ExamplesSection, split: Split, seed: int, tokenizer: Tokenizer) -> ExampleSet:
    """Load and encode the examples of a section; arguments and errors as of `load_examples` and `encode_examples`."""
    examples, form = load_examples(section, split, seed)
    return ExampleSet(examples=examples, encoded=encode_examples(examples, form, tokenizer), form=form)


def load_examples(section: ExamplesSection, split: Split, seed: int) -> tuple[list[Example], TextForm]:
    """The examples of a section of the configuration.

    Args:
        section: a file, or a task.
        split: of the task.
        seed: of the task.

    Raises:
        ValueError: a malformed row (named by file and index from 0), an unknown task, or one without steps.
        OSError: the file cannot be read.
    """
    if section.task is not None:
        task = make_task(section.task, section.parameters)
        examples = [task.pick(split, seed, number) for number in range(section.num_examples or 0)]
        if not any(example.steps for example in examples):
            raise ValueError(f"task {section.task} has no steps of reasoning: it cannot be fine-tuned on")
        return examples, TextForm(task.question_end, task.step_end, task.answer_start)
    path = Path(section.path or "")
    examples = read_examples(path) if path.name.endswith((".json", ".json.gz")) else read_lines(path)
    if not examples:
        raise ValueError(f"{path}: holds no example")
    return examples[: section.num_examples], TextForm()


def read_lines(path: Path) -> list[Example]:
    """The examples of a text file, one a line: `question||step step ... #### answer`; there may be no step.

    Raises:
        ValueError: a line of another form, named by its number from 0, or no text.
        OSError: the file cannot be read.
    """
    data = read_file(path)
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a text file: {error}") from None
    examples = []
    # not splitlines: some lines hold other line breaks of Unicode
    for index, line in enumerate(text.removesuffix("\n").split("\n")):
        question, is_question, rest = line.partition("||")
        steps, is_answer, answer = rest.rpartition("####")
        if not is_question or not is_answer or not question.strip() or not answer.strip():
            raise ValueError(f"{path}: row {index}: needs `question||steps #### answer`, got {line[:60]!r}")
        examples.append(Example(question.strip(), tuple(steps.split()), answer.strip()))
    return examples


def encode_examples(examples: Sequence[Example], form: TextForm, tokenizer: Tokenizer) -> list[EncodedExample]:
    """Encode every part of every example.

    Raises:
        ValueError: a text that the tokenizer cannot spell.
    """
    start = () if tokenizer.separators.are_one else (tokenizer.bos_id,)

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text))

    mark = encode(form.answer_start)
    encoded = []
    for example in examples:
        answer = encode(form.answer_start + example.answer)
        # What both begin with: a tokenizer may join the end of the mark with the answer.
        num_mark_tokens = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mark, answer, strict=False)))
        question, steps = (
            encode(example.question + form.question_end),
            tuple(encode(step + form.step_end) for step in example.steps),
        )
        encoded.append(EncodedExample((*start, *question), steps, (*answer, tokenizer.eos_id), num_mark_tokens))
    return encoded
