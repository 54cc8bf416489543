"""What enters the layers of a loop waits elsewhere: how much does, that what comes back is it, and the memory of the
device. The host here is a place that torch does not allocate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pretrain.model import offload
from pretrain.model.kernels import blocked_attention
from pretrain.model.loss import loss_sums
from pretrain.plan.memory import Activations
from tests.unit.model.test_model import LLAMA, assert_same, build, gradients, random_tokens
from tests.unit.plan.test_plan import config, measured_bytes

DEEP: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loop_layers": 4, "num_loops": 3}


class Waiting(NamedTuple):
    content: bytearray
    dtype: torch.dtype
    shape: torch.Size


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each tensor that went to the host."""
    sizes: list[int] = []

    def away(tensor: Tensor) -> Waiting:
        sizes.append(tensor.nbytes)
        return Waiting(bytearray(tensor.detach().view(torch.uint8).numpy().tobytes()), tensor.dtype, tensor.shape)

    def back(waiting: Waiting, _: torch.device) -> Tensor:
        return torch.frombuffer(waiting.content, dtype=waiting.dtype).view(waiting.shape).clone()

    places: dict[str, Callable[..., Any]] = {"to_host": away, "to_device": back}
    for name, place in places.items():
        monkeypatch.setattr(offload, name, place)
    return sizes


def test_what_comes_back_is_what_went(moved: list[int]) -> None:
    """Bitwise the gradients of layers that keep what enters them, for which nothing moves."""
    found = []
    for recompute in ("layer", "offload"):
        model, tokens = build(LLAMA, **DEEP, recompute=recompute), random_tokens()
        assert not moved
        found.append(gradients(model, loss_sums(model, model(tokens), tokens.roll(-1, 1))[0]))
    assert_same(found[1], found[0], 0.0)
    assert moved == [tokens.numel() * LLAMA.hidden_size * 8] * 3 * 3  # loops, layers but the first of a loop


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_that_which_torch_allocates(
    precision: str, moved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_attention, "SCRATCH_ELEMENTS", 2**14)
    train = {"recompute": "offload", "precision": precision, "micro_batch": 8}
    run = config({**DEEP, "num_loops": 6}, train=train)
    plan = Activations(config=run)
    kept, peak = measured_bytes(run)
    assert sum(moved) == plan.host(4, 6) > 0.5 * plan.peak(4, 6)
    assert plan.peak(4, 6) == pytest.approx(kept, rel=0.1)
    assert plan.peak(4, 6) + plan.working == pytest.approx(peak, rel=0.1)


def test_loops_without_gradient_send_nothing(moved: list[int]) -> None:
    model, tokens = build(LLAMA, **DEEP, loop={"injection": "add"}, recompute="offload"), random_tokens()
    loss_sums(model, model(tokens, 3, backprop_loops=1), tokens.roll(-1, 1))[0].backward()
    assert len(moved) == 3
    with torch.no_grad():
        model(tokens)
    assert len(moved) == 3


def test_on_a_cpu_nothing_moves() -> None:
    tensor = torch.ones(2, 3)
    assert offload.to_device(offload.to_host(tensor), tensor.device) is tensor
