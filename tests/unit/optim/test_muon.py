"""Muon: which weights are its, what an update of it is, and which rates apply."""

import pytest
import torch

from pretrain.config.run import OptimizerSection
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.optim.make import make_optimizer, parameter_groups, set_lr

SETTINGS = OptimizerSection(name="muon", lr=0.1, adamw_lr=0.02, weight_decay=0.5, momentum=0.5)


def update(gradients: list[torch.Tensor]) -> torch.Tensor:
    """What the last of the gradients does to a matrix of zeros, which does not decay."""
    weight = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = make_optimizer([{"params": [weight], "is_matrices": True, "weight_decay": 0.0}], SETTINGS)
    before = weight.detach().clone()
    for gradient in gradients:
        before.copy_(weight.detach())
        weight.grad = gradient
        optimizer.step()
    return weight.detach() - before


@pytest.mark.parametrize("tied_head", [False, True])
def test_it_has_the_matrices_of_the_layers_and_adamw_the_rest(tied_head: bool) -> None:
    model = ModelSection(
        vocab_size=24, hidden_size=8, num_attention_heads=2, ffn_size=12, num_prelude_layers=1, num_loop_layers=1,
        num_coda_layers=1, positions="learned", norm="layer", bias="all", tied_head=tied_head,
    )  # fmt: skip
    built = LoopedGPT(model, 16)
    optimizer = make_optimizer(parameter_groups(built.named_parameters(), built.weights, SETTINGS), SETTINGS)
    set_lr(optimizer, 0.05)
    for parameter in built.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    by_id = {
        id(weight): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    for name, parameter in built.named_parameters():
        state = set(optimizer.state[parameter])
        if name.startswith(("prelude", "loop", "coda")) and name.endswith("weight") and "norm" not in name:
            assert (state, by_id[id(parameter)]) == ({"momentum_buffer"}, (0.05, 0.5)), name
        else:
            assert state == {"step", "exp_avg", "exp_avg_sq"}, name
            decays = name in ("embedding.weight", "head.weight")
            assert by_id[id(parameter)] == (pytest.approx(0.01), 0.5 if decays else 0.0), name
    assert len(by_id) == len(list(built.parameters()))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_an_update_is_nearly_orthogonal_and_of_the_size_of_adamws(shape: tuple[int, int]) -> None:
    """U Vᵀ of the momentum's singular vectors, its singular values between 0.6 and 1.3, times 0.2 sqrt(max(n, m)):
    arXiv 2502.16982, equation 4."""
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    momentum = 0.5 * (0.5 * gradients[0]) + 0.5 * gradients[1]
    u, _, v = torch.linalg.svd(0.5 * gradients[1] + 0.5 * momentum, full_matrices=False)
    inner = u.T @ (update(gradients) / (-SETTINGS.lr * 0.2 * 40**0.5)) @ v.T
    assert ((inner.diag() > 0.6) & (inner.diag() < 1.3)).all()
    assert (inner - inner.diag().diag()).abs().max() < 0.05


def test_the_size_of_the_gradients_does_not_matter() -> None:
    gradient = 1e-5 * torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(update([gradient]), update([gradient * 2.0**-20]))
    assert torch.equal(update([torch.zeros(4, 6)]), torch.zeros(4, 6))
