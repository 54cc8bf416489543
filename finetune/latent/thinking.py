"""The interface of a way of thinking: how the slots of a row are filled in training and in answering, and what that
costs. Each way with thoughts has its own file; `finetune/latent/ways.py` lists them.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.decoding import Decoding
from finetune.latent.forward import Passes
from finetune.latent.stop import StopClassifier
from pretrain.model.gpt import LoopedGPT


class Thoughts(NamedTuple):
    """The filled slots of a batch."""

    thoughts: Tensor
    """[b, k, d] latent thoughts, as they enter the model; none where slots hold tokens."""
    num_thoughts: list[int]
    """Latent thoughts of each row."""
    pending: Tensor
    """[b, n, d] inputs that the model has not seen yet: they share a pass with what follows, and with the prompts if
    these have not been fed."""


class PassCount(NamedTuple):
    """The passes over one row up to its text."""

    fed: list[int]
    """Positions of each pass whose keys are kept, in order; each attends to all kept ones."""
    pending: int
    """Positions that share a pass with what follows."""
    tried: list[tuple[int, int]]
    """Positions, and keys that they attend to, of each pass whose keys are dropped."""
    num_heads: int = 0
    """Products of one state with a matrix of the head's size."""


class Answering(Protocol):
    """What answering needs; a way that is trained is a `Thinking`."""

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        """Answering: run the model over the prompts and fill the slots.

        Args:
            decoding: the rows, not fed yet.
            num_slots: k; with a classifier the largest number of thoughts.
            slot: the token of a slot.
            stop: ends the thoughts, after at least one; None for all k.
        """
        ...

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        """The passes that `think` makes for one row, by the tokens of its prompt, k, its number of thoughts and whether
        a classifier ended them."""
        ...


class Thinking(Answering, Protocol):
    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        """Training: final states of all positions.

        Args:
            model: on one device, or its tensor-parallel part; not a pipeline stage.
            batch: the rows.
            num_slots: at least the largest number of latent slots of a row, equal on ranks that must stay in step.
            num_loops: L. Default: the configuration's.

        Returns:
            [b, s, d] states after the final norm, undefined at padding.
        """
        ...


class Tokens:
    """No thoughts: slots hold tokens (pauses), or there are none; one pass over everything."""

    def states(self, model: LoopedGPT, batch: LatentBatch, num_slots: int, num_loops: int | None = None) -> Tensor:
        assert num_slots == 0, "rows without thoughts have no latent slots"
        return Passes(model, batch, 0, num_loops).run_prefix()

    def think(self, decoding: Decoding, num_slots: int, slot: int, stop: StopClassifier | None) -> Thoughts:
        slots = decoding.embed_same([slot] * num_slots)
        return Thoughts(slots[:, :0], [0] * len(slots), slots)

    def passes(self, num_prompt: int, num_slots: int, num_thoughts: int, *, is_stopped: bool) -> PassCount:
        return PassCount([], num_prompt + num_slots, [])
