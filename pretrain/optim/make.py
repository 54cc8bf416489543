"""Which optimizer, with which settings, on which parameters. How it is spread over ranks:
`pretrain/parallel/optimizer.py`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.config.run import OptimizerSection
from pretrain.model.weights import Weights


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weights: Weights, config: OptimizerSection
) -> list[dict[str, Any]]:
    """Split named parameters into those that decay and those that do not, as their descriptions in `weights` say."""
    decay, rest = [], []
    for name, parameter in parameters:
        (decay if weights[name].decays else rest).append(parameter)
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW in its fused form (Loshchilov and Hutter 2019), or Adafactor as torch has it (Shazeer and Stern 2018)."""
    if config.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
