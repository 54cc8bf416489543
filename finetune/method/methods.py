"""The methods of fine-tuning by name: how much of the chain of reasoning is removed, and what replaces it.

Coconut and the methods it is compared with (Hao et al. 2024, arXiv 2412.06769, section 4.3) differ in three choices
only: the stages of the curriculum that they use, whether a stage removes steps or tokens, and what fills the slots of
removed reasoning. Methods that came later also add a term to the loss, each in a file of `finetune/latent`: CODI
(`distillation.py`), SIM-CoT (`sim_cot.py`) and LOTUS (`lotus.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

MethodName = Literal[
    "coconut", "cot", "no_cot", "icot", "pause", "without_curriculum", "without_thought", "pause_as_thought", "codi",
    "sim_cot", "lotus",
]  # fmt: skip
Removal = Literal["step", "token"]
Term = Literal["distillation", "step_decoder", "slot_tokens"]
"""A part of the loss that reads more of an example than its row (`finetune/engine/objective.py`)."""


class Slots(NamedTuple):
    """What fills slots."""

    noun: str
    """Its name in the singular, for messages."""
    token: str
    """Name of the token at the slots; thoughts replace its embedding."""
    thinking: Literal["tokens", "sequential", "refined"]
    """Key of the table in `finetune/latent/ways.py`: tokens are read like text, all others are latent thoughts."""


THOUGHTS = Slots("thought", "<latent>", "sequential")
LATENTS = Slots("latent", "<latent>", "refined")
PAUSES = Slots("pause", "<pause>", "tokens")


@dataclass(frozen=True, kw_only=True)
class Method:
    stages: Literal["all", "first", "last"]
    """Stages of the training: all in turn, or only one; the first has the whole chain, the last none of it."""
    slots: Slots | None
    """What replaces removed reasoning: latent thoughts, the embedding of <pause>, or nothing."""
    removal: Removal = "step"
    """What a stage removes from the front of the chain."""
    term: Term | None = None
    """What it adds to the loss."""

    @property
    def has_thoughts(self) -> bool:
        return self.slots is not None and self.slots.thinking != "tokens"

    @property
    def thinks_in_sequence(self) -> bool:
        """Whether each thought is the state after the one before."""
        return self.slots is not None and self.slots.thinking == "sequential"


METHODS: dict[MethodName, Method] = {
    "coconut": Method(stages="all", slots=THOUGHTS),
    "cot": Method(stages="first", slots=None),
    "no_cot": Method(stages="last", slots=None),
    "icot": Method(stages="all", slots=None, removal="token"),
    "pause": Method(stages="last", slots=PAUSES),
    "without_curriculum": Method(stages="last", slots=THOUGHTS),
    "without_thought": Method(stages="all", slots=None),
    "pause_as_thought": Method(stages="all", slots=PAUSES),
    "codi": Method(stages="last", slots=THOUGHTS, term="distillation"),
    "sim_cot": Method(stages="all", slots=THOUGHTS, term="step_decoder"),
    "lotus": Method(stages="all", slots=LATENTS, term="slot_tokens"),
}

CONTROLS: tuple[MethodName, ...] = ("without_thought", "pause_as_thought", "without_curriculum")
"""What a method with thoughts and a curriculum is held against: its curriculum without thoughts, and with pauses in
their place; its thoughts without the curriculum."""


def names_of(is_one: Callable[[Method], bool]) -> str:
    """The names of the methods that something is true of, for messages."""
    return ", ".join(name for name, method in METHODS.items() if is_one(method))
