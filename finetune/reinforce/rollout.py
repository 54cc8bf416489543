"""Drawing answers: question, noisy latent thoughts, text at a temperature; all a function of the answer's key.

A key names run.seed, step, question and number of the answer, so that no rank or batch shows in what is drawn, up to
the rounding of logits. Noise on thoughts: as in Latent-GRPO (arXiv 2604.27998), there on mixtures of embeddings.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.latent.decoding import Decoding
from finetune.latent.generation import Answer, AnswerSettings, think, write
from finetune.reinforce.config import RolloutSection
from finetune.reinforce.noisy import NoisyThoughts
from pretrain.generation.packing import packed_weights
from pretrain.generation.sampling import check_prompts
from pretrain.keyed_hash import bits
from pretrain.model.gpt import LoopedGPT
from pretrain.model.hashed_numbers import normal


class Rollout(NamedTuple):
    """One answer that was drawn."""

    prompt: tuple[int, ...]
    thoughts: Tensor
    """[k, d] as they entered the model; none for a method without."""
    noise: Tensor
    """[k, d] that is in them."""
    answer: Answer


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
    with packed_weights(model, len(prompts) * settings.num_new):
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
    num_thoughts = settings.num_slots if rollout.thought_noise else 0
    noise = _noise(keys, num_thoughts, model) * rollout.thought_noise
    if num_thoughts:
        settings = replace(settings, thinking=NoisyThoughts(noise=noise))
    thoughts, states = think(decoding, settings)
    draws = [f"{key}/token" for key in keys]
    answers = write(decoding, thoughts, states, settings, temperature=rollout.temperature, draws=draws)
    rows = zip(prompts, thoughts.thoughts, noise, answers, strict=True)
    return [Rollout(tuple(prompt), drawn, added, answer) for prompt, drawn, added, answer in rows]


def _noise(keys: Sequence[str], num_thoughts: int, model: LoopedGPT) -> Tensor:
    """Standard normal numbers [b, k, d] of the rows with these keys."""
    parameter = next(model.parameters())
    numbers = [bits(f"{key}/thought") % 2**32 - 2**31 for key in keys]
    rows = torch.tensor(numbers, dtype=torch.int32, device=parameter.device)
    places = torch.arange(num_thoughts, device=parameter.device)[None]
    return normal(rows, places, model.config.hidden_size, parameter.dtype)
