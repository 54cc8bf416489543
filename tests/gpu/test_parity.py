"""The model on a GPU is the model on a CPU in fp64: loss and gradients of every family and design of the loop, in fp32
and bf16, as it is and compiled, and what is written with a cache.

Without a GPU the same cases run on the CPU (`bash tools/gpu_check.sh` says which it was); compiled ones are skipped, as
they cost minutes of a C++ compiler.
"""

from typing import Any

import pytest
import torch

from pretrain.device.hardware import DTYPES
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.kernels.documents import Documents
from pretrain.model.layers import KeyValueCache
from pretrain.model.loss import loss_sums
from tests.support.loop_designs import MODELS
from tests.unit.model.test_model import FAMILIES, LLAMA, build, random_tokens

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="without a GPU the compiler alone would be tested")
MOST = {"fp32": (1e-5, 1e-4), "bf16": (2e-2, 1e-1)}
"""Largest relative difference of the loss, and of the gradients as one vector."""
CASES: dict[str, tuple[ModelSection, dict[str, Any]]] = {
    **{name: (family, {}) for name, family in FAMILIES.items()},
    **{f"loop {name}": (LLAMA, fields) for name, fields in MODELS.items()},
}
every_case = pytest.mark.parametrize("case", CASES)
precisions = pytest.mark.parametrize("precision", MOST)


def made(case: str, precision: str = "fp64", device: torch.device | str = "cpu", recompute: str = "none") -> LoopedGPT:
    family, changes = CASES[case]
    model = build(family, num_prelude_layers=1, num_coda_layers=1, num_loops=2, recompute=recompute, **changes)
    return model.to(device, DTYPES[precision])


def loss_and_gradients(model: LoopedGPT, **options: Any) -> tuple[float, torch.Tensor]:
    """Of random tokens: the loss, and all gradients as one vector on the CPU."""
    device = next(model.parameters()).device
    tokens = random_tokens().to(device)
    loss, _ = loss_sums(model, model(tokens, **options), tokens.roll(-1, 1))
    loss.backward()
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for _, p in sorted(model.named_parameters())]
    return loss.item(), torch.cat([gradient.flatten().double().cpu() for gradient in found])


def assert_near(found: tuple[float, torch.Tensor], exact: tuple[float, torch.Tensor], precision: str) -> None:
    of_loss, of_gradients = MOST[precision]
    assert found[0] == pytest.approx(exact[0], rel=of_loss)
    assert (found[1] - exact[1]).norm() <= of_gradients * exact[1].norm()


@every_case
@precisions
def test_loss_and_gradients_are_those_of_the_cpu(case: str, precision: str) -> None:
    exact = loss_and_gradients(made(case))
    assert_near(loss_and_gradients(made(case, precision, DEVICE)), exact, precision)


@pytest.mark.parametrize("recompute", ["loop", "layer", "offload", "segment"])
def test_recomputing_changes_nothing(recompute: str) -> None:
    found = loss_and_gradients(made("llama", "fp32", DEVICE, recompute))
    assert_near(found, loss_and_gradients(made("llama")), "fp32")


@precisions
def test_documents_do_not_see_each_other(precision: str) -> None:
    documents = Documents.of(torch.tensor([0] * 4 + [4] * 5 + [9] * 3).expand(3, -1))
    exact = loss_and_gradients(made("llama"), mask=documents.mask())
    found = loss_and_gradients(made("llama", precision, DEVICE), documents=documents.to(DEVICE))
    assert_near(found, exact, precision)


@needs_gpu
@pytest.mark.parametrize("case", [*FAMILIES, "loop add", "loop diagonal"])
@precisions
def test_compiled_is_the_same(case: str, precision: str) -> None:
    model = made(case, precision, DEVICE)
    model.compile_layers()
    assert_near(loss_and_gradients(model), loss_and_gradients(made(case)), precision)


@every_case
def test_a_cache_changes_nothing(case: str) -> None:
    model, tokens = made(case, "fp32", DEVICE), random_tokens().to(DEVICE)
    with torch.no_grad():
        whole, cache = model(tokens).view(*tokens.shape, -1), KeyValueCache()
        for position in range(tokens.shape[1]):
            states = model(tokens[:, position : position + 1], cache=cache)
            torch.testing.assert_close(states, whole[:, position], rtol=1e-3, atol=1e-4)
