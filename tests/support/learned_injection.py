"""An injection with weights of its own, made known to this process for a test and to nothing else of the project."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.model.loop.tables import INJECTIONS
from pretrain.model.loop.variant import Held, Injection
from pretrain.model.weight_kinds import Weights, inside, square, stream_vector


class LearnedInjection(Injection):
    """A vector and a matrix; differs from loop to loop, and uses what is carried in every one, the first too."""

    carries: ClassVar[bool] = True

    def weights(self) -> Weights:
        return {"scale": stream_vector(self.shape.width, "ones"), **inside({"enters": square(self.shape.width)})}

    def flops(self) -> int:
        return 2 * self.shape.width**2

    def enter(self, held: Held, states: Tensor, carried: Tensor, loop: int) -> Tensor:
        return states + (1 + loop) * held["enters"]((carried * held["scale"]).tanh())


@contextmanager
def learned_injection() -> Iterator[None]:
    """While open, `model.loop.injection` may be "learned"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(INJECTIONS, "learned", LearnedInjection)
        yield


def with_learned_injection(config: RunConfig) -> RunConfig:
    """The configuration, past the validation, which does not know the name."""
    loop = config.model.loop.model_copy(update={"injection": "learned", "injection_at": "every"})
    return config.model_copy(update={"model": config.model.model_copy(update={"loop": loop})})
