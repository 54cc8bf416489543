"""When a token stops looping at inference, by name: `--num-loops auto[:RULE][:THRESHOLD]`. No torch; the rules at work:
`pretrain/generation/exits.py`."""

import math
from dataclasses import dataclass

from pretrain.model.config import ModelSection
from pretrain.schema.choice import choose


@dataclass(frozen=True, kw_only=True)
class _Rule:
    stops: str
    """When, for people."""
    threshold: float
    """The default."""
    largest: float = math.inf


RULES = {
    "gate": _Rule(stops="the gate's probability of having stopped reaches it (Ouro)", threshold=0.5, largest=1.0),
    "kl": _Rule(stops="KL(output ‖ output of the loop before) is below it, in nats (Huginn)", threshold=5e-4),
    "change": _Rule(stops="the state's relative change in a loop is below it", threshold=0.05),
    "entropy": _Rule(stops="the entropy of the output is below it, in nats", threshold=0.5),
}
HELP = "; ".join(f"{name}: {rule.stops} ({rule.threshold:g})" for name, rule in RULES.items())


@dataclass(frozen=True, kw_only=True)
class ExitRule:
    """A rule with its threshold."""

    name: str
    threshold: float

    def __str__(self) -> str:
        return f"auto:{self.name}:{self.threshold:g}"


def is_auto(text: str) -> bool:
    return text.partition(":")[0] == "auto"


def exit_rule(text: str, model: ModelSection, given: str = "--num-loops") -> ExitRule:
    """Read `auto[:RULE][:THRESHOLD]` for a model; the rule is by default that of its gate, or kl without one. `given`:
    the option or field that it is of.

    Raises:
        ValueError: it is written wrongly, or the rule needs a gate or loops that the model has not.
    """
    has_gate = model.loop.exit != "none"
    if model.num_blocks > 1:
        raise ValueError(f"{given} {text}: a block-regularised model has no loops to stop after")
    _, *parts = text.split(":")
    name = parts.pop(0) if parts and not _is_number(parts[0]) else ("gate" if has_gate else "kl")
    rule = choose(RULES, name, f"{given} auto")
    if len(parts) > 1 or not all(map(_is_number, parts)):
        raise ValueError(f"{given} {text}: needs auto[:RULE][:THRESHOLD], such as auto:kl:0.02")
    threshold = float(parts[0]) if parts else rule.threshold
    if not 0 < threshold <= rule.largest:
        raise ValueError(f"{given} {text}: needs a threshold above 0" + (", at most 1" if rule.largest == 1 else ""))
    if name == "gate" and not has_gate:
        raise ValueError(
            f"{given} {text}: the model has no gate (model.loop.exit=none); rules without one: "
            + ", ".join(other for other in RULES if other != "gate")
        )
    return ExitRule(name=name, threshold=threshold)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
