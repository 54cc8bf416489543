"""The tokens around and in the slots of a row: decided here for the rows of training and for the prompts of answering.

question  <bot> slot ... slot <eot>  text
"""

from collections.abc import Sequence
from typing import NamedTuple

from finetune.method.curriculum import CurriculumSection
from finetune.method.methods import Method
from pretrain.data.tokenizers.tokenizer import Tokenizer


class Markers(NamedTuple):
    """Of a row with slots; by default of one without: there are none."""

    before: tuple[int, ...] = ()
    """<bot>, the last tokens of a prompt."""
    slot: int = -1
    """The token at a slot: <pause>, or <latent>, whose place a thought takes."""
    after: tuple[int, ...] = ()
    """<eot>, which is put after the slots and never chosen."""

    def prompt(self, question: Sequence[int]) -> tuple[int, ...]:
        """What stands before the first slot."""
        return (*question, *self.before)


def markers_of(method: Method, curriculum: CurriculumSection, tokenizer: Tokenizer) -> Markers:
    """The markers of a method.

    Raises:
        ValueError: the tokenizer was made without the tokens of latent thoughts.
    """
    slots = curriculum.slots_of(method)
    if slots is None:
        return Markers()
    return Markers((tokenizer.bot_id,), tokenizer.thought_id(slots.token), (tokenizer.eot_id,))
