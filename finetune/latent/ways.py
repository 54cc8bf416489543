"""The ways of thinking by the names that methods give them (`finetune/method/methods.py`)."""

from collections.abc import Callable

from finetune.config import MethodSection
from finetune.latent.jacobi import Jacobi
from finetune.latent.lotus import Lotus
from finetune.latent.sequential import Sequential
from finetune.latent.thinking import Thinking, Tokens
from finetune.method.methods import METHODS

WAYS: dict[str, Callable[[MethodSection], Thinking]] = {
    "tokens": lambda _: Tokens(),
    "sequential": lambda method: Sequential() if method.jacobi_passes is None else Jacobi(method.jacobi_passes),
    "refined": lambda method: Lotus(method.refinements),
}


def thinking_of(method: MethodSection) -> Thinking:
    """The way of thinking that a configuration chooses."""
    slots = METHODS[method.name].slots
    return WAYS["tokens" if slots is None else slots.thinking](method)
