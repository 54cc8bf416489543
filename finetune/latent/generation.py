"""Answering with latent thoughts, and its cost: questions of any lengths in one batch, cached, a row the same in every
batch.

    question <bot>  slot ... slot <eot>  text       without markers where a method has no slots

1. The model runs over prompts and slots as the method thinks (`finetune/latent/thinking.py`); with a stop classifier
   each row has its own number of thoughts.
2. <eot> is forced, as it is never trained, and shares a pass with the slots that are pending.
3. Then the engine of all generation writes the text (`pretrain/generation/engine.py`), greedily; a row that has ended
   leaves.

Any number of thoughts can be chosen, whatever the model was trained with. Source: Hao et al. 2024 (arXiv 2412.06769),
sections 3 and 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.latent.decoding import Decoding
from finetune.latent.stop import StopClassifier
from finetune.latent.thinking import Answering, Thoughts, Tokens
from finetune.method.markers import Markers
from pretrain.generation.engine import Wish
from pretrain.generation.sampling import Generation, check_prompts
from pretrain.model.config import ModelSection
from pretrain.model.count import body_flops, head_flops
from pretrain.model.gpt import LoopedGPT


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How questions are answered.

    Raises:
        ValueError: a setting is out of range.
    """

    max_new_tokens: int
    """Longest text, in tokens."""
    vocab_size: int
    """Tokens of the tokenizer; further rows of the model are never chosen."""
    eos_id: int
    """End-of-sequence token: ends a row."""
    thinking: Answering = field(default_factory=Tokens)
    """Fills the slots."""
    markers: Markers = field(default_factory=Markers)
    """Tokens around the slots. Default: none, for a method without slots."""
    num_slots: int = 0
    """k: slots; with a classifier the largest number of thoughts."""
    num_loops: int | None = None
    """L. Default: model.num_loops."""
    forced_text: tuple[int, ...] = ()
    """Tokens that every text begins with; not part of the answer."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_slots < 0:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} needs at least 1, num_slots={self.num_slots} at least 0"
            )
        if self.num_slots and not self.markers.after and isinstance(self.thinking, Tokens):
            raise ValueError(f"num_slots={self.num_slots}: this method has no slots")

    @property
    def way(self) -> Answering:
        """Fills the slots, if there are any."""
        return self.thinking if self.num_slots else Tokens()

    @property
    def num_new(self) -> int:
        """Most tokens and slots after a prompt."""
        return self.num_slots + len(self.script) + self.max_new_tokens

    @property
    def script(self) -> tuple[int, ...]:
        """Tokens between the last slot, or the prompt, and the first token that is chosen."""
        return (*self.markers.after, *self.forced_text)


@dataclass(kw_only=True)
class Answer:
    text: list[int] = field(default_factory=list)
    """New tokens, without eos."""
    num_thoughts: int = 0
    """Latent thoughts, pauses not counted."""
    is_over: bool = False
    """Whether eos ended it; else the largest number of tokens did."""


def generate_with_thoughts(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    settings: AnswerSettings,
    *,
    stop_classifier: StopClassifier | None = None,
) -> list[Answer]:
    """Answer every prompt.

    Args:
        model: on its device, in its precision; or its tensor-parallel part, on all ranks together.
        prompts: token ids of each row up to its first slot (`Markers.prompt`).
        settings: thoughts, loops and length.
        stop_classifier: ends the thoughts of each row. Default: a fixed number of them.

    Raises:
        ValueError: a prompt is empty or outside the vocabulary, or a row outgrows the model's table of positions.
    """
    check_prompts(model, prompts, settings.vocab_size, settings.num_new - 1)  # the last new token is never an input
    with torch.inference_mode():
        decoding = Decoding(model, prompts, settings.num_new, settings.num_loops)
        thoughts, states = think(decoding, settings, stop_classifier)
        return write(decoding, thoughts, states, settings)


def think(
    decoding: Decoding, settings: AnswerSettings, stop_classifier: StopClassifier | None = None
) -> tuple[Thoughts, Tensor]:
    """Run the model over prompts, slots and forced tokens: the thoughts, and the states [b, d] that predict the first
    token of the text."""
    thoughts = settings.way.think(decoding, settings.num_slots, settings.markers.slot, stop_classifier)
    script = decoding.embed_same(settings.script)
    inputs = torch.cat((thoughts.pending, script), dim=1)
    states = decoding.feed(inputs) if inputs.shape[1] else decoding.feed_prompts()
    return thoughts, states[:, -1]


def write(
    decoding: Decoding, thoughts: Thoughts, states: Tensor, settings: AnswerSettings, *, temperature: float = 0.0,
    draws: Sequence[str] | None = None,
) -> list[Answer]:  # fmt: skip
    """Write the text of every row, from its last state [b, d]; at a temperature by its draws' names."""
    how = Generation(
        max_new_tokens=settings.max_new_tokens, vocab_size=settings.vocab_size, end_ids=(settings.eos_id,),
        num_loops=settings.num_loops, temperature=temperature,
    )  # fmt: skip
    names = draws or [None] * len(states)
    wishes = [
        Wish(prompt=prompt, settings=how, never=settings.markers.after, draws=name)
        for prompt, name in zip(decoding.prompts, names, strict=True)
    ]
    rows = zip(thoughts.num_thoughts, decoding.write(states, wishes), strict=True)
    return [Answer(text=row.tokens, num_thoughts=number, is_over=row.reason == "stop") for number, row in rows]


def answer_flops(
    model: ModelSection, num_prompt_tokens: int, settings: AnswerSettings, answer: Answer, *, is_stopped: bool = False
) -> int:
    """Forward FLOPs of one answer, from the passes that generation makes.

    A pass over n positions that attend to s keys costs n · body(s), in which each loop counts, and every
    choice of a token one head (`pretrain/model/count.py`). Not counted: padding, thoughts of a row after the one that
    ended them, and the stop classifier, a product of d numbers. The prompt ends with <bot>; `is_stopped`: a classifier
    ended the thoughts.
    """
    count = settings.way.passes(num_prompt_tokens, settings.num_slots, answer.num_thoughts, is_stopped=is_stopped)
    outside = body_flops(model, 0, settings.num_loops)
    per_key = body_flops(model, 1, settings.num_loops) - outside
    body, num_keys = sum(positions * (outside + per_key * keys) for positions, keys in count.tried), 0
    num_written = len(answer.text) - (not answer.is_over)  # the last token goes through the model only before eos
    for positions in (*count.fed, count.pending + len(settings.script), *[1] * num_written):
        num_keys += positions
        body += positions * (outside + per_key * num_keys)
    num_heads = count.num_heads + len(answer.text) + answer.is_over
    return body + num_heads * head_flops(model)
