"""Names of GGUF's architectures and tensors, for reading and for writing.

llama.cpp has each tensor under a name of its own, and for Llama the rows of queries and keys of a head in another
order, as its rotation turns neighbours and that of transformers halves: row 2i + j of a head there is row j·(d/2) + i
here. Source: llama.cpp's conversion of Llama, and the table of names in its `gguf` package.
"""

import re

ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""GGUF's name, which is the model_type of transformers -> stem of the class of transformers."""
TURNED = {"llama": ("attn_q", "attn_k")}
"""By architecture, tensors of a layer whose heads have their rows in pairs of neighbours there."""
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_INSIDE = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTSIDE_BACK = {published: name for name, published in _OUTSIDE.items()}
_PARTS_BACK = {published: part for part, published in _PARTS.items()}
_INSIDE_BACK = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")


def published_name(name: str) -> str | None:
    """The name in transformers of a tensor of a GGUF file; None: it has none."""
    found = _INSIDE.fullmatch(name)
    if found is None or found[2] not in _PARTS:
        return _OUTSIDE.get(name)
    return f"model.layers.{int(found[1])}.{_PARTS[found[2]]}.{found[3]}"


def gguf_name(published: str) -> str:
    """The name in a GGUF file of a tensor of one of ARCHITECTURES in transformers."""
    found = _INSIDE_BACK.fullmatch(published)
    if found is None:
        return _OUTSIDE_BACK[published]
    return f"blk.{found[1]}.{_PARTS_BACK[found[2]]}.{found[3]}"


def turned_heads(architecture: str, name: str, num_heads: int, num_kv_heads: int) -> int:
    """Heads of a tensor, by its GGUF name, whose rows are in pairs of neighbours in the file; 0: they are not."""
    found = _INSIDE.fullmatch(name)
    if found is None or found[2] not in TURNED.get(architecture, ()):
        return 0
    return num_heads if found[2] == "attn_q" else num_kv_heads
