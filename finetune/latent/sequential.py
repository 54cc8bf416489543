"""Thoughts one after the other: Coconut (Hao et al. 2024, arXiv 2412.06769, section 3).

A thought is a hidden state that re-enters as an input embedding: the input at a slot is the state after the final norm
at the position before.

    one pass over everything before the first slot; one pass of one position for each slot; one pass over the rest

so every position is computed once. In answering the last thought shares its pass with <eot>. With a stop classifier,
all rows think until the last of them stops, and then forget the thoughts after their own stop.
"""

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.decoding import Decoding
from finetune.latent.forward import Passes
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import PassCount, Thoughts
from pretrain.model.gpt import LoopedGPT


class Sequential:
    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        passes = Passes(model, batch, num_slots, num_loops)
        parts = [passes.run_prefix()]
        for place in range(passes.prefix, passes.end):
            is_latent = passes.is_latent[:, place, None, None]
            thought = torch.where(is_latent, parts[-1][:, -1:], passes.embed(place, place + 1))
            parts.append(passes.run("slots", place, place + 1, thought))
        if num_slots:
            parts.append(passes.run("last", passes.end, passes.length, passes.embed(passes.end, passes.length)))
        return passes.join(parts)

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        states = [decoding.feed_prompts()]  # each enters as the next thought
        if stop is None:
            for _ in range(num_slots - 1):
                states.append(decoding.feed(states[-1]))
            return Thoughts(torch.cat(states, dim=1), [num_slots] * len(states[0]), states[-1])
        has_stopped = torch.zeros_like(states[0][..., 0], dtype=torch.bool)  # [b, 1]
        while len(states) <= num_slots and not has_stopped.all():
            states.append(decoding.feed(states[-1]))
            has_stopped |= stop.is_last(states[-1])
        thoughts = torch.cat(states, dim=1)
        return Thoughts(thoughts[:, :-1], stop.end_thoughts(decoding, thoughts[:, 1:]), thoughts[:, :0])

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        pending = 0 if is_stopped else 1
        return PassCount([num_prompt, *[1] * (num_thoughts - pending)], pending, [])
