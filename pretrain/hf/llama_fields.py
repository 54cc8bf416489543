"""What the configurations of Llama and its descendants say alike of the shape of a model."""

from typing import Any


def llama_fields(values: Any) -> dict[str, Any]:
    """Fields of the model section, from the values of a config.json as attributes by their names there.

    Raises:
        ValueError: its feed-forward is another than ours.
    """
    if values.hidden_act not in ("silu", "swish"):
        raise ValueError(f"hidden_act={values.hidden_act} is not supported: this model has SwiGLU, which is silu")
    heads, head_size = values.num_attention_heads, getattr(values, "head_dim", None)
    return {
        "vocab_size": values.vocab_size, "hidden_size": values.hidden_size, "num_attention_heads": heads,
        "num_key_value_heads": None if values.num_key_value_heads == heads else values.num_key_value_heads,
        "head_size": None if (head_size or 0) * heads == values.hidden_size else head_size,
        "ffn_size": values.intermediate_size, "num_loop_layers": values.num_hidden_layers,
        "tied_head": bool(values.tie_word_embeddings), "init_std": values.initializer_range,
    }  # fmt: skip
