"""What cleaning dropped and why: a table from the statistics that every task of every stage leaves."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.manifest import Header
from pretrain.storage import parse_json

DROPPED = "dropped_"
LINE_PREFIX, LINE_TOTAL = "line-filter-", "line-total"
FAILURES = {"timeout": "timeout", "clean_error": "error", "broken_process": "crash"}
"""How an extractor counts pages that it lost."""
NAMES = {"MinHash stage 4": "MinHash"}
ONLY_REASON = {"Trafilatura": "no text", "Language ID": "another language", "MinHash": "near duplicate"}
"""Of steps that count what they drop without a reason."""


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """What one step did."""

    step: str
    unit: str
    """What it counts: pages, or lines of pages."""
    total: int
    """Units that came in."""
    reasons: dict[str, int]
    """Units that went no further, by reason."""

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())


def count_steps(stage: Path) -> list[StepCount]:
    """The counts of the steps of a stage that pages pass through, in order.

    Args:
        stage: the stage's folder of logs; its `stats/` holds a file a task. They are summed here because datatrove's
            own sum leaves out the tasks of an earlier, interrupted call.
    """
    sums: dict[str, Counter[str]] = {}
    for path in sorted((stage / "stats").glob("*.json")):
        for step in parse_json(path.read_text()):
            counts = {key: _total(value) for key, value in step["stats"].items()}
            sums.setdefault(step["name"], Counter()).update(counts)
    return [count for name, stats in sums.items() for count in _counts(name, stats)]


def _total(value: Any) -> int:
    return round(value["total"] if isinstance(value, dict) else value)


def _counts(name: str, stats: Counter[str]) -> Iterable[StepCount]:
    step = re.sub(r"^[^A-Za-z]+", "", name.partition(": ")[2])  # without datatrove's category and picture
    step = NAMES.get(step, step)
    reasons = Counter({key.removeprefix(DROPPED): stats[key] for key in stats if key.startswith(DROPPED)})
    if unnamed := stats["dropped"] - reasons.total():
        reasons[ONLY_REASON.get(step, "no reason given")] = unnamed
    reasons += Counter({reason: stats[key] for key, reason in FAILURES.items()})
    if reasons or stats["forwarded"]:
        yield StepCount(step=step, unit="pages", total=stats["total"], reasons=dict(reasons))
    lines = {key.removeprefix(LINE_PREFIX): stats[key] for key in stats if key.startswith(LINE_PREFIX)}
    if LINE_TOTAL in stats:
        yield StepCount(step=f"{step}, lines", unit="lines", total=stats[LINE_TOTAL], reasons=lines)


def render(counts: list[StepCount], header: Header | None) -> str:
    """The table of all steps, in order, and what was kept: `header` of the shards, None if no page is left."""
    rows = [("step", "in", "dropped", "%", "why")]
    for count in counts:
        most_first = sorted(count.reasons.items(), key=lambda item: (-item[1], item[0]))
        why = ", ".join(f"{number:,} {reason}" for reason, number in most_first)
        share = f"{100 * count.dropped / count.total:.1f}" if count.total else ""
        rows.append((count.step, f"{count.total:,}", f"{count.dropped:,}", share, why.replace("_", " ")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    cells = [
        [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3)), row[4]] for row in rows
    ]
    lines = ["  ".join(row).rstrip() for row in cells]
    if header is None:
        return "\n".join([*lines, "kept: no page"])
    pages = next((count.total for count in counts if count.unit == "pages"), 0)
    share = f" of {pages:,} ({100 * header.num_documents / pages:.1f} %)" if pages else ""
    tokens = f", {header.num_tokens:,} tokens" if header.num_tokens is not None else ""
    return "\n".join([*lines, f"kept: {header.num_documents:,} pages{share}{tokens} in {header.num_shards:,} shards"])
