"""Published architectures: which model sections each one can express, and reading and writing its config.json.

A folder's config.json is read with transformers' own configuration classes, which know the defaults of their model,
never with code from the folder. Every feature that this model cannot compute is refused by name, never ignored.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import ValidationError

from pretrain.hf.config_file import read_config
from pretrain.hf.llama_fields import llama_fields
from pretrain.hf.loop_formats.table import NOT_HELD, TYPES, format_of
from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig
from pretrain.hf.refusals import refuse_unsupported
from pretrain.model.config import ModelSection
from pretrain.schema.section import first_problem

LOOPED = "LoopedGPTForCausalLM"
NOT_EXPORTED = ("loop_regulariser",)
"""Fields of the model section that are not part of an exported model: they act on the loss alone."""
_SHAPE_FIELDS = tuple(name for name in ModelSection.model_fields if name not in NOT_EXPORTED)
_LLAMA: dict[str, Any] = {
    "positions": "rope", "activation": "swiglu", "norm": "rms", "norm_place": "before", "qk_norm": "none",
    "bias": "none", "embedding_scale": 1.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A class of transformers that computes the same as an unrolled looped GPT with certain fields."""

    name: str
    model_type: str
    fields: dict[str, Any]
    """Values of the model section's fields that the architecture fixes."""
    has_free_head_size: bool = False
    """Whether the head width may differ from hidden_size / num_attention_heads."""
    fixed_epsilon: float | None = None
    """The norm epsilon if it is not configurable."""

    def holds(self, model: ModelSection) -> bool:
        """Whether this architecture computes exactly this model, unrolled."""
        return (
            all(getattr(model, name) == value for name, value in self.fields.items())
            and (self.has_free_head_size or model.head_dim * model.num_attention_heads == model.hidden_size)
            and self.fixed_epsilon in (None, model.norm_epsilon)
            and (self.model_type != "gpt2" or model.kv_heads == model.num_attention_heads)
        )


ARCHITECTURES = (
    Architecture(name="LlamaForCausalLM", model_type="llama", has_free_head_size=True, fields=_LLAMA),
    Architecture(name="Qwen2ForCausalLM", model_type="qwen2", fields=_LLAMA | {"bias": "qkv"}),
    Architecture(
        name="Qwen3ForCausalLM", model_type="qwen3", has_free_head_size=True, fields=_LLAMA | {"qk_norm": "head"}
    ),
    Architecture(
        name="OlmoForCausalLM", model_type="olmo", fixed_epsilon=1e-5, fields=_LLAMA | {"norm": "plain"}
    ),
    Architecture(
        name="Olmo2ForCausalLM", model_type="olmo2", fields=_LLAMA | {"norm_place": "after", "qk_norm": "all"}
    ),
    Architecture(
        name="GPT2LMHeadModel", model_type="gpt2",
        fields=_LLAMA | {"positions": "learned", "activation": "gelu", "norm": "layer", "bias": "all"},
    ),
)  # fmt: skip
_BY_TYPE = {architecture.model_type: architecture for architecture in ARCHITECTURES}
_BY_TYPE["mistral"] = _BY_TYPE["llama"]  # Mistral without a sliding window is Llama
_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "mlp_dropout")


def stock_architecture(model: ModelSection) -> Architecture | None:
    """The class of transformers that computes this model unrolled, or None."""
    return next((architecture for architecture in ARCHITECTURES if architecture.holds(model)), None)


def read_shape(folder: Path) -> tuple[str, ModelSection, int]:
    """Read config.json in the folder of a published model.

    Returns:
        Model type ("llama", ...), model section, and longest sequence in tokens.

    Raises:
        ValueError: the file is missing or invalid, or names a feature that this model cannot compute.
    """
    path, values = folder / "config.json", read_config(folder)
    kind = str(values.get("model_type"))
    if kind in NOT_HELD:
        raise ValueError(f"{path}: model_type={kind} is not supported: {NOT_HELD[kind]}")
    if (published := format_of(kind)) is not None:
        return kind, *published.read(path, values)
    if kind not in _BY_TYPE and kind != LoopedGPTConfig.model_type:
        known = ", ".join((*_BY_TYPE, *TYPES, LoopedGPTConfig.model_type))
        raise ValueError(f"{path}: model_type={kind!r} is not supported; those that are: {known}")
    config = _read_values(path, kind, values)
    try:
        model = _shape_of(path, kind, config, values)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from None
    seq_len = config.max_position_embeddings
    if type(seq_len) is not int or seq_len < 1:
        raise ValueError(f"{path}: max_position_embeddings={seq_len!r} is not a length of sequences")
    return kind, model, seq_len


