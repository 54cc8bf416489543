"""Features of published models that this model cannot compute, by name in their configurations."""

from pathlib import Path
from typing import Any

_FORBIDDEN = {  # unsupported feature -> its configuration fields, with the values that turn it off
    "sliding windows": {"sliding_window": None},
    "clipped queries, keys and values": {"clip_qkv": None},
    "mixture of experts": {"num_experts": None, "num_local_experts": None, "n_routed_experts": None},
    "quantised weights": {"quantization_config": None},
    "partial rotary positions": {"partial_rotary_factor": 1.0},
    "attention scaled by the layer's number": {"scale_attn_by_inverse_layer_idx": False},
    "unscaled attention": {"scale_attn_weights": True},
    "cross attention": {"add_cross_attention": False},
}


def refuse_unsupported(path: Path, config: Any, values: dict[str, Any]) -> None:
    """Raise a ValueError that names the first feature of a configuration that is not supported.

    Args:
        path: of the config.json.
        config: its values, with the defaults of its model, as attributes.
        values: its values as they stand.
    """
    rope = getattr(config, "rope_parameters", None) or values.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"{path}: rope scaling ({rope_type}) is not supported: this model has plain rotary positions")
    for what, fields in _FORBIDDEN.items():
        for name, harmless in fields.items():
            value = getattr(config, name, harmless)
            is_off = name == "sliding_window" and getattr(config, "use_sliding_window", True) is False
            if value not in (harmless, None) and not is_off:
                raise ValueError(f"{path}: {what} ({name}={value}) is not supported")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ValueError(
            f"{path}: layers of {', '.join(sorted(kinds))} are not supported: this model attends to all earlier tokens"
        )
