"""Drawing answers: question, noisy latent thoughts, text at a temperature; all a function of the answer's key.

A thought is the state after the final norm, as in Coconut, and normal noise:

    t_i = h_i + σ ε_i        so that  log p(t_i) = -|t_i - h_i|² / 2σ² + const

A key names run.seed, step, question and number of the answer, so that no rank or batch shows in what is drawn, up to
the rounding of logits. Noise on thoughts and its probability: as in Latent-GRPO (arXiv 2604.27998), there on mixtures
of embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.latent.decoding import Decoding
from finetune.latent.generation import Answer, AnswerSettings, think, write
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import PassCount, Thoughts
from finetune.reinforce.config import RolloutSection
from pretrain.eval.sampling import Generation, check_prompts, choose_tokens
from pretrain.keyed_hash import bits, open_uniform
from pretrain.model.gpt import LoopedGPT
from pretrain.model.hashed_numbers import normal


class Rollout(NamedTuple):
    """One answer that was drawn."""

    prompt: tuple[int, ...]
    thoughts: Tensor
    """[k, d] as they entered the model; none for a method without."""
    answer: Answer

    @property
    def num_actions(self) -> int:
        """Thoughts and tokens that were drawn, eos included."""
        return len(self.thoughts) + len(self.answer.text) + self.answer.is_over


@dataclass(frozen=True, kw_only=True)
class NoisyThoughts:
    """Thoughts one after the other, as `Sequential`, each with noise before it re-enters."""

    noise: float
    """σ."""
    row_keys: Tensor
    """int32 [b]: a key of each row."""

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        state, thoughts = decoding.feed(decoding.embed(decoding.prompts))[:, -1:], list[Tensor]()
        for number in range(num_slots):
            if number:
                state = decoding.feed(thoughts[-1])
            place = torch.tensor([[number]], device=state.device)
            thoughts.append(state + self.noise * normal(self.row_keys, place, state.shape[-1], state.dtype))
        return Thoughts(torch.cat(thoughts, dim=1), [num_slots] * len(state), thoughts[-1])

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        return PassCount([num_prompt, *[1] * (num_thoughts - 1)], 1, [])


def roll_out(
    model: LoopedGPT, prompts: Sequence[Sequence[int]], keys: Sequence[str], settings: AnswerSettings,
    rollout: RolloutSection,
) -> list[Rollout]:  # fmt: skip
    """Draw an answer to every prompt.

    Args:
        model: on its device, in its precision; or its tensor-parallel part, on all ranks together.
        prompts: token ids of each row up to its first slot.
        keys: of the answers.
        settings: how the model answers.
        rollout: how answers are drawn.

    Raises:
        ValueError: a row outgrows the model's table of positions.
    """
    check_prompts(model, prompts, settings.vocab_size, settings.num_new - 1)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    found: dict[int, Rollout] = {}
    for start in range(0, len(order), rollout.batch):
        rows = order[start : start + rollout.batch]
        drawn = _draw(model, [prompts[row] for row in rows], [keys[row] for row in rows], settings, rollout)
        found |= dict(zip(rows, drawn, strict=True))
    return [found[row] for row in range(len(prompts))]


@torch.inference_mode()
def _draw(
    model: LoopedGPT, prompts: Sequence[Sequence[int]], keys: Sequence[str], settings: AnswerSettings,
    rollout: RolloutSection,
) -> list[Rollout]:  # fmt: skip
    decoding = Decoding(model, prompts, settings.num_new, settings.num_loops)
    if rollout.thought_noise:
        settings = replace(
            settings, thinking=NoisyThoughts(noise=rollout.thought_noise, row_keys=_row_keys(keys, model))
        )
    drawing = Generation(
        max_new_tokens=settings.max_new_tokens, vocab_size=settings.vocab_size, temperature=rollout.temperature
    )

    def choose(logits: Tensor, place: int) -> Tensor:
        draws = [open_uniform(f"{key}/token/{place}") for key in keys]
        uniforms = torch.tensor(draws, dtype=torch.float64, device=logits.device)
        return choose_tokens(logits, drawing, uniforms)[:, None]

    thoughts, states = think(decoding, settings)
    answers = [Answer(num_thoughts=number) for number in thoughts.num_thoughts]
    write(decoding, states, settings, answers, choose)
    rows = zip(prompts, thoughts.thoughts, answers, strict=True)
    return [Rollout(tuple(prompt), drawn, answer) for prompt, drawn, answer in rows]


def _row_keys(keys: Sequence[str], model: LoopedGPT) -> Tensor:
    """int32 [b] of the keys of rows, for their noise."""
    device = next(model.parameters()).device
    numbers = [bits(f"{key}/thought") % 2**32 - 2**31 for key in keys]
    return torch.tensor(numbers, dtype=torch.int32, device=device)
