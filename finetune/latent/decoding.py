"""A batch of rows while they are answered: inputs go in, states come out, keys and values are kept.

Prompts are padded on the right to one length, and each row continues at its own (`pretrain/generation/slots.py`), so a
row has the same answer in every batch. Up to its text all rows go in step, several places in a pass where a way of
thinking has it so; the text is written by the engine of all generation, where rows leave when they have ended.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.generation.engine import Continuation, GenerationEngine, Wish
from pretrain.generation.slots import SlotCache
from pretrain.generation.stepper import PassStepper
from pretrain.model.gpt import LoopedGPT


class Decoding:
    """The state of a batch of rows: their keys and values so far, and the length of every row.

    Args:
        model: on its device, in its precision; or its tensor-parallel part, on all ranks together.
        prompts: token ids of each row.
        num_new: largest number of positions after the prompts.
        num_loops: L. Default: the configuration's.
    """

    def __init__(
        self, model: LoopedGPT, prompts: Sequence[Sequence[int]], num_new: int, num_loops: int | None = None
    ) -> None:
        self.model, self.prompts, self._num_loops = model, prompts, num_loops
        self.device = next(model.parameters()).device
        self._lengths = [0] * len(prompts)
        capacity = max(map(len, prompts)) + num_new
        self._cache = SlotCache(
            model.config, num_slots=len(prompts), capacity=capacity, num_loops=num_loops, forgets=True
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [b, n, d] of tokens [b, n]."""
        assert self.model.embedding is not None, "answering needs the whole model"
        return self.model.embedding(tokens)

    def embed_same(self, tokens: Sequence[int]) -> Tensor:
        """Embeddings [b, n, d] of the same n tokens in every row."""
        one = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        return self.embed(one.expand(len(self.prompts), -1))

    def feed_prompts(self) -> Tensor:
        """Run the model over the prompts: [b, 1, d] states at the last token of each."""
        return self._begin(self.embed_same(()))

    def feed(self, embeddings: Tensor) -> Tensor:
        """Run the model over the next n places, in one pass with the prompts if these have not been fed: [b, n, d]
        inputs to [b, n, d] states after the final norm."""
        if not any(self._lengths):
            return self._begin(embeddings)[:, 1:]
        num_new = embeddings.shape[1]
        states = self._run(embeddings, [num_new] * len(self._lengths))
        self._lengths = [length + num_new for length in self._lengths]
        return states

    def _begin(self, after: Tensor) -> Tensor:
        """Run the model over the prompts and inputs [b, n, d] after them: [b, 1 + n, d] states from the last token of
        each prompt on."""
        lengths = list(map(len, self.prompts))
        padded = [[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in self.prompts]
        inputs = self.embed(torch.tensor(padded, device=self.device))
        rows = zip(inputs, lengths, after, strict=True)
        inputs = torch.stack([torch.cat((row[:length], end, row[length:])) for row, length, end in rows])
        counts = [length + after.shape[1] for length in lengths]
        states = self._run(inputs, counts)
        self._lengths = counts
        return torch.stack(
            [row[length - 1 : count] for row, length, count in zip(states, lengths, counts, strict=True)]
        )

    def branch(self, embeddings: Tensor) -> Tensor:
        """Run the model over c continuations of every row, none of which sees another, and keep none of them: [b, c,
        n, d] inputs to [b, c, n, d] states after the final norm."""
        num_rows, num_branches, length, _ = embeddings.shape
        num_new = num_branches * length
        number = torch.arange(num_new, device=self.device)
        is_own = (number[:, None] // length == number // length) & (number <= number[:, None])  # [c·n, c·n]
        starts = torch.tensor(self._lengths, device=self.device)[:, None, None]
        columns = torch.arange(max(self._lengths) + num_new, device=self.device)
        among = (columns - starts).clamp(0, num_new - 1).expand(-1, num_new, -1)  # of the new ones, if it is one
        own = is_own.expand(num_rows, -1, -1).gather(2, among)
        is_new = (columns >= starts) & (columns < starts + num_new)
        visible = ((columns < starts) | (is_new & own))[:, None]
        within = torch.arange(length, device=self.device).repeat(num_branches)
        return self._run(embeddings.flatten(1, 2), [num_new] * num_rows, visible, within).view(embeddings.shape)

    def forget(self, counts: Tensor) -> None:
        """Give up the last positions of the rows, [b] of them, as if they had not been fed."""
        self._lengths = [length - count for length, count in zip(self._lengths, counts.tolist(), strict=True)]

    def write(self, states: Tensor, wishes: Sequence[Wish]) -> list[Continuation]:
        """Write the text of every row, from the states [b, d] at its last place. Nothing can be fed after that."""
        stepper = PassStepper(self.model, self._cache)
        engine = GenerationEngine(stepper, num_slots=len(self.prompts), device=self.device)
        continuations = engine.adopt(wishes, self._lengths, states)
        while not engine.is_idle:
            engine.step()
        return continuations

    def _run(
        self, embeddings: Tensor, counts: Sequence[int], visible: Tensor | None = None, within: Tensor | None = None
    ) -> Tensor:
        """States of new positions; `within`: their numbers after the row's length, where these are not 0, 1, ..."""
        num_rows, num_places, _ = embeddings.shape
        slots = range(num_rows)
        self._cache.place(slots, self._lengths, counts, device=self.device, visible=visible)
        if within is None:
            within = torch.arange(num_places, device=self.device)
        positions = torch.tensor(self._lengths, device=self.device)[:, None] + within
        tokens = positions.new_zeros(num_rows, num_places)  # only their shape counts
        states = self.model(tokens, self._num_loops, positions=positions, cache=self._cache, embeddings=embeddings)
        return states.view(num_rows, num_places, -1)
