"""The latent forward: passes over the positions of a batch, one segment after another. The ways of thinking
(`finetune/latent/sequential.py`, `finetune/latent/jacobi.py`) choose the passes and fill the slots.

A row is `question <bot>`, its latent slots, and text (`<eot>`, steps, answer). Rows are padded on the left so that all
slots of a batch begin at one place. Keys and values are reused with gradients through them
(`finetune/latent/attention.py`), and shapes depend only on the numbers of positions and slots. A row with fewer slots
than others has text in those positions, in the same passes. On a looped model a thought goes through all loops. Without
slots there is one pass.

The first pass is plain causal attention whatever the padding: each row is rotated so that its padding comes last, where
no token attends to it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from finetune.latent.attention import LatentCache, Segment
from finetune.latent.batch import LatentBatch
from pretrain.model.dropout import Dropout
from pretrain.model.gpt import LoopedGPT


class Passes:
    """The passes over one batch: masks and positions, made once, and the keys and values so far. Arguments as of
    `Thinking.states`; without slots the prefix is the whole batch."""

    def __init__(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None) -> None:
        assert model.embedding is not None, "the latent forward needs the whole model"
        self._model, self._embedding, self._num_loops = model, model.embedding, num_loops
        self._num_rows, self._wanted = batch.tokens.shape
        self.prefix = batch.first_slot if num_slots else self._wanted
        """Positions of the first pass."""
        self.end = self.prefix + num_slots
        """Where the slots end."""
        self.length = max(self._wanted, self.end + 1) if num_slots else self._wanted
        """Positions of all passes: short rows are extended, so ranks that agree on the slots make the same passes."""
        extra = (0, self.length - self._wanted)
        self._tokens, self.is_latent = (F.pad(tensor, extra) for tensor in (batch.tokens, batch.is_latent))
        self._padding = batch.first_token[:, None]
        self._places = torch.arange(self.length, device=batch.tokens.device)
        columns = self._places[: self.prefix]
        self._turned = (columns + self._padding) % self.prefix  # [b, p]: the place in each column of the first pass
        self._columns = (columns - self._padding) % self.prefix  # [b, p]: the column of each place
        dtype = next(model.parameters()).dtype
        is_padding = columns >= self.prefix - self._padding
        seen = torch.zeros(self._num_rows, self.length, dtype=dtype, device=batch.tokens.device)
        seen[:, : self.prefix].masked_fill_(is_padding, -torch.inf)
        later = self._places[self.prefix :]
        # [b, s - p, s], added to the scores of positions after the prefix
        self._bias = seen[:, None].repeat(1, len(later), 1)
        self._bias.masked_fill_(self._places > later[:, None], -torch.inf)
        self._cache = LatentCache(segment="whole" if self.prefix == self.length else "prefix")
        self._rate, self._row_keys = batch.dropout, batch.row_keys

    def embed(self, start: int, stop: int) -> Tensor:
        """Embeddings of the tokens at places [start, stop): [b, stop - start, d]."""
        return self._embedding(self._tokens[:, start:stop])

    def run_prefix(self) -> Tensor:
        """States [b, p, d] of the places before the first slot."""
        tokens = self._tokens[:, : self.prefix].gather(1, self._turned)
        self._cache.places = self._turned
        positions = self._places[None, : self.prefix]
        states = self._model(
            tokens, self._num_loops, positions=positions, cache=self._cache, dropout=self._dropout(positions)
        )
        return self._in_place(states)

    def run_all_loops(self) -> list[Tensor]:
        """States [b, s, d] of a batch without slots, as each loop would answer."""
        assert self.prefix == self.length
        tokens = self._tokens.gather(1, self._turned)
        context = self._model.context(tokens, positions=self._places[None])
        passes = self._model.passes(tokens, self._model.config.num_passes(self._num_loops), context)
        return [self._in_place(self._model.finish(left, context, loop + 1)) for loop, left in enumerate(passes)]

    def _in_place(self, states: Tensor) -> Tensor:
        """States [t, d] of the turned prefix as [b, p, d] in the places of the batch."""
        rows = torch.arange(self._num_rows, device=self._places.device)[:, None] * self.prefix
        states = _Reorder.apply(states, (rows + self._columns).flatten(), (rows + self._turned).flatten())
        return states.view(self._num_rows, self.prefix, -1)

    def run(self, segment: Segment, start: int, stop: int, embeddings: Tensor) -> Tensor:
        """States [b, stop - start, d] of places [start, stop), from their inputs [b, stop - start, d]."""
        self._cache.segment, self._cache.places = segment, self._places[None, start:stop]
        bias = self._bias[:, None, start - self.prefix : stop - self.prefix, :stop]
        positions = self._places[start:stop].clamp_max(self._wanted - 1) - self._padding
        tokens = self._tokens[:, start:stop]
        states = self._model(
            tokens, self._num_loops, positions=positions, mask=bias, cache=self._cache, embeddings=embeddings,
            dropout=self._dropout(positions, stop),
        )  # fmt: skip
        return states.view(self._num_rows, stop - start, -1)

    def _dropout(self, positions: Tensor, stop: int = 0) -> Dropout | None:
        """Of a pass over positions [b or 1, s] which attends to the prefix and the places after it up to `stop`."""
        if self._row_keys is None:
            return None
        keys = self._places[None, : self.prefix].expand(self._num_rows, -1)
        if stop:
            keys = torch.cat((keys, self._places[self.prefix : stop] - self._padding), dim=1)
        return Dropout(rate=self._rate, rows=self._row_keys, positions=positions, keys=keys)

    def join(self, parts: list[Tensor]) -> Tensor:
        """States [b, s, d] of the batch from those of its segments."""
        return torch.cat(parts, dim=1)[:, : self._wanted] if len(parts) > 1 else parts[0]


class _Reorder(torch.autograd.Function):
    """Rows of [t, d] in another order; the gradient is gathered too, not scattered, so it is deterministic."""

    @staticmethod
    def forward(ctx: FunctionCtx, states: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return states.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient.index_select(0, *ctx.saved_tensors), None, None  # type: ignore[attr-defined]
