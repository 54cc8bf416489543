"""How text is generated, and how the next token is chosen: the likeliest one (temperature 0), or the quantile of the
tempered distribution, cut to top k and then top p, at one uniform number: a hash of (seed, row number, position),
independent of the batch and the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.keyed_hash import open_uniform
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop.exit_rules import ExitRule

LoopKeys = Literal["share", "compute"]
"""Where the keys and values of loops come from that a token did not need: its last loop, or it runs on for them."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How text is generated.

    Raises:
        ValueError: a setting is out of range.
    """

    max_new_tokens: int
    """Longest continuation, in tokens; with rotary positions it may exceed the trained train.seq_len."""
    vocab_size: int
    """Tokens of the tokenizer; the model may have more rows, which are never chosen."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a row."""
    num_loops: int | None = None
    """L, with a rule the most. Default: model.num_loops."""
    temperature: float = 0.0
    """Logits are divided by it; 0 = always the likeliest token."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have at least this probability (Holtzman et al. 2020)."""
    top_k: int = 0
    """Draw among so many of the likeliest, of which top_p is a share; 0 = all."""
    seed: int = 0
    """Seed of the draws."""
    rule: ExitRule | None = None
    """By which each new token stops looping, at the latest after `num_loops`. Default: none stops earlier."""
    keys: LoopKeys = "share"
    """Of the loops that tokens leave out."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: needs 0 (always the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: needs a probability above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: needs a number of tokens, or 0 for all")


def check_prompts(model: LoopedGPT, prompts: Sequence[Sequence[int]], vocab_size: int, num_new: int) -> None:
    """Raise a ValueError if a prompt is empty or outside the vocabulary, or with `num_new` positions more longer than
    the model's table."""
    assert prompts
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row} has no token: begin it with the begin-of-sequence token")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(f"prompt {row} has tokens {min(prompt)} to {max(prompt)}, the vocabulary has {vocab_size}")
    if model.position_embedding is not None:
        num_positions = len(model.get_parameter("position_embedding.weight"))
        wanted = max(map(len, prompts)) + num_new
        if wanted > num_positions:
            raise ValueError(
                f"prompt and continuation may have {wanted} tokens, but the model learned {num_positions} positions: "
                "shorten the prompt or lower the number of new tokens"
            )


def choose_tokens(logits: Tensor, settings: Generation, uniforms: Tensor) -> Tensor:
    """The next token of each row.

    Args:
        logits: [b, v].
        settings: how to choose.
        uniforms: [b] numbers in (0, 1), fp64; not looked at when the temperature is 0.

    Returns:
        [b] token ids.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    sorted_logits, order = logits.double().sort(dim=-1, descending=True, stable=True)
    if settings.top_k:
        sorted_logits[:, settings.top_k :] = -torch.inf
    cumulative = (sorted_logits / settings.temperature).softmax(dim=-1).cumsum(dim=-1)  # [b, v]
    num_kept = (cumulative < settings.top_p).sum(dim=-1, keepdim=True).clamp_max(logits.shape[-1] - 1) + 1
    targets = uniforms[:, None] * cumulative.gather(-1, num_kept - 1)
    places = torch.searchsorted(cumulative, targets).minimum(num_kept - 1)
    return order.gather(-1, places).squeeze(-1)


def draw_uniform(seed: int, row: int, position: int) -> float:
    """A number strictly between 0 and 1 that depends on its arguments alone."""
    return open_uniform(f"sampling/{seed}/{row}/{position}")
