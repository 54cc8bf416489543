"""Nanbeige 4.2 (`NanbeigeForCausalLM`): the whole stack of a Llama, applied `num_loops` times, each time followed by
the final norm, or with `skip_loop_final_norm` only the last time. Each pass has keys and values of its own.

Source of the graph: the implementations in llama.cpp (`src/models/nanbeige.cpp`) and mlx-lm."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from pretrain.hf.loop_formats.format import LlamaLikeValues, LoopFormat, llama_like_config
from pretrain.hf.names import Rule, stock_rules
from pretrain.model.config import ModelSection


class NanbeigeValues(LlamaLikeValues):
    num_loops: int = Field(default=1, gt=0)
    skip_loop_final_norm: bool = False
    kv_channels: int | None = Field(default=None, gt=0)
    """Another name of head_dim."""


class Nanbeige(LoopFormat):
    model_type: ClassVar[str] = "nanbeige"
    class_name: ClassVar[str] = "NanbeigeForCausalLM"
    off: ClassVar[tuple[str, ...]] = (
        "attention_bias", "mlp_bias", "qk_layernorm", "emb_neighbor_num", "insert_ngram_layer_idx",
        "ngram_insert_all_layers", "enable_double_loop_split", "loop_middle_layers", "loop_share_kv",
        "enable_hyper_connection", "enable_mhc", "enable_h_res_identity", "enable_depth_attention",
    )  # fmt: skip
    dropped: ClassVar[Mapping[str, str]] = {"exit": "tokens have no exit there, all run all loops"}

    def understand(self, values: Mapping[str, Any]) -> tuple[ModelSection, int]:
        read = NanbeigeValues.model_validate(values)
        read = read.model_copy(update={"head_dim": read.head_dim or read.kv_channels})
        where = "end" if read.skip_loop_final_norm else "passes"
        return read.shape(num_loops=read.num_loops, loop={"final_norm": where}), read.max_position_embeddings

    def config(self, model: ModelSection, seq_len: int) -> dict[str, Any]:
        return llama_like_config(model, seq_len) | {
            "kv_channels": model.head_dim, "attention_bias": False, "mlp_bias": False, "num_loops": model.num_loops,
            "skip_loop_final_norm": model.loop.final_norm == "end", "loop_loss_weights": [],
        }  # fmt: skip

    def rules(self, model: ModelSection, seq_len: int) -> list[Rule]:
        return stock_rules("llama", self.kept(model), 1, seq_len)
