"""Thoughts with noise: drawn in answering, and in training either given, or computed anew with the same noise.

t_i = h_i + σ ε_i        so that  log p(t_i) = -|t_i - h_i|² / 2σ² + const
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.decoding import Decoding
from finetune.latent.forward import Passes
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import PassCount, Thoughts
from pretrain.model.gpt import LoopedGPT


@dataclass(frozen=True, kw_only=True)
class NoisyThoughts:
    """Thoughts one after the other, as `Sequential`, each with noise before it re-enters."""

    noise: Tensor
    """[b, k, d] that is added to the thoughts of each row."""

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        state, thoughts = decoding.feed_prompts(), list[Tensor]()
        for number in range(num_slots):
            if number:
                state = decoding.feed(thoughts[-1])
            thoughts.append(state + self.noise[:, number, None].to(state))
        return Thoughts(torch.cat(thoughts, dim=1), [num_slots] * len(state), thoughts[-1])

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        """As of `Thinking`; every row has k thoughts."""
        passes = Passes(model, batch, num_slots, num_loops)
        parts = [passes.run_prefix()]
        for number, place in enumerate(range(passes.prefix, passes.end)):
            thought = parts[-1][:, -1:] + self.noise[:, number, None].to(parts[-1])
            parts.append(passes.run("slots", place, place + 1, thought))
        parts.append(passes.run("last", passes.end, passes.length, passes.embed(passes.end, passes.length)))
        return passes.join(parts)

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        return PassCount([num_prompt, *[1] * (num_thoughts - 1)], 1, [])


@dataclass(frozen=True, kw_only=True)
class GivenThoughts:
    """Thoughts as they were drawn: one pass over them and all that follows, whatever their number."""

    thoughts: Tensor
    """[b, k, d] as they entered."""

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        """As of `Thinking`; every row has k thoughts."""
        passes = Passes(model, batch, num_slots, num_loops)
        before = passes.run_prefix()
        text = passes.embed(passes.end, passes.length)
        inputs = torch.cat((self.thoughts.to(text), text), dim=1)
        return passes.join([before, passes.run("last", passes.prefix, passes.length, inputs)])
