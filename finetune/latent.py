"""The latent forward of Coconut: thoughts are hidden states that re-enter as input embeddings (Hao et al. 2024, arXiv 2412.06769,
section 3).

A row is `question <bot>`, its latent slots, and text (`<eot>`, steps, answer). The input at a latent slot is the state after the final norm
at the position before. Rows are padded on the left so that all slots of a batch begin at one place. Then

    one pass over everything before the first slot; one pass of one position for each slot; one pass over the rest

with keys and values reused, gradients flowing through them: every position is computed once, and the shapes depend on the numbers of
positions and slots alone. A row with fewer slots than others has text in those positions, which goes through the same passes. On a
looped model a thought passes all of its loops.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import KeyValueCache


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Rows of one length, b of s positions."""

    tokens: Tensor
    """int64 [b, s]; what stands at padding and latent slots is not looked at."""
    labels: Tensor
    """int64 [b, s]: the token to predict after each position, -100 for none."""
    supervised: Tensor
    """int64 [n]: where the flattened labels hold a token. Known when the batch is made, so that no kernel waits to count them."""
    first_token: Tensor
    """int64 [b]: positions of padding before each row."""
    is_latent: Tensor
    """bool [b, s]: the latent slots; in a row they follow each other from `first_slot` on."""
    first_slot: int
    """Where the slots of all rows begin; at least one position is before it."""

    def to(self, device: torch.device) -> "LatentBatch":
        """The batch on a device; the copies need not have ended."""
        tensors = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def latent_states(model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
    """Final states of all positions.

    Args:
        model: on one device, or its tensor-parallel part; not a pipeline stage.
        batch: the rows.
        num_slots: passes of one position; at least the largest number of slots of a row. Ranks that must stay in step agree on it.
        num_loops: L; the configuration's by default.

    Returns:
        [b, s, d] states after the final norm.
    """
    assert model.embedding is not None, "the latent forward needs the whole model"
    num_rows, length = batch.tokens.shape
    places = torch.arange(length, device=batch.tokens.device)
    positions = (places - batch.first_token[:, None]).clamp_min(0)  # [b, s], counted in the row
    visible = places >= batch.first_token[:, None]  # [b, s]
    cache = KeyValueCache()

    def run(start: int, stop: int, embeddings: Tensor | None) -> Tensor:
        """Positions [start, stop), after the cached ones: [b, stop - start, d]."""
        queries, keys = places[start:stop, None], places[:stop]
        mask = ((keys <= queries) & visible[:, None, :stop] | (keys == queries))[:, None]  # padding looks at itself
        states = model(
            batch.tokens[:, start:stop], num_loops, positions=positions[:, start:stop], mask=mask, cache=cache, embeddings=embeddings
        )
        return states.view(num_rows, stop - start, -1)

    parts = [run(0, batch.first_slot, None)]
    end = min(batch.first_slot + num_slots, length)
    for place in range(batch.first_slot, end):
        embedded = model.embedding(batch.tokens[:, place : place + 1])
        thought = parts[-1][:, -1:]
        parts.append(run(place, place + 1, torch.where(batch.is_latent[:, place, None, None], thought, embedded)))
    if end < length:
        parts.append(run(end, length, None))
    return torch.cat(parts, dim=1)
