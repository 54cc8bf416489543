"""An optimizer on its parameters, with its state and learning rates. How it is spread over ranks:
`pretrain/parallel/optimizer.py`."""

from collections.abc import Iterable

import torch
from torch import nn

from pretrain.config.run import OptimizerSection
from pretrain.model.weight_kinds import Weights
from pretrain.optim.optimizers import Group, optimizer_kind


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weights: Weights, settings: OptimizerSection
) -> list[Group]:
    """Split named parameters into those that decay and those that do not, as their descriptions in `weights` say."""
    decay, rest = [], []
    for name, parameter in parameters:
        (decay if weights[name].decays else rest).append(parameter)
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[Group], settings: OptimizerSection) -> torch.optim.Optimizer:
    """The configured optimizer, without state."""
    return optimizer_kind(settings).make(groups, settings)


def fill_state(optimizer: torch.optim.Optimizer, settings: OptimizerSection) -> None:
    """Give an optimizer the state that it would make at its first step, which a checkpoint can be read into before."""
    kind = optimizer_kind(settings)
    for group in optimizer.param_groups:
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
