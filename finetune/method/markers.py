"""The tokens around and in the slots of a row, for the rows of training and the prompts of answering alike.

question  <bot> slot ... slot <eot>  text
"""

from collections.abc import Sequence
from typing import NamedTuple

from finetune.method.curriculum import CurriculumSection
from finetune.method.methods import Method
from pretrain.data.tokenizers.tokenizer import Tokenizer


class Markers(NamedTuple):
    """The markers of a row with slots; the defaults are for one without."""

    before: tuple[int, ...] = ()
    """<bot>, which ends a prompt."""
    slot: int = -1
    """The token at a slot: <pause>, or <latent>, which a thought replaces."""
    after: tuple[int, ...] = ()
    """<eot>, which follows the slots and is never chosen."""

    def prompt(self, question: Sequence[int]) -> tuple[int, ...]:
        """The tokens before the first slot."""
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
