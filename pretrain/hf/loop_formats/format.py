"""A published looped model's own form: what its config.json and its tensors are in terms of this model, both ways.

Transformers has no class for these models, and the code in their folders is never run: each file here states the
published graph as a configuration of this model, and the tests hold its logits to the graph. What the configuration
asks for beyond that is refused by name. A run can be written in a form if reading that form's own config.json gives the
run's model again; what differs first is named.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pretrain.hf.llama_fields import llama_fields
from pretrain.hf.names import Rule
from pretrain.hf.refusals import refuse_unsupported
from pretrain.model.config import ModelSection
from pretrain.schema.section import first_problem


class PublishedValues(BaseModel):
    """The values of a config.json that are read, by their names there; others are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class LlamaLikeValues(PublishedValues):
    """Those that the descendants of Llama share."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    hidden_act: str = "silu"
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float | None = Field(default=None, gt=0)
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    layer_types: list[str] | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = Field(default=0.02, gt=0)

    def shape(self, **fields: Any) -> ModelSection:
        """The model, with what the architecture says on top."""
        shared = llama_fields(self)
        theta = (self.rope_parameters or {}).get("rope_theta", self.rope_theta)
        if theta is None:
            raise ValueError("rope_theta is missing")
        return ModelSection.model_validate({**shared, "norm_epsilon": self.rms_norm_eps, "rope_theta": theta, **fields})


def llama_like_config(model: ModelSection, seq_len: int) -> dict[str, Any]:
    """What `LlamaLikeValues` reads, of a model."""
    return {
        "vocab_size": model.vocab_size, "hidden_size": model.hidden_size, "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_loop_layers, "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.kv_heads, "head_dim": model.head_dim, "hidden_act": "silu",
        "max_position_embeddings": seq_len, "rms_norm_eps": model.norm_epsilon, "rope_theta": model.rope_theta,
        "rope_scaling": None, "attention_dropout": 0.0, "tie_word_embeddings": model.tied_head,
        "initializer_range": model.init_std,
    }  # fmt: skip


class LoopFormat(ABC):
    """The form of one published architecture."""

    model_type: ClassVar[str]
    class_name: ClassVar[str]
    off: ClassVar[tuple[str, ...]] = ()
    """Values of config.json that must not be there, or be false, empty or zero: features without a place here."""
    dropped: ClassVar[Mapping[str, str]] = {}
    """Keys of `model.loop` that the form has no place for and that do not change the logits at a given loop count ->
    what is lost."""

    def read(self, path: Path, values: Mapping[str, Any]) -> tuple[ModelSection, int]:
        """The model section and the longest sequence in tokens that a config.json at `path` describes.

        Raises:
            ValueError: it is invalid, or asks for what this model cannot compute.
        """
        for name in self.off:
            if values.get(name):
                raise ValueError(f"{path}: {name}={values[name]!r} of model_type={self.model_type} is not supported")
        try:
            model, seq_len = self.understand(values)
            refuse_unsupported(path, SimpleNamespace(**values), dict(values))
        except ValidationError as error:
            raise ValueError(f"{path}: {first_problem(error)}") from None
        except ValueError as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        return model, seq_len

    @abstractmethod
    def understand(self, values: Mapping[str, Any]) -> tuple[ModelSection, int]:
        """As `read`, of values whose features all have a place; raises a ValueError, or pydantic's."""

    @abstractmethod
    def config(self, model: ModelSection, seq_len: int) -> dict[str, Any]:
        """config.json, without class, model type, token ids and dtype, of a model that the form can hold."""

    @abstractmethod
    def rules(self, model: ModelSection, seq_len: int) -> list[Rule]:
        """The rules of all tensors."""

    def constants(self, model: ModelSection, seq_len: int) -> dict[str, Tensor]:
        """Tensors of the form that follow from its configuration: written with an export, dropped by an import."""
        return {}

    def kept(self, model: ModelSection) -> ModelSection:
        """The model without what the form drops."""
        plain = type(model.loop)()
        return model.model_copy(
            update={"loop": model.loop.model_copy(update={key: getattr(plain, key) for key in self.dropped})}
        )

    def lost(self, model: ModelSection) -> list[str]:
        """What of the model the form drops, for people."""
        plain = type(model.loop)()
        changed = [key for key in self.dropped if getattr(model.loop, key) != getattr(plain, key)]
        return [f"model.loop.{key}={getattr(model.loop, key)} is dropped: {self.dropped[key]}" for key in changed]

    def require_holds(self, model: ModelSection) -> None:
        """Raise a ValueError that names the first field of the model that the form cannot hold."""
        kept = self.kept(model)
        config = self.config(kept, 1) | {"model_type": self.model_type}
        again, _ = self.read(Path("config.json"), config)
        wanted, found = _fields(kept), _fields(again)
        for key in (*wanted, *found):
            if wanted.get(key) != found.get(key):
                known = f"has {found[key]}" if key in found else "has no such thing"
                given = f"model.{key}={wanted.get(key, 'none')}"
                raise ValueError(f"{given} cannot be written as {self.model_type}: {self.class_name} {known}")


def _fields(model: ModelSection) -> dict[str, Any]:
    """What makes the model what it is at its loop count, flat, by key."""
    values = model.model_dump(mode="json", exclude={"loop", "loop_regulariser", "init_std"})
    values |= {"num_key_value_heads": model.kv_heads, "head_size": model.head_dim}
    values["loop_regulariser.block_size"] = model.loop_regulariser.block_size
    idle = {*model.loop.without_effect(), "made_for"}
    loop = {key: value for key, value in model.loop.model_dump(mode="json").items() if key not in idle}
    return values | {f"loop.{key}": value for key, value in loop.items()}
