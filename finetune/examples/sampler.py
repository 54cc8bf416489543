"""The rows of an optimizer step and their distribution over ranks: a function of (seed, epoch, step) that needs no
stored state.

1. An epoch is a permutation of the examples, drawn from (seed, epoch); step i takes the i-th `effective_batch` of them.
2. Every example is cut by the curriculum (`draw_cut`) and laid out as a row.
3. The rows of a step are sorted by slots and length, and dealt in micro-batches to ranks in turn. So the rows of a
   micro-batch are alike, and ranks have about equal work at the same time. The loss is summed over all rows and divided
   by all targets, so it depends neither on the dealing nor on the number of ranks.

All ranks compute the plan of the whole step, which takes a millisecond: so they agree on the passes of each micro-batch
without communication, as ZeRO-3 and tensor parallelism need.
"""

import math
from collections.abc import Sequence

import numpy as np

from finetune.config import FinetuneConfig
from finetune.examples.added import CutExample, added_maker
from finetune.examples.examples import EncodedExample
from finetune.examples.sequence import EMPTY_ROW, RowMaker, TrainingRow, collate
from finetune.latent.batch import AddedCount, MicroBatch, StepBatch
from finetune.latent.ways import thinking_of
from finetune.method.curriculum import draw_cut, num_held_back, stage_at
from pretrain.config.layout import Layout
from pretrain.keyed_hash import bits


class Sampler:
    """The steps of a run on one data-parallel rank."""

    def __init__(
        self, examples: Sequence[EncodedExample], maker: RowMaker, config: FinetuneConfig, layout: Layout, rank: int
    ) -> None:
        self._examples, self._maker, self._config = examples, maker, config
        self._layout, self._rank = layout, rank
        self._thinking, self._added = thinking_of(config.method), added_maker(config, maker)
        self._chain_lengths = [len(example.chain(config.chosen_method.removal)) for example in examples]
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def require_length(self, seq_len: int) -> None:
        """Raise a ValueError that names the first example that can exceed `seq_len` tokens."""
        for number, example in enumerate(self._examples):
            longest = self._maker.most_tokens(example)
            if longest > seq_len:
                source, limit = self._config.data.train.named("train"), f"train.seq_len={seq_len}"
                raise ValueError(
                    f"{source}: example {number} can have {longest} tokens, more than {limit}: leave it out or raise "
                    "that"
                )

    def require_steps(self) -> None:
        """Raise a ValueError if the method is trained on steps of reasoning, and no example has one."""
        method = self._config.chosen_method
        if (method.stages != "last" or method.term is not None) and not any(self._chain_lengths):
            raise ValueError(
                f"data.train: no example has a step of reasoning, which method.name={self._config.method.name} is "
                "trained on; no_cot and pause need none"
            )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self._examples) / self._config.train.effective_batch)

    def step(self, epoch: int, index: int) -> StepBatch:
        """Step `index` of an epoch; the last one of an epoch may hold fewer examples."""
        size = self._config.train.effective_batch
        numbers = self._order_of(epoch)[index * size : (index + 1) * size]
        progress = index / self.steps_per_epoch
        rows = [(self._row(epoch, progress, int(number)), int(number)) for number in numbers]
        rows.sort(key=lambda row: (row[0].num_thoughts, len(row[0].tokens)))
        rows += [(EMPTY_ROW, -1)] * (size - len(rows))
        keys = [self._row_key(epoch, number) for _, number in rows]
        num_rows = self._config.train.micro_batch
        turn = num_rows * self._layout.data_parallel  # rows of all ranks at the same time
        added = self._added
        is_made = [added is not None and number >= 0 for _, number in rows]
        material = [
            self._cut(epoch, progress, number) if made else None
            for made, (_, number) in zip(is_made, rows, strict=True)
        ]
        micro_batches = []
        for start in range(0, size, turn):
            own = slice(start + self._rank * num_rows, start + (self._rank + 1) * num_rows)
            num_slots = max(row.num_thoughts for row, _ in rows[start : start + turn])
            batch = collate([row for row, _ in rows[own]], self._config.train.dropout, keys[own])
            beside = None if added is None else added.of(material[own], batch)
            micro_batches.append(MicroBatch(batch=batch, num_slots=num_slots, added=beside))
        return StepBatch(
            micro_batches=tuple(micro_batches),
            num_examples=len(numbers),
            num_targets=sum(row.num_targets for row, _ in rows),
            num_thoughts=sum(row.num_thoughts for row, _ in rows),
            num_tokens=sum(len(row.tokens) for row, number in rows if number >= 0),
            num_tried=sum(self._num_tried(row) for row, _ in rows),
            added=AddedCount() if added is None else added.count(material),
        )

    def _num_tried(self, row: TrainingRow) -> int:
        """Positions of a row's passes whose keys are dropped."""
        count = self._thinking.passes(row.first_slot, row.num_thoughts, row.num_thoughts, is_stopped=False)
        return sum(positions for positions, _ in count.tried) if row.num_thoughts else 0

    def _row_key(self, epoch: int, number: int) -> int:
        """32 random bits of an example in an epoch, for dropout."""
        return bits(f"dropout/{self._config.run.seed}/{epoch}/{number}") % 2**32 - 2**31

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._config.run.seed, epoch))))
            self._order = epoch, generator.permutation(len(self._examples))
        return self._order[1]

    def removal(self, epoch: int, index: int) -> tuple[int, int]:
        """The stage of a step and the tokens that it holds back: what changes when more of the chains is removed."""
        curriculum, method = self._config.curriculum, self._config.chosen_method
        held_back = num_held_back(curriculum, method, epoch, index / self.steps_per_epoch)
        return stage_at(curriculum, method, epoch), held_back

    def _row(self, epoch: int, progress: float, number: int) -> TrainingRow:
        return self._maker.row(*self._cut(epoch, progress, number))

    def _cut(self, epoch: int, progress: float, number: int) -> CutExample:
        config, length = self._config, self._chain_lengths[number]
        cut = draw_cut(config.curriculum, config.chosen_method, config.run.seed, epoch, number, length, progress)
        return CutExample(self._examples[number], cut)
