"""Reasoning tasks as a source of samples: one example a sequence, made when it is asked for.

A sample is `bos question [steps] answer eos` and padding, with labels on the answer and the eos, on the steps too, or,
for a task that has them, on the answer to every prefix of the question (then nothing follows the question). The n-th
sample of stream t is example n · S + t of its split: a function of the seed and the number, so resuming costs nothing
and no number of ranks changes it.
"""

import hashlib
import json
from functools import partial

import numpy as np

from pretrain.config.run import SourceSection
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
        self._encode = {
            "answer": partial(self._sequence, with_steps=False),
            "steps": partial(self._sequence, with_steps=True),
            "prefixes": self._prefixes,
        }[source.supervise]
        self._split: Split = split
        self._seed, self._seq_len, self._tokenizer = seed, seq_len, tokenizer
        description = source.model_dump(mode="json", exclude={"weight"}, exclude_defaults=True)
        self.fingerprint = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def require_document(self) -> None:
        """Raise a ValueError unless the first example can be made and fits."""
        self.sample(0)

    def sample(self, number: int) -> np.ndarray:
        """Example `number` of the split, int64 [2, seq_len]."""
        example = self.task.pick(self._split, self._seed, number)
        try:
            tokens, labels = self._encode(example)
        except ValueError as error:
            raise ValueError(f"task {self.task.name}: {error}: data.tokenizer is not made for it") from None
        if any(label != IGNORED for label in labels[self._seq_len :]):
            size = f"an example of {len(tokens)} tokens"
            raise ValueError(f"task {self.task.name}: {size} does not fit train.seq_len={self._seq_len}")
        sample = np.full((2, self._seq_len), [[self._tokenizer.pad_id], [IGNORED]], dtype=np.int64)
        sample[:, : len(tokens)] = tokens[: self._seq_len], labels[: self._seq_len]
        return sample

    def close(self) -> None:
        """Nothing is open."""

    def _sequence(self, example: Example, with_steps: bool) -> Encoded:
        tokens, labels = [self._tokenizer.bos_id], []
        for part in self.task.render(example, with_steps=with_steps):
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
        labels = [IGNORED if answer is None else self._tokenizer.encode(answer)[0] for answer in answers]
        return [self._tokenizer.bos_id, *symbols], [IGNORED, *labels]


class TaskWalker:
    """One stream's way through the examples of a task."""

    def __init__(self, source: TaskSource, stream: int, num_streams: int, cursor: Cursor) -> None:
        self.cursor = cursor
        self._source, self._stream, self._num_streams = source, stream, num_streams

    def next_sample(self) -> np.ndarray:
        """The next example, int64 [2, seq_len]."""
        sample = self._source.sample(self.cursor.document * self._num_streams + self._stream)
        self.cursor.document += 1
        return sample
