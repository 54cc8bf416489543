"""Descriptions of the weights: a model that is built otherwise is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from pretrain.model import gpt, weight_kinds, weights
from pretrain.model.config import ModelSection
from pretrain.model.layers import Layer

CONFIG = ModelSection(vocab_size=32, hidden_size=16, num_attention_heads=2, ffn_size=24, num_loop_layers=1)


class ScaledLayer(Layer):
    """A layer with one parameter more."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scale = nn.Parameter(torch.empty(16))


def described(size: int) -> Any:
    """The weights of a layer, and such a parameter."""
    plain = weights.layer_weights(CONFIG)
    scale = weight_kinds.Weight(shape=(size,), split=None, init="ones", decays=False, partial_under="sequence")
    return lambda *_, **__: {**plain, "scale": scale}


def test_a_parameter_that_is_not_described_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "Layer", ScaledLayer)
    with pytest.raises(ValueError, match=r"parameter loop\.0\.scale: built \(16,\), described missing; describe each"):
        gpt.LoopedGPT(CONFIG, 8)


def test_one_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "Layer", ScaledLayer)
    monkeypatch.setattr(weights, "layer_weights", described(8))
    with pytest.raises(ValueError, match=r"parameter loop\.0\.scale: built \(16,\), described \(8,\)"):
        gpt.LoopedGPT(CONFIG, 8)


def test_one_that_is_not_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "layer_weights", described(16))
    with pytest.raises(ValueError, match=r"parameter loop\.0\.scale: built missing, described \(16,\)"):
        gpt.LoopedGPT(CONFIG, 8)
