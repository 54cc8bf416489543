"""From an example and its cut to a row of tokens, and from rows to a batch: the only place where masks and labels are
made.

    question  <bot> slot ... slot <eot>  remaining steps  answer eos
              ^^^^^^^^^^^^^^^^^^^^^^^^^ where the method has slots

Loss is on the text after `<eot>` (after the question, where there are no markers): the label of a position is the next
token, so `<eot>` itself is never predicted, and its position predicts the first token of the text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from finetune.examples.examples import EncodedExample
from finetune.latent.batch import LatentBatch
from finetune.method.curriculum import CurriculumSection, Cut
from finetune.method.markers import Markers, markers_of
from finetune.method.methods import Method
from pretrain.data.stream.labels import IGNORED
from pretrain.data.tokenizers.tokenizer import Tokenizer


class TrainingRow(NamedTuple):
    tokens: tuple[int, ...]
    first_target: int
    """Position where the supervised text begins."""
    first_slot: int
    """Position where latent slots begin, or would; at least 1."""
    num_thoughts: int
    """Latent slots."""
    answer: int
    """Position that predicts the first token of the answer, after its mark; -1 where there is none."""

    @property
    def num_targets(self) -> int:
        return len(self.tokens) - self.first_target


class RowMaker:
    """Makes rows of one method; `markers_in_first_stage`: also those without slots have markers.

    Raises:
        ValueError: the tokenizer was made without the tokens of latent thoughts.
    """

    def __init__(
        self, method: Method, curriculum: CurriculumSection, markers_in_first_stage: bool, tokenizer: Tokenizer
    ) -> None:
        self._method, self._markers_in_first_stage = method, markers_in_first_stage
        self.markers = markers_of(method, curriculum, tokenizer)
        self._most_slots = curriculum.max_slots if curriculum.slots_of(method) else 0

    def markers_at(self, num_slots: int) -> Markers:
        """The markers of a row with this number of slots."""
        return self.markers if num_slots or self._markers_in_first_stage else Markers()

    def row(self, example: EncodedExample, cut: Cut) -> TrainingRow:
        """An example with the front of its chain replaced by slots."""
        markers = self.markers_at(cut.num_slots)
        chain = [token for unit in example.chain(self._method.removal)[cut.removed :] for token in unit]
        slots = (*[markers.slot] * cut.num_slots, *markers.after)
        num_thoughts = cut.num_slots if self._method.has_thoughts else 0
        return _row(markers.prompt(example.question), slots, chain, example, num_thoughts)

    def most_tokens(self, example: EncodedExample) -> int:
        """What the row of an example has at most: its whole chain and the slots of the last stage."""
        return len(self.row(example, Cut(0, self._most_slots)).tokens)

    def teacher_row(self, example: EncodedExample) -> TrainingRow:
        """An example with its chain in text, without markers or, as in CODI, the last step: it often is the answer."""
        chain = [token for step in example.steps[:-1] for token in step]
        return _row(example.question, (), chain, example, 0)


def _row(
    head: Sequence[int], slots: Sequence[int], chain: Sequence[int], example: EncodedExample, num_thoughts: int
) -> TrainingRow:
    tokens = (*head, *slots, *chain, *example.answer)
    answer = len(tokens) - len(example.answer) + example.num_mark_tokens - 1
    return TrainingRow(tokens, len(head) + len(slots), len(head), num_thoughts, answer)


EMPTY_ROW = TrainingRow((0, 0), 2, 1, 0, -1)
"""Fills the last batch of an epoch; predicts nothing."""


def collate(rows: Sequence[TrainingRow], dropout: float = 0.0, row_keys: Sequence[int] = ()) -> LatentBatch:
    """Rows as a batch, padded on the left so that all slots begin at one position, and on the right; for dropout with
    a key (int32) of each row."""
    first_slot = max(row.first_slot for row in rows)
    padding = [first_slot - row.first_slot for row in rows]
    length = max(shift + len(row.tokens) for shift, row in zip(padding, rows, strict=True))
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORED)
    is_latent = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, (shift, row) in enumerate(zip(padding, rows, strict=True)):
        end = shift + len(row.tokens)
        tokens[number, shift:end] = torch.tensor(row.tokens)
        labels[number, shift + row.first_target - 1 : end - 1] = tokens[number, shift + row.first_target : end]
        is_latent[number, first_slot : first_slot + row.num_thoughts] = True
    answers = [shift + row.answer if row.answer >= 0 else -1 for shift, row in zip(padding, rows, strict=True)]
    return LatentBatch(
        tokens=tokens,
        labels=labels,
        supervised=(labels >= 0).flatten().nonzero().flatten(),
        first_token=torch.tensor(padding),
        is_latent=is_latent,
        first_slot=first_slot,
        answer=torch.tensor(answers),
        dropout=dropout,
        row_keys=torch.tensor(row_keys, dtype=torch.int32) if dropout else None,
    )
