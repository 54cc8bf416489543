"""Compiled layers are the same on every layout, and are traced once for all loops and loop counts. Without the code
generation that needs a compiler; what decides where it is not asked for."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pretrain.parallel.compilation import choose_compilation
from tests.distributed.cases import Reference, gradient_errors, make_rows, one_step, tiny_config, world_size
from tests.distributed.pool import RankPool

BACKEND = "aot_eager"
"""Of torch.compile: traced and differentiated ahead as ever, run as it is."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "alone, recomputed": {"train": {"recompute": "layer"}},
    "ring": {"pipeline": 2},
    "tensor": {"tensor": 2},
    "tensor and sequence, ring": {"tensor": 2, "pipeline": 2, "sequence": True},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_compiled_step_equals_one_process(pool: RankPool, layout: dict[str, Any]) -> None:
    config = tiny_config("llama", model={"num_prelude_layers": 1}, document_mask=True, **layout)
    rows, reference = make_rows(2), Reference(config=config, shake=True)
    nll, _, norm = reference.backward(rows, 3)
    reports = pool.run(one_step, config, rows, 3, None, BACKEND, world_size=world_size(config, 1))
    for report in reports:
        (result,) = report.results
        assert (result.loss, result.grad_norm) == pytest.approx((nll, norm), rel=1e-10)
    errors = gradient_errors(reports, reference.gradients())
    assert errors.keys() == reference.gradients().keys() and max(errors.values()) <= 1e-10


def test_loops_that_share_keys_are_compiled_once_too() -> None:
    """Whose keys a layer reads is another number in each: torch.compile gives up after eight graphs of one function.
    Of the plain loop: `test_compiled_layers_equal_eager_ones`."""
    graphs = set[int]()
    for layers in (2, 4):
        torch._dynamo.reset()
        counters.clear()
        shape = {"num_loop_layers": layers, "loop": {"keys": "every", "injection": "add"}}
        model = Reference(config=tiny_config(model=shape)).model
        model.compile_layers("eager")
        for loops in (2, 5):
            model(torch.zeros(1, 8, dtype=torch.long), loops)
            graphs.add(counters["stats"]["unique_graphs"])
    assert len(graphs) == 1 and min(graphs) > 0


@pytest.mark.parametrize(
    ("wanted", "device", "generator", "is_on", "said"),
    [
        (None, "cpu", "torch", False, ""),
        (None, "cuda", "torch", True, "compile: yes, on a GPU"),
        (None, "cuda", "no_such_package", False, "compile: no, there is no no_such_package"),
        (True, "cpu", "torch", True, "compile: yes, train.compile=true"),
        (False, "cuda", "torch", False, "compile: no, train.compile=false"),
    ],
)
def test_gpus_compile_unless_told_otherwise(
    wanted: bool | None, device: str, generator: str, is_on: bool, said: str
) -> None:
    choice = choose_compilation(wanted, device, generator)
    assert choice.is_on == is_on and choice.text.startswith(said) and bool(choice.text) == bool(said)
