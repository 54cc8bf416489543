"""The weights of a variant as a module: by name, as `pretrain/model/loop/variant.py` asks for them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pretrain.model.weight_kinds import Weights, under


class HeldWeights(nn.Module):
    """Parameters under the names of their descriptions; those called "x.weight" as a linear map `self["x"]`.

    Args:
        ops: makes linear maps and parameters, whole or this rank's part: `linear` and `parameter` of `ParallelOps`.
        weights: descriptions.
    """

    def __init__(self, ops: Any, weights: Weights) -> None:
        super().__init__()
        self.descriptions = weights
        linears = dict.fromkeys(name.removesuffix(".weight") for name in weights if name.endswith(".weight"))
        for name in linears:
            *folders, last = name.split(".")
            place: nn.Module = self
            for folder in folders:
                if not hasattr(place, folder):
                    place.add_module(folder, nn.Module())
                place = place.get_submodule(folder)
            place.add_module(last, ops.linear(under(weights, name)))
        for name, weight in weights.items():
            if not name.endswith(".weight"):
                self.register_parameter(name, ops.parameter(weight))

    def forward(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """What a variant makes of the arguments with these weights; through a module's forward pass, so that ZeRO
        gathers them for it."""
        return act(self, *arguments)

    def __getitem__(self, name: str) -> Any:
        """A linear map or a parameter."""
        return self._parameters[name] if name in self._parameters else self.get_submodule(name)
