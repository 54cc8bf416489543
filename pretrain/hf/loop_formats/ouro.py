"""Ouro (`OuroForCausalLM`; Zhu et al. 2025, arXiv 2510.25741): the whole stack of a Llama with norms before and after
both halves of a layer, applied `total_ut_steps` times, each time followed by the final norm. A gate reads what that
gives, λ = sigmoid(w · x + b); a token stops where the probability of having stopped reaches `early_exit_threshold`,
1.0 as published: after all steps. Each pass has keys and values of its own.

Source of the graph: ByteDance/Ouro-1.4B's `modeling_ouro.py`, as several repositories carry it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from pretrain.hf.loop_formats.format import LlamaLikeValues, LoopFormat, llama_like_config
from pretrain.hf.names import Rule, stock_rules
from pretrain.model.config import ModelSection

_GATE = "model.early_exit_gate"


class OuroValues(LlamaLikeValues):
    total_ut_steps: int = Field(default=4, gt=0)
    exit_gate_type: str = "early_exit"


class Ouro(LoopFormat):
    model_type: ClassVar[str] = "ouro"
    class_name: ClassVar[str] = "OuroForCausalLM"
    off: ClassVar[tuple[str, ...]] = ("attention_bias", "mlp_bias", "use_sliding_window", "early_exit_step")

    def understand(self, values: Mapping[str, Any]) -> tuple[ModelSection, int]:
        read = OuroValues.model_validate(values)
        if read.exit_gate_type != "early_exit":
            raise ValueError(f"exit_gate_type={read.exit_gate_type} is not supported: the gate here is early_exit's")
        loop = {"final_norm": "passes", "exit": "linear"}
        return read.shape(norm_place="both", num_loops=read.total_ut_steps, loop=loop), read.max_position_embeddings

    def config(self, model: ModelSection, seq_len: int) -> dict[str, Any]:
        return llama_like_config(model, seq_len) | {
            "layer_types": ["full_attention"] * model.num_loop_layers, "use_sliding_window": False,
            "sliding_window": None, "total_ut_steps": model.num_loops, "early_exit_threshold": 1.0,
        }  # fmt: skip

    def rules(self, model: ModelSection, seq_len: int) -> list[Rule]:
        plain = model.model_copy(update={"loop": model.loop.model_copy(update={"exit": "none"})})
        direction, bias = (model.hidden_size,), (1,)
        gate = [
            Rule(theirs=f"{_GATE}.weight", ours=("exit.direction",), shapes=(direction,), stored=(1, *direction)),
            Rule(theirs=f"{_GATE}.bias", ours=("exit.bias",), shapes=(bias,)),
        ]
        return stock_rules("ouro", plain, 1, seq_len) + gate
