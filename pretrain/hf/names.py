"""Names of weights: the mapping between our tensors and those of a published architecture.

A rule lists the tensors of ours that one published tensor holds, concatenated along their outputs, and transposed if
the published one is [inputs, outputs] (GPT-2). In an unrolled looped model several published tensors hold the same one
of ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config.model import ModelSection
from pretrain.model.weights import layer_weights, stage_weights

_LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_OLMO2_LAYER = _LLAMA_LAYER | {"attention_norm": "post_attention_layernorm", "ffn_norm": "post_feedforward_layernorm"}
_GPT2_LAYER = {
    "attention_norm": "ln_1",
    "attention.query": "attn.c_attn",
    "attention.key": "attn.c_attn",
    "attention.value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}
_LLAMA_ENDS = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_GPT2_ENDS = {
    "embedding": "transformer.wte", "position_embedding": "transformer.wpe", "final_norm": "transformer.ln_f",
    "head": "lm_head",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One published tensor and the tensors of ours that it holds."""

    theirs: str
    """Name of the published tensor."""
    ours: tuple[str, ...]
    """Names of our tensors, in order."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of our tensors."""
    transposed: bool = False
    """Whether the published tensor is [inputs, outputs]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the published tensor."""
        rows = sum(shape[0] for shape in self.shapes)
        whole = (rows, *self.shapes[0][1:])
        return whole[::-1] if self.transposed else whole

    def join(self, ours: list[Tensor]) -> Tensor:
        """The published tensor, made of a copy of ours."""
        whole = torch.cat(ours) if len(ours) > 1 else ours[0]
        return (whole.t() if self.transposed else whole).clone(memory_format=torch.contiguous_format)

    def split(self, theirs: Tensor) -> list[Tensor]:
        """Our tensors, as copies of the parts of the published one."""
        whole = theirs.t() if self.transposed else theirs
        parts = whole.split([shape[0] for shape in self.shapes])
        return [part.clone(memory_format=torch.contiguous_format) for part in parts]


def layer_prefixes(model: ModelSection, num_loops: int) -> list[str]:
    """Name prefixes of our layers in the order of application, the loop block once per loop."""
    block = [f"loop.{number}" for number in range(model.num_loop_layers)]
    return [
        *(f"prelude.{number}" for number in range(model.num_prelude_layers)),
        *(name for _ in range(num_loops) for name in block),
        *(f"coda.{number}" for number in range(model.num_coda_layers)),
    ]


def stock_rules(model_type: str, model: ModelSection, num_loops: int, seq_len: int) -> list[Rule]:
    """The rules of all tensors of a stock architecture, which holds the model unrolled to `num_loops` loops."""
    is_gpt2 = model_type == "gpt2"
    ends = _GPT2_ENDS if is_gpt2 else _LLAMA_ENDS
    rules = []
    for name, weight in stage_weights(model, seq_len).items():
        part, _, kind = name.rpartition(".")
        if part.partition(".")[0] not in ("prelude", "loop", "coda"):
            rules.append(Rule(theirs=f"{ends[part]}.{kind}", ours=(name,), shapes=(weight.shape,)))
    names = _GPT2_LAYER if is_gpt2 else _OLMO2_LAYER if model_type == "olmo2" else _LLAMA_LAYER
    stem = "transformer.h" if is_gpt2 else "model.layers"
    for number, prefix in enumerate(layer_prefixes(model, num_loops)):
        joined: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for name, weight in layer_weights(model).items():
            part, _, kind = name.rpartition(".")
            joined.setdefault(f"{stem}.{number}.{names[part]}.{kind}", []).append((f"{prefix}.{name}", weight.shape))
        for theirs, parts in joined.items():
            ours, shapes = zip(*parts, strict=True)
            rules.append(Rule(theirs=theirs, ours=ours, shapes=shapes, transposed=is_gpt2 and len(shapes[0]) == 2))
    return rules


def looped_rules(model: ModelSection, seq_len: int) -> list[Rule]:
    """The rules of all tensors of the exported looped model, whose names are ours."""
    weights = stage_weights(model, seq_len)
    return [Rule(theirs=name, ours=(name,), shapes=(weight.shape,)) for name, weight in weights.items()]
