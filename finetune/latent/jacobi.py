"""Latent thoughts computed in parallel, by Jacobi iteration (PCCoT, arXiv 2506.18582).

Thought i of a row is a function of the thoughts before it: n equations in n unknowns. The input of the first slot is
known, the state before it; the others start as the embedding of `<latent>`. Then, over the keys and values of the
prefix,

    T refining passes over all slots at once, each giving every slot the state before it; one pass over the slots and
    the rest.

After t refining passes the inputs of the first t + 1 slots equal those of the sequential forward, gradients included:
T = n - 1 passes are the sequential method, and more change nothing. T = 0 is one thought and n - 1 pauses. A stop
classifier sees all thoughts after one pass over them; those after the last are forgotten.
"""

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.decoding import Decoding
from finetune.latent.forward import Passes
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import PassCount, Thoughts
from pretrain.model.gpt import LoopedGPT


class Jacobi:
    """T = `num_passes`; the state of the last slot enters no slot, so one slot less than there are is refined."""

    def __init__(self, num_passes: int) -> None:
        self._num_passes = num_passes

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        passes = Passes(model, batch, num_slots, num_loops)
        before = passes.run_prefix()
        if not num_slots:
            return passes.join([before])
        start, num_refined = passes.prefix, num_slots - 1
        embedded, is_latent = passes.embed(start, passes.length), passes.is_latent[:, start:, None]
        first = torch.where(is_latent[:, :1], before[:, -1:], embedded[:, :1])
        inputs = torch.cat((first, embedded[:, 1:]), dim=1)  # [b, s - p, d]
        for _ in range(min(self._num_passes, num_refined)):
            states = passes.run("trial", start, start + num_refined, inputs[:, :num_refined])
            thoughts = torch.where(is_latent[:, 1:num_slots], states, embedded[:, 1:num_slots])
            inputs = torch.cat((first, thoughts, embedded[:, num_slots:]), dim=1)
        return passes.join([before, passes.run("last", start, passes.length, inputs)])

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        first, num_refined = decoding.feed_prompts(), num_slots - 1
        thoughts = torch.cat((first, decoding.embed_same([slot] * num_refined)), dim=1)  # [b, k, d]
        for _ in range(min(self._num_passes, num_refined)):
            states = decoding.branch(thoughts[:, None, :num_refined])[:, 0]
            thoughts = torch.cat((first, states), dim=1)
        if stop is None:
            return Thoughts(thoughts, [num_slots] * len(thoughts), thoughts)
        return Thoughts(thoughts, stop.end_thoughts(decoding, decoding.feed(thoughts)), thoughts[:, :0])

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        num_refined = num_slots - 1  # however many a classifier keeps
        tried = [(num_refined, num_prompt + num_refined)] * min(self._num_passes, num_refined)
        fed, pending = ([num_prompt, num_slots], 0) if is_stopped else ([num_prompt], num_slots)
        return PassCount(fed, pending, tried)
