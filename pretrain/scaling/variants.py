"""Variants of a model whose loops may be worth different amounts: the joint law holds for one of them, at any size.

What makes a variant is every setting of the model that is no size, and how its loops are trained: their distribution
and growth, the loss over them, and how far back gradients go. Sizes, numbers of loops, tokens and the optimizer's
settings are what the runs of one variant may differ in. Rows from before they said their settings are one variant.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.comparable import SHAPE, short_names, shown_value

SIZES = SHAPE | {
    f"model.{name}"
    for name in (
        "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_size", "ffn_size", "init_std",
        "loop.made_for",
    )
}  # fmt: skip
"""Settings of the model that the law is over, or that go with them."""
OF_TRAINING = (
    "train.loop_sampling.distribution", "train.loop_sampling.growth.", "train.loop_loss.", "train.backprop_loops",
)  # fmt: skip


def by_variant(rows: Sequence[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    """The rows of each variant, by its name: what sets it apart from the others; empty for the only one."""
    found: dict[tuple[tuple[str, str], ...], list[EvaluationRow]] = defaultdict(list)
    for row in rows:
        found[tuple(sorted(_settings(row.settings or {}).items()))].append(row)
    said = [dict(variant) for variant in found]
    short = short_names({key for known in said for key in known})
    names = []
    for known in said:
        apart = [key for key in known if any(other.get(key) != known[key] for other in said)]
        names.append(", ".join(f"{short[key]}={known[key]}" for key in apart) or ("defaults" if len(said) > 1 else ""))
    return dict(zip(names, found.values(), strict=True))


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: shown_value(value)
        for key, value in settings.items()
        if (key.startswith("model.") and key not in SIZES) or key.startswith(OF_TRAINING)
    }
