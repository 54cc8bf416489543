"""What the terms of methods read of examples beside their rows: a teacher's rows (CODI), the rows of a decoder
(SIM-CoT), the tokens that slots stand for (LOTUS).

Which text belongs to which of the K · c slots of a row:

    slots    | c of step 1 | c of step 2 | ... | c of step K
    text     | step 1      | step 2      | ... | step K and what was removed after it
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import torch

from finetune.config import FinetuneConfig
from finetune.examples.examples import EncodedExample
from finetune.examples.sequence import EMPTY_ROW, RowMaker, collate
from finetune.latent.batch import Added, AddedCount, LatentBatch
from finetune.latent.lotus import SlotTargets
from finetune.latent.sim_cot import StepRows
from finetune.method.curriculum import Cut
from finetune.method.methods import Term
from pretrain.data.stream.labels import IGNORED

Text = tuple[int, ...]


class CutExample(NamedTuple):
    """What a row is made of."""

    example: EncodedExample
    cut: Cut


Material = Sequence[CutExample | None]
"""Of each row; None for one that fills a batch."""


class AddedMaker(Protocol):
    """Makes what one term reads."""

    def of(self, material: Material, batch: LatentBatch) -> Added:
        """What it reads of the rows of a micro-batch, `batch`."""
        ...

    def count(self, material: Material) -> AddedCount:
        """How much that is of the rows of a whole step."""
        ...


class TeacherRows:
    """The rows of CODI's teacher: the chain in text."""

    def __init__(self, maker: RowMaker, _slots_per_step: int) -> None:
        self._maker = maker

    def of(self, material: Material, batch: LatentBatch) -> LatentBatch:
        rows = [EMPTY_ROW if each is None else self._maker.teacher_row(each.example) for each in material]
        return collate(rows, batch.dropout, () if batch.row_keys is None else batch.row_keys.tolist())

    def count(self, material: Material) -> AddedCount:
        rows = [self._maker.teacher_row(each.example) for each in material if each is not None]
        return AddedCount(len(rows), sum(len(row.tokens) for row in rows), sum(row.num_targets for row in rows))


def texts_of_slots(material: CutExample | None, slots_per_step: int) -> list[Text]:
    """The text of each c slots of a row, empty for those beyond the end of a short chain."""
    if material is None:
        return []
    example, cut = material
    removed, num_groups = example.steps[: cut.removed], cut.num_slots // slots_per_step
    groups = [removed[number : number + 1] for number in range(num_groups - 1)]
    groups += [removed[num_groups - 1 :]] if num_groups else []
    return [tuple(chain.from_iterable(group)) for group in groups]


class DecoderRows:
    """The rows of SIM-CoT's decoder: from each c slots their text, where there is none the answer, and eos."""

    def __init__(self, _maker: RowMaker, slots_per_step: int) -> None:
        self._slots_per_step = slots_per_step

    def of(self, material: Material, batch: LatentBatch) -> StepRows:
        """At least one row, so that the decoder has a pass on every rank."""
        c, width = self._slots_per_step, batch.tokens.shape[1]
        found = [
            (row * width + batch.first_slot - 1 + number * c, text)
            for row, each in enumerate(material)
            for number, text in enumerate(self._texts(each))
        ] or [(0, ())]
        longest = max(1, *(len(text) for _, text in found))
        tokens = torch.zeros(len(found), longest, dtype=torch.int64)
        labels = torch.full((len(found), c + longest), IGNORED)
        for number, (_, text) in enumerate(found):
            tokens[number, : len(text)] = labels[number, c - 1 : c - 1 + len(text)] = torch.tensor(text).long()
        supervised = (labels >= 0).flatten().nonzero().flatten()
        first = torch.tensor([start for start, _ in found])
        return StepRows(
            thoughts=first[:, None] + torch.arange(c), text=tokens, supervised=supervised,
            labels=labels.flatten()[supervised],
        )  # fmt: skip

    def count(self, material: Material) -> AddedCount:
        lengths = [len(text) for each in material for text in self._texts(each)]
        num_tokens = sum(lengths)
        return AddedCount(len(lengths), num_tokens + self._slots_per_step * len(lengths), num_tokens)

    def _texts(self, material: CutExample | None) -> list[Text]:
        texts = texts_of_slots(material, self._slots_per_step)
        if material is None:
            return texts
        *answer, eos = material.example.answer
        return [(*(text or answer), eos) for text in texts]


class SlotTexts:
    """The tokens that the slots of LOTUS stand for: none beyond a text, and no more than c of one."""

    def __init__(self, _maker: RowMaker, slots_per_step: int) -> None:
        self._slots_per_step = slots_per_step

    def of(self, material: Material, batch: LatentBatch) -> SlotTargets:
        c, width = self._slots_per_step, batch.tokens.shape[1]
        found = [
            (row * width + batch.first_slot - 1 + number * c + place, token)
            for row, each in enumerate(material)
            for number, text in enumerate(texts_of_slots(each, c))
            for place, token in enumerate(text[:c])
        ]
        places, labels = torch.tensor(found, dtype=torch.int64).view(-1, 2).unbind(1)
        return SlotTargets(places=places.contiguous(), labels=labels.contiguous())

    def count(self, material: Material) -> AddedCount:
        texts = (text for each in material for text in texts_of_slots(each, self._slots_per_step))
        return AddedCount(targets=sum(min(len(text), self._slots_per_step) for text in texts))


ADDED: dict[Term, Callable[[RowMaker, int], AddedMaker]] = {
    "distillation": TeacherRows,
    "step_decoder": DecoderRows,
    "slot_tokens": SlotTexts,
}
"""By the names of terms in `finetune/method/methods.py`."""


def added_maker(config: FinetuneConfig, maker: RowMaker) -> AddedMaker | None:
    """What makes the material of the term that a configuration has, if it has one."""
    term = config.method.term
    return None if term is None else ADDED[term](maker, config.curriculum.thoughts_per_step)
