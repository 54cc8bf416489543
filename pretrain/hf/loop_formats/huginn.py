"""Huginn (`RavenForCausalLM`; Geiping et al. 2025, arXiv 2502.05171): prelude, a core applied `mean_recurrence` times,
coda. Embeddings times √d. The state begins as truncated normal noise of std √(2/5), and before every pass one matrix
joins it with what the prelude gave. The final norm acts before the coda, and again behind it. Layers have norms around
their halves, biases of queries and keys, and channels that turn in pairs of neighbours, which are reordered here. Each
pass has keys and values of its own.

Source of the graph: seal-rg/recurrent-pretraining, `recpre/raven_modeling_minimal.py` at 59e0b69."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor

from pretrain.hf.loop_formats.format import LoopFormat, PublishedValues
from pretrain.hf.names import Rule
from pretrain.model.config import ModelSection
from pretrain.model.weights import stage_weights

_PARTS = {"prelude": "transformer.prelude", "loop": "transformer.core_block", "coda": "transformer.coda"}
_LAYER = {  # published tensor -> ours that it holds
    "norm_1.weight": ("attention_norm.weight",),
    "attn.Wqkv.weight": ("attention.query.weight", "attention.key.weight", "attention.value.weight"),
    "attn.qk_bias": ("attention.query.bias", "attention.key.bias"),
    "attn.proj.weight": ("attention.output.weight",),
    "norm_2.weight": ("attention_post_norm.weight",),
    "norm_3.weight": ("ffn_norm.weight",),
    "mlp.fc.weight": ("ffn.gate.weight", "ffn.up.weight"),
    "mlp.proj.weight": ("ffn.down.weight",),
    "norm_4.weight": ("ffn_post_norm.weight",),
}
_OUTSIDE = {
    "transformer.wte.weight": ("embedding.weight",),
    "transformer.adapter.weight": ("injection.state.weight", "injection.input.weight"),
    "transformer.ln_f.weight": ("final_norm.weight",),
    "lm_head.weight": ("head.weight",),
}


class HuginnValues(PublishedValues):
    vocab_size: int = Field(gt=0)
    n_embd: int = Field(gt=0)
    heads: int = Field(gt=0, validation_alias=AliasChoices("n_heads", "num_attention_heads"))
    intermediate_size: int = Field(gt=0)
    block_size: int = Field(gt=0)
    n_layers_in_prelude: int = Field(ge=0)
    n_layers_in_recurrent_block: int = Field(gt=0)
    n_layers_in_coda: int = Field(ge=0)
    mean_recurrence: int = Field(default=32, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    rope_base: float = Field(default=50000.0, gt=0)
    qk_bias: bool = True
    tie_embeddings: bool = True
    block_class_name: Literal["SandwichBlock"] = "SandwichBlock"
    norm_class_name: Literal["RMSNorm_llama"] = "RMSNorm_llama"
    mlp_class_name: Literal["GatedMLP"] = "GatedMLP"
    nonlin_name: Literal["SiLU"] = "SiLU"
    injection_type: Literal["linear"] = "linear"
    state_init: Literal["like-init"] = "like-init"


class Huginn(LoopFormat):
    model_type: ClassVar[str] = "huginn_raven"
    class_name: ClassVar[str] = "RavenForCausalLM"
    off: ClassVar[tuple[str, ...]] = ("bias", "test_time_noise")

    def understand(self, values: Mapping[str, Any]) -> tuple[ModelSection, int]:
        read = HuginnValues.model_validate(values)
        loop = {
            "injection": "concat", "injection_at": "every", "start": "noise", "final_norm": "coda",
            "noise": {"std": math.sqrt(2 / 5), "within": 3.0},
        }  # fmt: skip
        model = ModelSection.model_validate(
            {
                "vocab_size": read.vocab_size, "hidden_size": read.n_embd, "num_attention_heads": read.heads,
                "ffn_size": read.intermediate_size, "num_prelude_layers": read.n_layers_in_prelude,
                "num_loop_layers": read.n_layers_in_recurrent_block, "num_coda_layers": read.n_layers_in_coda,
                "num_loops": read.mean_recurrence, "norm_place": "around", "norm_epsilon": read.norm_eps,
                "rope_theta": read.rope_base, "bias": "qk" if read.qk_bias else "none",
                "tied_head": read.tie_embeddings, "embedding_scale": math.sqrt(read.n_embd),
                "init_std": math.sqrt(2 / (5 * read.n_embd)), "loop": loop,
            }
        )  # fmt: skip
        return model, read.block_size

    def config(self, model: ModelSection, seq_len: int) -> dict[str, Any]:
        parts = (model.num_prelude_layers, model.num_loop_layers, model.num_coda_layers)
        return {
            "vocab_size": model.vocab_size, "n_embd": model.hidden_size, "n_heads": model.num_attention_heads,
            "num_attention_heads": model.num_attention_heads, "num_key_value_heads": model.num_attention_heads,
            "intermediate_size": model.ffn_size, "block_size": seq_len, "n_layers": sum(parts),
            "n_layers_in_prelude": parts[0], "n_layers_in_recurrent_block": parts[1], "n_layers_in_coda": parts[2],
            "mean_recurrence": model.num_loops, "norm_eps": model.norm_epsilon, "rope_base": model.rope_theta,
            "qk_bias": model.bias == "qk", "bias": False, "tie_embeddings": model.tied_head,
            "block_class_name": "SandwichBlock", "norm_class_name": "RMSNorm_llama", "mlp_class_name": "GatedMLP",
            "nonlin_name": "SiLU", "injection_type": "linear", "state_init": "like-init", "test_time_noise": 0,
        }  # fmt: skip

    def rules(self, model: ModelSection, seq_len: int) -> list[Rule]:
        weights = {name: weight.shape for name, weight in stage_weights(model, seq_len).items()}
        held = dict(_OUTSIDE)
        counts = {"prelude": model.num_prelude_layers, "loop": model.num_loop_layers, "coda": model.num_coda_layers}
        for part, stem in _PARTS.items():
            for number in range(counts[part]):
                held |= {
                    f"{stem}.{number}.{theirs}": tuple(f"{part}.{number}.{name}" for name in ours)
                    for theirs, ours in _LAYER.items()
                }
        heads = model.num_attention_heads
        paired = {"attn.Wqkv.weight": (heads, heads, 0), "attn.qk_bias": (heads, heads)}
        rules = []
        for theirs, ours in held.items():
            if ours[0] not in weights:  # no biases, or a tied head
                continue
            dim = int(theirs == "transformer.adapter.weight")
            kind = ".".join(theirs.split(".")[3:])
            stored = (2, 1, heads, model.head_dim) if kind == "attn.qk_bias" else None
            shapes = tuple(weights[name] for name in ours)
            rules.append(
                Rule(theirs=theirs, ours=ours, shapes=shapes, dim=dim, paired=paired.get(kind, ()), stored=stored)
            )
        return rules

    def constants(self, model: ModelSection, seq_len: int) -> dict[str, Tensor]:
        """Cosine and sine of every position, which the published class keeps with its weights."""
        exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float64) / model.head_dim
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), model.rope_theta**-exponents)
        table = torch.stack((angles.cos(), angles.sin()), -1).float()  # [s, e/2, 2]
        return {"freqs_cis": table[None, :, None].contiguous()}
