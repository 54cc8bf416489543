"""Adafactor against its formula, at the rate that it is given and at gradients of any size."""

import pytest
import torch
from torch import Tensor

from pretrain.config.run import OptimizerSection
from pretrain.optim.make import make_optimizer, set_lr

SETTINGS = OptimizerSection(name="adafactor")


def updates(weight: Tensor, gradients: list[Tensor], rates: list[float], weight_decay: float = 0.0) -> list[Tensor]:
    """The weight after each update."""
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = make_optimizer([{"params": [parameter], "weight_decay": weight_decay}], SETTINGS)
    seen = []
    for gradient, lr in zip(gradients, rates, strict=True):
        parameter.grad = gradient
        set_lr(optimizer, lr)
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6,)])
def test_equals_the_formula(shape: tuple[int, ...]) -> None:
    """Algorithm 4 of arXiv 1804.04235 with the rate of the schedule in place of rho; rates above 1 / sqrt(t), weights
    whose RMS is below epsilon 2, updates that are clipped and weight decay are among the cases."""
    rates = [0.5, 0.9, 0.9, 0.9, 0.01, 2.0]
    gradients = [noise(*shape, seed=seed) * 10.0**-seed for seed in range(len(rates))][::-1]
    for size in (1e-4, 1.0):
        x = noise(*shape, seed=99) * size
        got = updates(x, gradients, rates, weight_decay=0.1)
        rows = columns = vector = 0.0
        for step, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
            beta2 = 1 - step**-0.8
            square = g**2 + 1e-30
            if len(shape) == 2:
                rows = beta2 * rows + (1 - beta2) * square.sum(1)
                columns = beta2 * columns + (1 - beta2) * square.sum(0)
                variance = torch.outer(rows, columns) / rows.sum()
            else:
                variance = vector = beta2 * vector + (1 - beta2) * square
            u = g / variance.sqrt()
            u = u / max(1.0, float(u.square().mean().sqrt()))
            alpha = max(1e-3, float(x.square().mean().sqrt())) * lr
            x = x - lr * 0.1 * x - alpha * u
            torch.testing.assert_close(got[step - 1], x, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(64, 48), (64,)])
def test_the_size_of_the_gradients_does_not_matter(shape: tuple[int, ...]) -> None:
    """Of the size that they have in a large model, whose loss is divided by the tokens of the whole batch, and a
    million times smaller; rows of a matrix are spread over two decades, as those of an embedding are."""
    spread = torch.logspace(-2, 0, shape[0]).view(-1, 1) if len(shape) == 2 else 1.0
    gradients = [1e-5 * spread * noise(*shape, seed=seed, dtype=torch.float32) for seed in range(4)]
    weight = noise(*shape, seed=99, dtype=torch.float32)
    large, small = (updates(weight, [g * scale for g in gradients], [0.01] * 4) for scale in (1.0, 1e-6))
    for one, other in zip(large, small, strict=True):
        assert (one - weight).abs().max() > 1e-3
        torch.testing.assert_close(other - weight, one - weight, rtol=1e-3, atol=1e-6)


def test_the_rate_is_not_cut_late_in_training() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = make_optimizer([{"params": [parameter]}], SETTINGS)
    parameter.grad = torch.ones(4, 4)
    optimizer.step()
    for step in (10_000, 400_000):
        optimizer.state[parameter]["step"].fill_(step - 1)
        with torch.no_grad():
            parameter.fill_(1.0)
        set_lr(optimizer, 0.25)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 0.75))


def test_rows_and_matrices_without_a_gradient_stay() -> None:
    """A token that was not seen yet, then seen; a matrix whose gradient is 0 throughout."""
    weight = torch.ones(3, 4)
    gradient = torch.tensor([[0.0], [1.0], [1e-4]]).expand(3, 4).clone()
    after = updates(weight, [gradient, gradient.flip(0)], [0.1, 0.1])
    assert torch.equal(after[0][0], weight[0])
    assert torch.isfinite(after[1]).all() and (after[1] != 1).all()
    for shape in ((3, 4), (4,)):
        assert torch.equal(updates(torch.ones(shape), [torch.zeros(shape)] * 3, [0.1] * 3)[-1], torch.ones(shape))
