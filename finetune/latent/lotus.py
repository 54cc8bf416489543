"""LOTUS: latents refined together in loops, each supervised with a token of its step (Fan et al. 2026, arXiv
2606.31779, section 3).

A step is replaced by a block of c latents, all of which are computed at once. With E their embeddings (of `<latent>`)
and f the model over the keys and values of the question:

    h_0 = f(E),   h_r = f(E + h_{r-1})   for r = 1 ... R,   with gradients through all of it.

What follows attends to the last of these passes. The place before each slot predicts, through the model's own head, the
token of the step that the slot stands for; a block longer than its step is not supervised there, and of a longer step
the first c tokens are (`finetune/examples/steps.py`):

    L = mean negative log-likelihood of the text after the latents + λ · the same of the tokens at the slots.

R = `method.refinements` and λ = `method.step_weight`; the published code (yingfan-bot/lotus) has R = up to 6, one more
at each stage, λ = 0.05, and c = 13 with GPT-2, 25 with Llama 3.2. f passes all L loops of a looped model: with R = 0
they alone refine the latents, and a latent goes through L · (R + 1) loops. R is the same at all stages here.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch, MicroBatch, StepBatch, tensors_on
from finetune.latent.decoding import Decoding
from finetune.latent.forward import Passes
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import PassCount, Thoughts
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loss import loss_sums


class Lotus:
    """R = `refinements`."""

    def __init__(self, refinements: int) -> None:
        self._refinements = refinements

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        passes = Passes(model, batch, num_slots, num_loops)
        before = passes.run_prefix()
        if not num_slots:
            return passes.join([before])
        start, end = passes.prefix, passes.end
        inputs = embedded = passes.embed(start, passes.length)  # [b, s - p, d]
        is_latent = passes.is_latent[:, start:end, None]
        for _ in range(self._refinements):
            states = passes.run("trial", start, end, inputs[:, :num_slots])
            slots = embedded[:, :num_slots] + torch.where(is_latent, states, 0.0)
            inputs = torch.cat((slots, embedded[:, num_slots:]), dim=1)
        return passes.join([before, passes.run("last", start, passes.length, inputs)])

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        assert stop is None, "all latents are computed at once"
        decoding.feed_prompts()
        latents = embedded = decoding.embed_same([slot] * num_slots)
        for _ in range(self._refinements):
            latents = embedded + decoding.branch(latents[:, None])[:, 0]
        return Thoughts(latents, [num_slots] * len(latents), latents)

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        return PassCount([num_prompt], num_slots, [(num_slots, num_prompt + num_slots)] * self._refinements)


@dataclass(frozen=True, kw_only=True)
class SlotTargets:
    """What the slots of a batch stand for."""

    places: Tensor
    """int64 [m]: the places, of the flattened states of the batch, that predict a token of a step."""
    labels: Tensor
    """int64 [m]: these tokens."""

    def to(self, device: torch.device) -> "SlotTargets":
        return replace(self, **tensors_on(device, vars(self)))


class SlotTerm:
    """The slots' part of the loss."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def watch(self, model: LoopedGPT, batch: LatentBatch) -> AbstractContextManager[object]:
        return nullcontext()

    def loss(self, model: LoopedGPT, states: Tensor, micro_batch: MicroBatch, step: StepBatch) -> Tensor:
        if not micro_batch.num_slots:
            return states.new_zeros(())
        targets = micro_batch.added
        assert isinstance(targets, SlotTargets)
        nll, _ = loss_sums(model, states.flatten(0, 1).index_select(0, targets.places), targets.labels)
        return self._weight * nll / max(step.added.targets, 1)
