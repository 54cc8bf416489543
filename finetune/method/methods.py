"""The methods of fine-tuning by name: what becomes of the chain of reasoning, and what stands in its place.

Coconut and the methods it is compared with (Hao et al. 2024, arXiv 2412.06769, section 4.3) differ in three choices,
and in nothing else: which stages of the curriculum are gone through, whether a stage removes steps or tokens, and what
fills the slots of removed reasoning.
"""

from dataclasses import dataclass
from typing import Literal

MethodName = Literal[
    "coconut", "cot", "no_cot", "icot", "pause", "without_curriculum", "without_thought", "pause_as_thought"
]
Slots = Literal["none", "thought", "pause"]


@dataclass(frozen=True, kw_only=True)
class Method:
    stages: Literal["all", "first", "last"]
    """Stages that are gone through: all in turn, or one of them all the time; the first has the whole chain, the last
    none of it."""
    slots: Slots
    """What stands in place of removed reasoning: nothing, latent thoughts, or the embedding of <pause>."""
    removal: Literal["step", "token"] = "step"
    """What a stage removes from the front of the chain."""


METHODS: dict[MethodName, Method] = {
    "coconut": Method(stages="all", slots="thought"),
    "cot": Method(stages="first", slots="none"),
    "no_cot": Method(stages="last", slots="none"),
    "icot": Method(stages="all", slots="none", removal="token"),
    "pause": Method(stages="last", slots="pause"),
    "without_curriculum": Method(stages="last", slots="thought"),
    "without_thought": Method(stages="all", slots="none"),
    "pause_as_thought": Method(stages="all", slots="pause"),
}
