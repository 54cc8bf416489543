"""Metrics of tasks: which of several a task is judged by, which way is better, and what values can be."""

import math
from collections.abc import Collection

LOWER_IS_BETTER = frozenset({"nll", "ppl", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})
"""Metrics where a lower value is better; for all others a higher one is."""

ACCURACIES = frozenset({"acc", "accuracy", "acc_norm", "em", "exact_match"})
"""Metrics that are the share of correct answers, so binomial over examples."""

PREFERRED = (
    "acc", "exact_match", "exact_match (strict-match)", "f1", "em", "nll", "bits_per_byte", "word_perplexity",
    "perplexity",
)  # fmt: skip
"""Which of several metrics a task is judged by, the first that it has, where nothing else says so."""

PERCENT = frozenset({("squadv2", "exact"), ("squadv2", "f1")})
"""(task, metric) that the evaluation harness gives in percent, where others are shares of 1."""

SCORE = "score"
"""The metric of a mean over tasks that are judged by different ones."""

METRIC_NAMES = {
    "nll": "loss (nats per token)",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "exact_match": "exact match",
    "em": "exact match",
    "bits_per_byte": "bits per byte",
    "ppl": "perplexity",
    SCORE: "mean of the main metrics",
}
"""Axis labels of metrics; other metrics are labelled with their name."""


def is_share(metric: str) -> bool:
    """Whether it lies between 0 and 1 and a higher value is better."""
    plain = metric.partition(" (")[0]
    return plain in ACCURACIES or plain in ("f1", "exact", "mcc", SCORE)


def possible_range(metric: str) -> tuple[float, float]:
    """What values of a metric can be."""
    return (0.0, 1.0) if is_share(metric) else (0.0, math.inf)


def main_metric(names: Collection[str], wanted: str | None = None) -> str | None:
    """Which of a task's metrics it is judged by: the wanted one, else the first of PREFERRED, else its only one."""
    order = (*([wanted] if wanted else []), *PREFERRED)
    found = next((each for name in order for each in names if each == name or each.startswith(f"{name} (")), None)
    return found or (next(iter(names)) if len(names) == 1 else None)
