"""Hyper-connections against the paper's definition, written out, and what they begin as."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loop.residual.hyper import Hyper, HyperSection
from pretrain.model.loop.variant import Shape
from tests.unit.model.test_model import LLAMA, OURO, SEQ, random_tokens

ENDS: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 3}
TOKENS, WIDTH = 5, 8


def drawn(hyper: Hyper) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        for name, weight in hyper.layer_weights().items()
    }


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("part", ["attention", "ffn"])
@pytest.mark.parametrize("number", [0, 1])
def test_it_is_the_definition(dynamic: bool, part: str, number: int) -> None:
    """One row of the streams, one stream and one number at a time."""
    n = 3
    hyper = Hyper(Shape(width=WIDTH, num_loops=1, num_layers=2, linears={}), HyperSection(streams=n, dynamic=dynamic))
    held = drawn(hyper)
    streams = torch.randn(TOKENS, n, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entering, join = hyper.branch(held, part, streams.flatten(1), number)  # type: ignore[arg-type]
    update = entering.cos()
    left = join(update).view(TOKENS, n, WIDTH)
    first = (2 * number + (part == "ffn")) % n
    for token in range(TOKENS):
        alpha, beta = torch.eye(n, dtype=torch.float64) + held[f"{part}_mix"], held[f"{part}_write"].clone()
        read = held[f"{part}_read"].clone()
        read[first] += 1
        if dynamic:
            for i in range(n):
                unit = streams[token, i] / (streams[token, i].square().mean() + 1e-6).sqrt()
                for column in range(n + 2):
                    said = torch.tanh(unit @ held[f"{part}_dynamic"][:, column])
                    scale = held[f"{part}_scale"][1 if column == 1 else 0]
                    if column == 0:
                        read[i] += scale * said
                    elif column == 1:
                        beta[i] += scale * said
                    else:
                        alpha[i, column - 2] += scale * said
        torch.testing.assert_close(entering[token], sum(read[i] * streams[token, i] for i in range(n)))
        for j in range(n):
            mixed = sum(alpha[i, j] * streams[token, i] for i in range(n))
            torch.testing.assert_close(left[token, j], mixed + beta[j] * update[token])


@pytest.mark.parametrize("family", [LLAMA, OURO], ids=["llama", "ouro"])
@pytest.mark.parametrize("hyper", [{"streams": 2}, {"streams": 4, "dynamic": False}])
def test_it_begins_as_one_stream(family: ModelSection, hyper: dict[str, Any]) -> None:
    models = []
    for loop in ({}, {"residual": "hyper", "hyper": hyper}):
        models.append(LoopedGPT(ModelSection.model_validate(family.model_dump() | ENDS | {"loop": loop}), SEQ))
        initialise(models[-1], seed=0)
    plain, begun = (model.double()(random_tokens(), 3) for model in models)
    torch.testing.assert_close(begun, plain, rtol=1e-12, atol=1e-12)


def test_norms_of_the_stream_are_refused_with_several() -> None:
    values = {"norm_place": "around", "loop": {"residual": "hyper"}}
    with pytest.raises(ValueError, match=r"model\.norm_place=around norms the residual stream, of which .*=hyper has"):
        ModelSection.model_validate(values)