def read_dropout(folder: Path) -> dict[str, float]:
    """The rates of dropout above 0 in the config.json of a folder that `read_shape` could read, by name."""
    values = read_config(folder)
    config: Any = SimpleNamespace(**values)
    if format_of(values["model_type"]) is None:
        config = _read_values(folder / "config.json", values["model_type"], values)
    rates = {name: getattr(config, name, 0.0) for name in _DROPOUT}
    return {name: float(rate) for name, rate in rates.items() if isinstance(rate, (int, float)) and rate > 0}


def _read_values(path: Path, kind: str, values: dict[str, Any]) -> Any:
    """The values as the class of transformers that knows the defaults of its model."""
    from transformers import CONFIG_MAPPING

    try:
        if kind == LoopedGPTConfig.model_type:
            looped = LoopedGPTConfig.from_dict(values)
            looped.check()
            return looped
        return CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # values of a wrong type meet errors of every kind there
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: {lines[-1].strip().removeprefix('TypeError: ')}") from None


def _shape_of(path: Path, kind: str, config: Any, values: dict[str, Any]) -> ModelSection:
    if kind == LoopedGPTConfig.model_type:
        shape = {name: getattr(config, name) for name in _SHAPE_FIELDS} | {"loop": config.loop or {}}
        earlier = {name: values[name] for name in ModelSection.renamed if name in values}
        return ModelSection.read_saved(shape | earlier)
    refuse_unsupported(path, config, values)
    shape = _gpt2_shape if kind == "gpt2" else _llama_like_shape
    return shape(path, config, _BY_TYPE[kind])


def _llama_like_shape(path: Path, config: Any, architecture: Architecture) -> ModelSection:
    try:
        fields = llama_fields(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    biased = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    if biased:
        raise ValueError(f"{path}: {' and '.join(biased)} of model_type={config.model_type} are not supported")
    rope = getattr(config, "rope_parameters", None) or {}
    return ModelSection(
        **architecture.fields, **fields, norm_epsilon=architecture.fixed_epsilon or _decimal(config.rms_norm_eps),
        rope_theta=rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0),
    )  # fmt: skip


def _gpt2_shape(path: Path, config: Any, architecture: Architecture) -> ModelSection:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ValueError(
            f"{path}: activation_function={config.activation_function} is not supported: "
            "this model has GELU's tanh form"
        )
    return ModelSection(
        **architecture.fields, vocab_size=config.vocab_size, hidden_size=config.n_embd,
        num_attention_heads=config.n_head, ffn_size=config.n_inner or 4 * config.n_embd, num_loop_layers=config.n_layer,
        norm_epsilon=_decimal(config.layer_norm_epsilon), tied_head=bool(config.tie_word_embeddings),
        init_std=config.initializer_range,
    )  # fmt: skip


def stock_config(architecture: Architecture, model: ModelSection, num_loops: int, seq_len: int) -> dict[str, Any]:
    """config.json, without token ids and dtype, of a model unrolled to `num_loops` loops; the architecture holds it."""
    common = {
        "architectures": [architecture.name], "model_type": architecture.model_type, "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_head, "initializer_range": model.init_std,
    }  # fmt: skip
    depth = model.effective_depth(num_loops)
    if architecture.model_type == "gpt2":
        return common | {
            "n_positions": seq_len, "n_embd": model.hidden_size, "n_layer": depth, "n_head": model.num_attention_heads,
            "n_inner": model.ffn_size, "activation_function": "gelu_new", "layer_norm_epsilon": model.norm_epsilon,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip
    config = common | {
        "hidden_size": model.hidden_size, "intermediate_size": model.ffn_size, "num_hidden_layers": depth,
        "num_attention_heads": model.num_attention_heads, "num_key_value_heads": model.kv_heads, "hidden_act": "silu",
        "max_position_embeddings": seq_len, "rope_theta": model.rope_theta, "attention_bias": False,
    }  # fmt: skip
    if architecture.fixed_epsilon is None:
        config["rms_norm_eps"] = model.norm_epsilon
    if architecture.has_free_head_size:
        config["head_dim"] = model.head_dim
    return config


def looped_config(model: ModelSection, seq_len: int) -> dict[str, Any]:
    """config.json, without token ids and dtype, of the looped model of `modeling_looped_gpt.py`."""
    module = "modeling_looped_gpt"
    return {
        "architectures": [LOOPED],
        "model_type": LoopedGPTConfig.model_type,
        "auto_map": {"AutoConfig": f"{module}.LoopedGPTConfig", "AutoModelForCausalLM": f"{module}.{LOOPED}"},
        "max_position_embeddings": seq_len,
        **{name: getattr(model, name) for name in _SHAPE_FIELDS},
        "loop": model.loop.chosen() or None,
    }


def _decimal(number: float) -> float:
    """The decimal that a number of fp32 stands for: files that store fp32, as GGUF does, have 9.999999747378752e-06 for
    1e-5. Other numbers stay."""
    short = float(str(np.float32(number)))
    return short if float(np.float32(number)) == number else number
