"""A batch of rows while they are answered: inputs go in, states come out, keys and values are kept.

Prompts are padded on the left to one length (as in `pretrain/eval/sampling.py`), so all rows continue at the same
place; padding is masked and each row counts its own positions, so a row has the same answer in every batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.eval.sampling import GenerationCache, pad_left
from pretrain.model.gpt import LoopedGPT


class Decoding:
    """The state of a batch of rows: their keys and values so far, and the positions of every row.

    Args:
        model: on its device, in its precision; or its tensor-parallel part, on all ranks together.
        prompts: token ids of each row.
        num_new: largest number of positions after the prompts.
        num_loops: L. Default: the configuration's.
    """

    def __init__(
        self, model: LoopedGPT, prompts: Sequence[Sequence[int]], num_new: int, num_loops: int | None = None
    ) -> None:
        self.model, self._num_loops = model, num_loops
        self.prompts, padding = pad_left(prompts, next(model.parameters()).device)
        self._is_padded = len(set(map(len, prompts))) > 1
        self._places = torch.arange(self.prompts.shape[1] + num_new, device=self.prompts.device)
        self._positions = (self._places - padding[:, None]).clamp_min(0)  # [b, places], counted in the row
        self._visible = self._places >= padding[:, None]  # [b, places]
        self._cache = GenerationCache(capacity=len(self._places), forgets=True)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [b, n, d] of tokens [b, n]."""
        assert self.model.embedding is not None, "answering needs the whole model"
        return self.model.embedding(tokens)

    def embed_same(self, tokens: Sequence[int]) -> Tensor:
        """Embeddings [b, n, d] of the same n tokens in every row."""
        one = torch.tensor(tokens, dtype=torch.int64, device=self.prompts.device)
        return self.embed(one.expand(len(self.prompts), -1))

    def feed(self, embeddings: Tensor) -> Tensor:
        """Run the model over the next n places: [b, n, d] inputs to [b, n, d] states after the final norm."""
        start = self._cache.length
        stop = start + embeddings.shape[1]
        mask = None
        if self._is_padded or start:
            queries, keys = self._places[start:stop, None], self._places[:stop]
            # Padding looks at itself: a query without keys has no softmax.
            mask = ((keys <= queries) & self._visible[:, None, :stop] | (keys == queries))[:, None]
        return self._run(embeddings, self._positions[:, start:stop], mask)

    def branch(self, embeddings: Tensor) -> Tensor:
        """Run the model over c continuations of every row, none of which sees another, and keep none of them: [b, c,
        n, d] inputs to [b, c, n, d] states after the final norm."""
        num_rows, num_branches, length, _ = embeddings.shape
        start, num_new = self._cache.length, num_branches * length
        number = torch.arange(num_new, device=embeddings.device)
        is_own = (number[:, None] // length == number // length) & (number <= number[:, None])
        past = self._visible[:, None, :start].expand(-1, num_new, -1)
        mask = torch.cat((past, is_own.expand(num_rows, -1, -1)), dim=2)[:, None]
        positions = self._positions[:, start : start + length].repeat(1, num_branches)
        states = self._run(embeddings.flatten(1, 2), positions, mask).view(embeddings.shape)
        self._cache.rewind(start)
        return states

    def forget(self, counts: Tensor) -> None:
        """Mask the last positions of the rows, [b] of them, as if they had not been fed."""
        end = self._cache.length
        self._visible &= (self._places < end - counts[:, None]) | (self._places >= end)
        self._positions = torch.where(self._places >= end, self._positions - counts[:, None], self._positions)

    def _run(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        num_rows, num_places, _ = embeddings.shape
        tokens = self._places.new_zeros(num_rows, num_places)  # only their shape counts
        states = self.model(
            tokens, self._num_loops, positions=positions, mask=mask, cache=self._cache, embeddings=embeddings
        )
        return states.view(num_rows, num_places, -1)
