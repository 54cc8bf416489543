"""An optimizer on its parameters, with its state and learning rates. How it is spread over ranks:
`pretrain/parallel/optimizer.py`."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from pretrain.config.run import OptimizerSection
from pretrain.model.weight_kinds import Weights
from pretrain.optim.optimizers import Group, optimizer_kind


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weights: Weights, settings: OptimizerSection
) -> list[Group]:
    """Split named parameters into those that decay and those that do not, as their descriptions in `weights` say, and
    into those of each optimizer where there are two: a group of hidden matrices says so as "is_matrices"."""
    kind = optimizer_kind(settings)
    matrices: list[nn.Parameter] = []
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in parameters:
        weight = weights[name]
        (matrices if kind.for_weight(weight) is not kind else decay if weight.decays else rest).append(parameter)
    groups: list[Group] = [
        {"params": matrices, "weight_decay": settings.weight_decay, "is_matrices": True},
        {"params": decay, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class SeveralOptimizers(torch.optim.Optimizer):
    """Optimizers of different weights as one: their groups, and one state for all."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for optimizer in self.optimizers:
            optimizer.step(closure)


def make_optimizer(groups: list[Group], settings: OptimizerSection) -> torch.optim.Optimizer:
    """The configured optimizer, without state."""
    kind = optimizer_kind(settings)
    matrices = [group for group in groups if group.get("is_matrices")]
    others = [group for group in groups if not group.get("is_matrices")]
    if not matrices:
        return kind.make(others, settings)
    assert kind.matrices is not None, "groups of matrices are made for an optimizer that has them apart"
    parts = [kind.matrices.make(matrices, settings)]
    return SeveralOptimizers([*parts, kind.make(others, settings)] if others else parts)


def fill_state(optimizer: torch.optim.Optimizer, settings: OptimizerSection) -> None:
    """Give an optimizer the state that it would make at its first step, which a checkpoint can be read into before."""
    for group in optimizer.param_groups:
        kind = optimizer_kind(settings)
        if group.get("is_matrices") and kind.matrices is not None:
            kind = kind.matrices
        for weight in group["params"]:
            state = {name: weight.new_zeros(shape) for name, shape in kind.states(tuple(weight.shape)).items()}
            if kind.counts_steps:  # where torch keeps it: a fused kernel reads it on the device
                device = weight.device if group.get("fused") else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            optimizer.state[weight] = state


def set_num_updates(optimizer: torch.optim.Optimizer, num_updates: int) -> None:
    """Set the number of updates where the optimizer keeps it."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(num_updates)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group: `lr` times the group's own `lr_scale`, if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
