"""An injection with weights of its own, made known to this process for a test and to nothing else of the project."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.model.config import ModelSection
from pretrain.model.loop.injection import Injection
from pretrain.model.loop.injections import INJECTIONS, InjectionKind
from pretrain.model.parallel_ops import ParallelOps
from pretrain.model.weight_kinds import Weights, stream_vector, under


class LearnedInjection(Injection):
    """A vector in what it carries and a matrix in how it enters; uses what it carries in every loop, the first too."""

    def __init__(self, ops: ParallelOps, weights: Weights) -> None:
        super().__init__()
        self.carries, self.enters = ops.parameter(weights["carries"]), ops.linear(under(weights, "enters"))

    def carry(self, states: Tensor) -> Tensor:
        return (states * self.carries).tanh()

    def enter(self, states: Tensor, carried: Tensor | None, loop: int) -> Tensor:
        assert carried is not None
        return states + (1 + loop) * self.enters(carried)


def _weights(model: ModelSection) -> Weights:
    matrix = replace(stream_vector(1, "normal"), shape=(model.hidden_size, model.hidden_size), decays=True)
    return {"carries": stream_vector(model.hidden_size, "ones"), "enters.weight": matrix}


LEARNED = InjectionKind(
    make=LearnedInjection,
    can_unroll=False,
    weights=_weights,
    flops=lambda model, num_passes: num_passes * 2 * model.hidden_size**2,
)


@contextmanager
def learned_injection() -> Iterator[None]:
    """While open, `model.input_injection` may be "learned"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(INJECTIONS, "learned", LEARNED)
        yield


def with_learned_injection(config: RunConfig) -> RunConfig:
    """The configuration, past the validation, which does not know the name."""
    model = config.model.model_copy(update={"input_injection": "learned"})
    return config.model_copy(update={"model": model})
