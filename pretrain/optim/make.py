"""Which optimizer, with which settings, on which parameters. How it is spread over ranks:
`pretrain/parallel/optimizer.py`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.config.run import OptimizerSection


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerSection) -> list[dict[str, Any]]:
    """Split named parameters into matrices, which decay, and the rest (norms, biases, learned positions), which do
    not."""
    decay, rest = [], []
    for name, parameter in parameters:
        (decay if parameter.dim() > 1 and not name.startswith("position_embedding") else rest).append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW in its fused form (Loshchilov and Hutter 2019), or Adafactor as torch has it (Shazeer and Stern 2018)."""
    if config.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
