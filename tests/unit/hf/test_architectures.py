"""The model section in config.json: every field arrives in an export, or is named as one that is not exported."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.hf.architectures import (
    ARCHITECTURES,
    NOT_EXPORTED,
    Architecture,
    looped_config,
    read_shape,
    stock_architecture,
    stock_config,
)  # fmt: skip
from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig
from pretrain.hf.names import stock_rules
from pretrain.model.config import ModelSection

CHANGED: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_size": 6,
    "ffn_size": 40, "num_prelude_layers": 1, "num_loop_layers": 3, "num_coda_layers": 1, "num_loops": 3,
    "loop": {"injection": "add"}, "norm": "layer", "norm_place": "after", "qk_norm": "head", "norm_epsilon": 1e-3,
    "positions": "learned", "rope_theta": 500.0, "activation": "gelu", "bias": "qkv", "tied_head": True,
    "init_std": 0.1, "embedding_scale": 2.0,
}  # fmt: skip
"""Another valid value of every field that is exported."""
LOOP_ONLY = ("num_prelude_layers", "num_coda_layers", "num_loops", "loop")
"""Fields that an unrolled model does not have: its layers are those of all loops."""


def make_model(**changes: Any) -> ModelSection:
    return ModelSection(**{"hidden_size": 32, "num_attention_heads": 4, "ffn_size": 48} | changes)


def read(folder: Path, config: dict[str, Any]) -> ModelSection:
    (folder / "config.json").write_text(json.dumps(config))
    return read_shape(folder)[1]


def test_every_field_of_the_model_is_exported_or_named_as_not_exportable() -> None:
    assert CHANGED.keys() | set(NOT_EXPORTED) == ModelSection.model_fields.keys()
    missing = CHANGED.keys() - LoopedGPTConfig.__annotations__.keys()
    assert not missing, f"the exported looped model has no fields {missing}"


@pytest.mark.parametrize("name", CHANGED)
def test_the_looped_form_keeps_every_field(name: str, tmp_path: Path) -> None:
    model = make_model(**{name: CHANGED[name]})
    assert model != make_model()
    assert read(tmp_path, looped_config(model, seq_len=64)) == model


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.model_type)
@pytest.mark.parametrize("name", [name for name in CHANGED if name not in LOOP_ONLY])
def test_a_stock_form_keeps_every_field_or_does_not_hold_the_model(
    architecture: Architecture, name: str, tmp_path: Path
) -> None:
    model = make_model(**architecture.fields | {name: CHANGED[name]})
    if stock_architecture(model) is architecture:
        read_back = read(tmp_path, stock_config(architecture, model, 1, seq_len=64))
        without_effect = {"rope_theta"} if model.positions == "learned" else set()
        assert read_back.model_dump(exclude=without_effect) == model.model_dump(exclude=without_effect)


def test_names_of_an_unknown_model_type_are_refused() -> None:
    with pytest.raises(ValueError, match="model_type=mamba is not known"):
        stock_rules("mamba", make_model(), 1, 64)


@pytest.mark.parametrize(
    ("stored", "meant"),
    [(9.999999747378752e-06, 1e-5), (1e-5, 1e-5), (9.999999974752427e-07, 1e-6), (1.23e-7, 1.23e-7)],
)
def test_an_epsilon_that_was_stored_in_fp32_is_the_decimal_it_stood_for(
    stored: float, meant: float, tmp_path: Path
) -> None:
    (architecture,) = [each for each in ARCHITECTURES if each.model_type == "llama"]
    config = stock_config(architecture, make_model(**architecture.fields), 1, seq_len=64)
    assert read(tmp_path, config | {"rms_norm_eps": stored}).norm_epsilon == meant
