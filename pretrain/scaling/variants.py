"""Variants of a model whose loops may be worth different amounts: the joint law holds for one of them, at any size.

What makes a variant is every setting of the model that is no size, and how its loops are trained: their distribution
and growth, the loss over them, and how far back gradients go. Sizes, numbers of loops, tokens and the optimizer's
settings are what the runs of one variant may differ in. Rows from before they said their settings are one variant.

Of a model that was trained with several settings of the optimizer, its best stands for it: a learning rate that is
wrong for some loop counts would count as what loops are worth.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.comparable import SHAPE, short_names, shown_value
from pretrain.storage import parse_json

SIZES = SHAPE | {
    f"model.{name}"
    for name in (
        "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_size", "ffn_size", "init_std",
        "loop.made_for",
    )
}  # fmt: skip
"""Settings of the model that the law is over, or that go with them."""
SWEPT = "optimizer."
"""Settings of which each model has its best."""
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


def at_best_settings(rows: Sequence[EvaluationRow]) -> tuple[list[EvaluationRow], list[str]]:
    """Of the validation losses of runs that differ in settings of the optimizer (and seeds) alone, those of the
    settings with the lowest mean over seeds, at the most loops that were scored; and a line about the others. The best
    is chosen by the losses that are fitted, so its loss is a little low, by less than the settings differ."""
    arms: dict[Any, dict[str, list[EvaluationRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        settings = row.settings or {}
        swept = {key: value for key, value in settings.items() if key.startswith(SWEPT)}
        rest = {key: value for key, value in settings.items() if key not in swept}
        loops = row.trained_loops or row.num_loops
        arm = (json.dumps(rest, sort_keys=True), loops, row.num_params, row.num_loop_params, row.tokens_seen, row.data)
        arms[arm][json.dumps(swept, sort_keys=True)].append(row)
    kept, varying = [], set()
    for arm in arms.values():
        most = max(row.num_loops for of_one in arm.values() for row in of_one)
        losses = {
            swept: fmean(deepest)
            for swept, of_one in arm.items()
            if (deepest := [row.value for row in of_one if row.num_loops == most])
        }
        kept += arm[min(losses, key=lambda swept: losses[swept])]
        found = [parse_json(swept) for swept in arm]
        keys = {key for known in found for key in known}
        varying |= {key for key in keys if any(known.get(key) != found[0].get(key) for known in found)}
    runs, of_kept = ({(row.run_id, row.run) for row in some} for some in (rows, kept))
    said = (
        f"joint law: of runs that differ in {', '.join(sorted(varying))} alone, the best stand for their model: "
        f"{len(runs - of_kept)} others left out"
    )
    return kept, [said] if varying else []


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: shown_value(value)
        for key, value in settings.items()
        if (key.startswith("model.") and key not in SIZES) or key.startswith(OF_TRAINING)
    }
