"""Reasoning tasks as a source of samples: one example a sequence, made when it is asked for.

A sample is `bos question [steps] answer eos` and padding, with labels of its own (`pretrain/data/stream/entries.py`):
loss on the answer and the eos, on the steps too, or, for a task that has them, on the answer to every prefix of the
question (then nothing follows the question). The n-th sample of stream t is example n · S + t of its split: a function
of the seed and the number, so resuming costs nothing and no number of ranks changes it.
"""

import hashlib
import json
from functools import partial
from typing import Any, Literal

import numpy as np

from pretrain.data.stream.cursor import Cursor
from pretrain.data.stream.entries import label_entry, unsupervised
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example


class TaskSource:
    """A task at one difficulty, as rows of tokens.

    Args:
        description: {"task": name, "parameters": {...}, "supervise": "answer" | "steps" | "prefixes"}; the last two may
            be missing.
        split: which examples are served.
        seed: of the run.
        seq_len: tokens of a sequence; a row holds one more.
        tokenizer: encodes the text.

    Raises:
        ValueError: naming the task and what does not fit.
    """

    def __init__(
        self,
        description: dict[str, Any],
        split: Literal["train", "validation"],
        seed: int,
        seq_len: int,
        tokenizer: Tokenizer,
    ) -> None:
        self.task = make_task(description["task"], description.get("parameters", {}))
        self._entries = {
            "answer": partial(self._sequence, with_steps=False),
            "steps": partial(self._sequence, with_steps=True),
            "prefixes": self._prefixes,
        }[description.get("supervise", "answer")]
        self._split: Literal["train", "validation"] = split
        self._seed, self._seq_len, self._tokenizer = seed, seq_len, tokenizer
        self.fingerprint = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()

    def require_document(self) -> None:
        """Raise a ValueError unless the first example can be made and fits."""
        self.row(0)

    def row(self, number: int) -> np.ndarray:
        """Example `number` of the split, int64 [seq_len + 1]."""
        example = self.task.pick(self._split, self._seed, number)
        try:
            entries = self._entries(example)
        except ValueError as error:
            raise ValueError(f"task {self.task.name}: {error}: data.tokenizer is not made for it") from None
        if len(entries) > self._seq_len + 1:
            raise ValueError(
                f"task {self.task.name}: an example of {len(entries)} tokens does not fit train.seq_len={self._seq_len}"
            )
        row = np.full(self._seq_len + 1, unsupervised(self._tokenizer.pad_id), dtype=np.int64)
        row[: len(entries)] = entries
        return row

    def close(self) -> None:
        """Nothing is open."""

    def _sequence(self, example: Example, with_steps: bool) -> list[int]:
        """An entry is supervised if the token after it is."""
        tokens, is_target = [self._tokenizer.bos_id], [False]
        for piece in self.task.render(example, with_steps=with_steps):
            ids = self._tokenizer.encode(piece.text)
            tokens += ids
            is_target += [piece.kind != "question"] * len(ids)
        tokens, is_target = [*tokens, self._tokenizer.eos_id], [*is_target[1:], True, False]
        return [token if target else unsupervised(token) for token, target in zip(tokens, is_target, strict=True)]

    def _prefixes(self, example: Example) -> list[int]:
        answers = self.task.prefix_answers(example.question)
        symbols = self._tokenizer.encode(example.question)
        if answers is None or len(answers) != len(symbols):
            raise ValueError("supervise=prefixes needs a task with an answer to every prefix, one token a symbol")
        entries = [unsupervised(self._tokenizer.bos_id)]
        for token, answer in zip(symbols, answers, strict=True):
            entries.append(
                unsupervised(token) if answer is None else label_entry(token, self._tokenizer.encode(answer)[0])
            )
        return entries


class TaskWalker:
    """One stream's way through the examples of a task."""

    def __init__(self, source: TaskSource, stream: int, num_streams: int, cursor: Cursor) -> None:
        self.cursor = cursor
        self._source, self._stream, self._num_streams = source, stream, num_streams

    def fill(self, sample: np.ndarray) -> None:
        """Write the next example into `sample`, int64 [seq_len + 1]."""
        sample[:] = self._source.row(self.cursor.document * self._num_streams + self._stream)
        self.cursor.document += 1
