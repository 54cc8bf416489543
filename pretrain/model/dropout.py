"""Dropout that is a function of the example, not of the machine (Srivastava et al. 2014).

Which elements are dropped follows from a key of the row, the position of its token, the place in the network (layer
application and site) and the channel or head, by a hash. So it is the same on any number of ranks, in any micro-batch,
with any padding, in a recomputed layer and in a resumed run; a generator of random numbers has none of these. The sites
are GPT-2's: the sum of embeddings, the probabilities of attention, and what attention and feed-forward add to the
residual stream. Every loop of a looped model has masks of its own.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.model.hashed_numbers import PRIMES, mix

Site = Literal["embedding", "probabilities", "attention", "ffn"]
SITES: tuple[Site, ...] = ("embedding", "probabilities", "attention", "ffn")


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Dropout of one forward pass."""

    rate: float
    """Probability of dropping an element, in (0, 1); what stays is divided by 1 - rate."""
    rows: Tensor
    """int32 [b]: a key of each row, for example a hash of (seed, epoch, number of the example)."""
    positions: Tensor
    """int64 [b or 1, s] of the tokens of this pass, each in its row."""
    keys: Tensor
    """int64 [b or 1, keys] of the tokens that attention looks at."""

    def states(self, states: Tensor, site: Site, application: int = 0) -> Tensor:
        """Drop elements of [b·s, d] states."""
        key = self._key(site, application)[..., None]  # [b, s, 1]
        channels = torch.arange(states.shape[-1], dtype=torch.int32, device=states.device)
        return self._drop(states, mix(key + channels * PRIMES[1]).flatten(0, 1))

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, first_head: int, application: int
    ) -> Tensor:
        """Attention with dropped probabilities: scores and probabilities are whole tensors here, O(s · keys) memory.

        Args:
            queries: [b, h, s, e].
            keys: [b, g, keys, e], like the values.
            values: see keys.
            mask: [b or 1, 1, s, keys] added to the scores, or True where a query may look; None for causal attention
                of as many queries as keys.
            first_head: number of the first head held here.
            application: number of the layer application.

        Returns:
            [b, h, s, e].
        """
        group = queries.shape[1] // keys.shape[1]
        keys, values = (heads.repeat_interleave(group, dim=1) if group > 1 else heads for heads in (keys, values))
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        heads = torch.arange(first_head, first_head + queries.shape[1], dtype=torch.int32, device=scores.device)
        query = mix(self._key("probabilities", application)[:, None] + heads[:, None] * PRIMES[2])  # [b, h, s]
        drawn = mix(query[..., None] + self.keys.int()[:, None, None] * PRIMES[1])
        wide = torch.promote_types(scores.dtype, torch.float32)
        return self._drop(scores.softmax(-1, dtype=wide).to(scores.dtype), drawn) @ values

    def _key(self, site: Site, application: int) -> Tensor:
        """int32 [b, s] for every token at one place in the network."""
        place = torch.full_like(self.rows, application * len(SITES) + SITES.index(site)) * PRIMES[0]
        place = mix(self.rows + place)  # [b]
        return mix(place[:, None] + self.positions.int() * PRIMES[3])

    def _drop(self, values: Tensor, drawn: Tensor) -> Tensor:
        """Values whose int32 draw, uniform over all of them, is among the lowest `rate`, become 0."""
        is_kept = drawn >= round(self.rate * 2**32) - 2**31
        return torch.where(is_kept, values / (1 - self.rate), 0.0)
