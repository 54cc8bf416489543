"""The loop regulariser against equations 3 and 4 written out, and what it does to the weights."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loss import loss_sums
from pretrain.model.regulariser import regularisation

WEIGHT, BLOCK, LAYERS = 3.0, 2, 6
KINDS = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "attention_output": "attention.output",
    "gate": "ffn.gate",
    "up": "ffn.up",
    "down": "ffn.down",
}


def build(weight: float = WEIGHT, *, activation: str = "swiglu", groups: tuple[str, ...] = tuple(KINDS)) -> LoopedGPT:
    config = ModelSection.model_validate(
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "ffn_size": 24,
            "num_loop_layers": LAYERS,
            "activation": activation,
            "loop_regulariser": {"weight": weight, "block_size": BLOCK, "groups": groups},
        }
    )
    model = LoopedGPT(config, 8)
    initialise(model, seed=0)
    return model.double()


def mean_cosine(model: LoopedGPT, kinds: list[str]) -> Tensor:
    """|G|⁻¹ Σ_G R_G(k), R_G(k) = 1/(L - k) Σ_i Σ_j cos(layer ik + j, layer (i+1)k + j)."""
    total = torch.zeros((), dtype=torch.float64)
    for kind in kinds:
        cosines = torch.zeros((), dtype=torch.float64)
        for i in range(LAYERS // BLOCK - 1):
            for j in range(BLOCK):
                a = model.get_parameter(f"loop.{i * BLOCK + j}.{KINDS[kind]}.weight")
                b = model.get_parameter(f"loop.{(i + 1) * BLOCK + j}.{KINDS[kind]}.weight")
                cosines = cosines + (a * b).sum() / (a.norm() * b.norm())
        total = total + cosines / (LAYERS - BLOCK)
    return total / len(kinds)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("groups", [tuple(KINDS), ("key", "gate", "down"), ("up",)])
def test_it_is_the_formula(activation: str, groups: tuple[str, ...]) -> None:
    model = build(activation=activation, groups=groups)
    kinds = [kind for kind in groups if kind != "gate" or activation == "swiglu"]
    ours, expected = regularisation(model), WEIGHT * (1 - mean_cosine(model, kinds))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    weights = [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("loop.") and not name.endswith("norm.weight")
    ]
    pairs = [torch.autograd.grad(value, weights, allow_unused=True) for value in (ours, expected)]
    for gradient, wanted in zip(*pairs, strict=True):
        assert (gradient is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


def test_descent_pulls_the_blocks_together() -> None:
    model = build()
    optimizer = torch.optim.SGD(model.loop.parameters(), lr=0.1)
    cosines = []
    for _ in range(20):
        cosines.append(mean_cosine(model, list(KINDS)).item())
        optimizer.zero_grad()
        regularisation(model).backward()
        optimizer.step()
    assert all(after > before for before, after in pairwise(cosines))
    assert abs(cosines[0]) < 0.1
    assert cosines[-1] > 0.5


def test_equal_blocks_cost_nothing() -> None:
    model = build()
    for number in range(BLOCK, LAYERS):
        model.loop[str(number)].load_state_dict(model.loop[str(number % BLOCK)].state_dict())
    assert abs(regularisation(model).item()) < 1e-14
    with torch.no_grad():
        for parameter in model.loop["0"].parameters():
            parameter *= 7  # a cosine does not see the length
    assert abs(regularisation(model).item()) < 1e-14


def test_weight_zero_is_bitwise_the_plain_loss() -> None:
    tokens = torch.arange(16).view(2, 8)
    model = build(weight=0.0)
    results = []
    for regularised in (False, True):
        loss = loss_sums(model, model(tokens), tokens)[0]
        if regularised:
            loss = loss + regularisation(model)
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bf16_weights_are_compared_in_fp32() -> None:
    model = build()
    wide = build()
    model.bfloat16()
    wide.load_state_dict(model.state_dict())
    value = regularisation(model)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), regularisation(wide), rtol=1e-5, atol=0)
    value.backward()
    assert all(
        parameter.grad.dtype == torch.bfloat16 for parameter in model.loop.parameters() if parameter.grad is not None
    )


@pytest.mark.parametrize(
    ("regulariser", "message"),
    [
        ({"weight": 1.0}, "needs model.loop_regulariser.block_size"),
        ({"weight": 1.0, "block_size": 4}, "num_loop_layers=4 is one block of block_size=4"),
        ({"weight": 1.0, "block_size": 2, "groups": ["up", "gate", "up"]}, "groups names up twice"),
        ({"weight": 1.0, "block_size": 2, "groups": ["gate", "gate"]}, "groups names gate twice"),
    ],
)
def test_a_regulariser_without_a_pair_to_compare_is_refused(regulariser: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSection.model_validate({"num_loop_layers": 4, "activation": "gelu", "loop_regulariser": regulariser})
