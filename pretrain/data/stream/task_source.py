"""Reasoning tasks as a source of samples: one example a sequence, made when it is asked for.

A sample is `bos question [steps] answer eos` and padding, with labels on the answer and the eos, on the steps too, or,
for a task that has them, on the answer to every prefix of the question; then nothing follows the question but the mark
before its answer, if the task has one, which is the label after the question. The n-th sample of stream t is example
n · S + t of its split: a function of the seed and the number, so resuming costs nothing and no number of ranks changes
it.
"""

import hashlib
import json

import numpy as np

from pretrain.config.data import SourceSection
from pretrain.config.run import RunConfig
from pretrain.data.stream.cursor import Cursor, Split
from pretrain.data.stream.labels import IGNORED
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example

Encoded = tuple[list[int], list[int]]
"""Tokens, and the label after each."""


class TaskSource:
    """A task at one difficulty, as samples.

    Raises:
        ValueError: naming the task and what does not fit.
    """

    def __init__(self, source: SourceSection, split: Split, seed: int, seq_len: int, tokenizer: Tokenizer) -> None:
        assert source.task is not None
        self.task = make_task(source.task, source.parameters)
        self._with_steps = source.supervise == "steps"
        self._encode = self._prefixes if source.supervise == "prefixes" else self._sequence
        self._split: Split = split
        self._seed, self._seq_len, self._tokenizer = seed, seq_len, tokenizer
        description = source.model_dump(mode="json", exclude={"weight"}, exclude_defaults=True)
        self.fingerprint = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def require_document(self) -> None:
        """Raise a ValueError unless the first example can be made and the longest one fits."""
        self._encoded(self.task.pick(self._split, self._seed, 0))
        if (longest := self.most_positions()) > self._seq_len:
            raise ValueError(
                f"task {self.task.name}: an example can take {longest} positions, more than train.seq_len="
                f"{self._seq_len}: raise it to that"
            )

    def most_positions(self) -> int:
        """The positions that an example of the task takes at most, up to its last label."""
        example = self.task.longest(lambda text: len(self._tokenizer.encode(text)))
        if self._tokenizer.is_of_symbols or self.task.is_prose:
            labels = self._encoded(example)[1]
            return 1 + max(place for place, label in enumerate(labels) if label != IGNORED)
        # How such a tokenizer joins these characters depends on each; it never makes more of them than they have bytes.
        text = "".join(part.text for part in self.task.render(example, with_steps=self._with_steps))
        return 1 + len(text.encode())

    def sample(self, number: int) -> np.ndarray:
        """Example `number` of the split, int64 [2, seq_len]."""
        tokens, labels = self._encoded(self.task.pick(self._split, self._seed, number))
        if any(label != IGNORED for label in labels[self._seq_len :]):
            size = f"an example of {len(tokens)} tokens"
            raise ValueError(f"task {self.task.name}: {size} does not fit train.seq_len={self._seq_len}")
        sample = np.full((2, self._seq_len), [[self._tokenizer.pad_id], [IGNORED]], dtype=np.int64)
        sample[:, : len(tokens)] = tokens[: self._seq_len], labels[: self._seq_len]
        return sample

    def close(self) -> None:
        """Nothing is open."""

    def _encoded(self, example: Example) -> Encoded:
        try:
            return self._encode(example)
        except ValueError as error:
            raise ValueError(f"task {self.task.name}: {error}: data.tokenizer is not made for it") from None

    def _sequence(self, example: Example) -> Encoded:
        tokens, labels = [self._tokenizer.bos_id], []
        for part in self.task.render(example, with_steps=self._with_steps):
            ids = self._tokenizer.encode(part.text)
            tokens += ids
            labels += [IGNORED] * len(ids) if part.kind == "question" else ids
        eos_id = self._tokenizer.eos_id
        return [*tokens, eos_id], [*labels, eos_id, IGNORED]

    def _prefixes(self, example: Example) -> Encoded:
        answers = self.task.prefix_answers(example.question)
        symbols = self._tokenizer.encode(example.question)
        if answers is None or len(answers) != len(symbols):
            raise ValueError("supervise=prefixes needs a task with an answer to every prefix, one token a symbol")
        *labels, last = [IGNORED if answer is None else self._token(answer) for answer in answers]
        mark = self._tokenizer.encode(self.task.question_end + self.task.answer_start)
        return [self._tokenizer.bos_id, *symbols, *mark], [IGNORED, *labels, *mark, last]

    def _token(self, answer: str) -> int:
        """The one token of the answer to a prefix."""
        ids = self._tokenizer.encode(answer)
        if len(ids) != 1:
            raise ValueError(f"supervise=prefixes needs answers of one token, and {answer!r} has {len(ids)}")
        return ids[0]


def require_tasks(config: RunConfig) -> None:
    """Raise a ValueError that names the task that is none, or whose examples do not fit a configuration, if its
    tokenizer is there."""
    tasks = [source for source in config.data.sources if source.task is not None]
    if not tasks:
        return
    for source in tasks:
        make_task(source.task or "", source.parameters)
    try:
        tokenizer = Tokenizer.load(config.data.tokenizer)
    except (ValueError, OSError):
        return  # not there yet: what is said of it is said where it is needed
    for source in tasks:
        TaskSource(source, "train", config.run.seed, config.train.seq_len, tokenizer).require_document()


class TaskWalker:
    """One stream's way through the examples of a task."""

    def __init__(self, source: TaskSource, stream: int, num_streams: int, cursor: Cursor) -> None:
        self.cursor = cursor
        self._source, self._stream, self._num_streams = source, stream, num_streams

    def next_sample(self) -> np.ndarray:
        """The next example, int64 [2, seq_len]."""
        sample = self._source.sample(self.cursor.document * self._num_streams + self._stream)
        self.cursor.document += 1
        self.cursor.samples += 1
        return sample
