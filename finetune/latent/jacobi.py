"""Latent thoughts computed in parallel, by Jacobi's iteration, not one after the other (PCCoT, arXiv 2506.18582).

Thought i of a row is a function of the thoughts before it: n equations in n unknowns. The input of the first slot is
known, the state before it; the others start as the embedding of `<latent>`. Then, over the keys and values of the
prefix,

    T refining passes over all slots at once, each giving every slot the state before it; one pass over the slots and
    the rest.

After t refining passes the inputs of the first t + 1 slots are what the sequential forward makes them, gradients
included: T = n - 1 passes are the sequential method, and more change nothing. T = 0 is one thought and n - 1 pauses.
"""

import torch
from torch import Tensor

from finetune.latent.forward import LatentBatch, Passes
from pretrain.model.gpt import LoopedGPT


def jacobi_states(
    model: LoopedGPT, batch: LatentBatch, num_slots: int, num_passes: int, num_loops: int | None = None
) -> Tensor:
    """Final states of all positions.

    Args:
        model: on one device, or its tensor-parallel part; not a pipeline stage.
        batch: the rows, with the token `<latent>` at their slots.
        num_slots: at least the largest number of slots of a row. Ranks that must stay in step agree on it.
        num_passes: T, at least 0.
        num_loops: L; the configuration's by default.

    Returns:
        [b, s, d] states after the final norm; what stands at padding means nothing.
    """
    passes = Passes(model, batch, num_slots, num_loops)
    before = passes.run_prefix()
    if not num_slots:
        return passes.join([before])
    start, num_refined = passes.prefix, num_slots - 1  # the state of the last slot is no input of a slot
    embedded, is_latent = passes.embed(start, passes.length), passes.is_latent[:, start:, None]
    first = torch.where(is_latent[:, :1], before[:, -1:], embedded[:, :1])
    inputs = torch.cat((first, embedded[:, 1:]), dim=1)  # [b, s - p, d]
    for _ in range(min(num_passes, num_refined)):
        states = passes.run("trial", start, start + num_refined, inputs[:, :num_refined])
        thoughts = torch.where(is_latent[:, 1:num_slots], states, embedded[:, 1:num_slots])
        inputs = torch.cat((first, thoughts, embedded[:, num_slots:]), dim=1)
    return passes.join([before, passes.run("last", start, passes.length, inputs)])
