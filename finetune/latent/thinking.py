"""What a way of thinking is: how the slots of a row are filled, in training and in answering, and what that costs.
Each way with thoughts is a file of its own; `finetune/latent/ways.py` lists them.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.decoding import Decoding
from finetune.latent.forward import Passes
from finetune.latent.stop import StopClassifier
from pretrain.model.gpt import LoopedGPT


class Thoughts(NamedTuple):
    """What rows come to in their slots."""

    thoughts: Tensor
    """[b, k, d] latent thoughts, as they enter; none where slots hold tokens."""
    num_thoughts: list[int]
    """Latent thoughts that each row goes through."""
    pending: Tensor
    """[b, n, d] inputs that have not gone through the model yet: they share a pass with what follows."""


class PassCount(NamedTuple):
    """The passes over one row up to its text."""

    fed: list[int]
    """Positions of each pass whose keys are kept, in order; each looks at all kept ones."""
    pending: int
    """Positions that share a pass with what follows."""
    tried: list[tuple[int, int]]
    """Positions, and keys that they look at, of each pass that leaves nothing behind."""


class Thinking(Protocol):
    """A way of thinking."""

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        """Training: final states of all positions.

        Args:
            model: on one device, or its tensor-parallel part; not a pipeline stage.
            batch: the rows.
            num_slots: at least the largest number of latent slots of a row. Ranks that must stay in step agree on it.
            num_loops: L; the configuration's by default.

        Returns:
            [b, s, d] states after the final norm; what stands at padding means nothing.
        """
        ...

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        """Answering: take the prompts in and fill the slots.

        Args:
            decoding: the rows, none of which has gone through the model yet.
            num_slots: k; with a classifier the largest number of thoughts.
            slot: the token of a slot.
            stop: ends the thoughts, after at least one; None: all k are thought.
        """
        ...

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        """The passes that `think` makes for one row.

        Args:
            num_prompt: tokens of its prompt.
            num_slots: k.
            num_thoughts: that it went through.
            is_stopped: whether a classifier ended them.
        """
        ...


class Tokens:
    """No thoughts: slots hold tokens (pauses), or there are none; one pass over everything."""

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        assert num_slots == 0, "rows without thoughts have no latent slots"
        return Passes(model, batch, 0, num_loops).run_prefix()

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        slots = decoding.embed_same([slot] * num_slots)
        inputs = torch.cat((decoding.embed(decoding.prompts), slots), dim=1)
        return Thoughts(inputs[:, :0], [0] * len(inputs), inputs)

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        return PassCount([], num_prompt + num_slots, [])
