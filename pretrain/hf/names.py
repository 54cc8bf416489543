"""Names of weights: the mapping between our tensors and those of a published architecture.

A rule lists the tensors of ours that one published tensor holds, concatenated along their outputs (or inputs), and
transposed if the published one is [inputs, outputs] (GPT-2). In an unrolled looped model several published tensors hold
the same one of ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.config import ModelSection
from pretrain.model.weights import layer_weights, stage_weights
from pretrain.schema.choice import choose

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
_OURO_LAYER = _LLAMA_LAYER | {
    "attention_post_norm": "input_layernorm_2",
    "ffn_post_norm": "post_attention_layernorm_2",
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
_LAYERS = {"gpt2": _GPT2_LAYER, "olmo2": _OLMO2_LAYER, "ouro": _OURO_LAYER} | dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "olmo"), _LLAMA_LAYER
)
_LLAMA_ENDS = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_GPT2_ENDS = {
    "embedding": "transformer.wte", "position_embedding": "transformer.wpe", "final_norm": "transformer.ln_f",
    "head": "lm_head",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One published tensor (`theirs`), and names and shapes of the tensors of ours that it holds, in order."""

    theirs: str
    ours: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    transposed: bool = False
    """Whether the published tensor is [inputs, outputs]."""

    dim: int = 0
    """Along which they are concatenated: 0 their outputs, 1 their inputs."""
    paired: tuple[int, ...] = ()
    """Of each of them, the heads whose channels turn in pairs of neighbours there and of two halves here; 0: none."""
    stored: tuple[int, ...] | None = None
    """Shape of the published tensor where it has other dimensions than these, in the same order of numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the published tensor."""
        return self.stored or self._whole

    @property
    def _whole(self) -> tuple[int, ...]:
        sizes = list(self.shapes[0])
        sizes[self.dim] = sum(shape[self.dim] for shape in self.shapes)
        whole = tuple(sizes)
        return whole[::-1] if self.transposed else whole

    def join(self, ours: list[Tensor]) -> Tensor:
        """The published tensor, made of a copy of ours."""
        if self.paired:
            ours = [turned_rows(part, heads, (2, -1)) for part, heads in zip(ours, self.paired, strict=True)]
        whole = torch.cat(ours, self.dim) if len(ours) > 1 else ours[0]
        whole = (whole.t() if self.transposed else whole).clone(memory_format=torch.contiguous_format)
        return whole.view(self.shape)

    def split(self, theirs: Tensor) -> list[Tensor]:
        """Our tensors, as copies of the parts of the published one."""
        whole = theirs.reshape(self._whole)
        whole = whole.t() if self.transposed else whole
        parts = whole.split([shape[self.dim] for shape in self.shapes], self.dim)
        if self.paired:
            parts = [turned_rows(part, heads, (-1, 2)) for part, heads in zip(parts, self.paired, strict=True)]
        return [part.clone(memory_format=torch.contiguous_format) for part in parts]


def turned_rows(rows: Tensor, heads: int, order: tuple[int, int]) -> Tensor:
    """Rows of `heads` heads, each in `order` (two halves or pairs), in the other one; without heads as they are."""
    if not heads:
        return rows
    return rows.unflatten(0, (heads, *order)).transpose(1, 2).reshape(rows.shape)


def stock_rules(model_type: str, model: ModelSection, num_loops: int, seq_len: int) -> list[Rule]:
    """The rules of all tensors of a stock architecture, which holds the model unrolled to `num_loops` loops."""
    names, is_gpt2 = choose(_LAYERS, model_type, "model_type"), model_type == "gpt2"
    ends = _GPT2_ENDS if is_gpt2 else _LLAMA_ENDS
    counts = {"prelude": model.num_prelude_layers, "loop": model.num_loop_layers, "coda": model.num_coda_layers}
    rules = []
    for name, weight in stage_weights(model, seq_len).items():
        part, _, kind = name.rpartition(".")
        if part.partition(".")[0] not in counts:
            rules.append(Rule(theirs=f"{ends[part]}.{kind}", ours=(name,), shapes=(weight.shape,)))
    stem = "transformer.h" if is_gpt2 else "model.layers"
    blocks = {part: [f"{part}.{number}" for number in range(count)] for part, count in counts.items()}
    prefixes = [*blocks["prelude"], *blocks["loop"] * num_loops, *blocks["coda"]]  # in the order of application
    for number, prefix in enumerate(prefixes):
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
