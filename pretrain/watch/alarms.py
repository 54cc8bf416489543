"""Alarms: what a run that goes wrong shows, in numbers that all ranks have alike, so that all find the same.

    loss_spike      the loss is far above the median of the steps before (in robust deviations)
    states_alike    tokens have the same state after the last loop         (Geiping et al. 2025, arXiv 2502.05171,
    loops_unused    validation is no better with all loops than with one    section 4.3: two runs that failed)

An alarm is raised once when its condition begins to hold, and again only after it has ceased. What is known is JSON in
every checkpoint, so that a resumed run raises what the uninterrupted one would. What is done about an alarm:
`pretrain/trainer.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from pretrain.config.alarms import AlarmsSection, Policy

LEAST_DEVIATION = 0.01
"""Of a loss, as a share of the median: the steps before may be all alike."""
LEAST_SPIKE = 0.01
"""Nats above the median: a learnt task has losses of a thousandth, and of those each batch has many times another."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What was noticed."""

    name: str
    policy: Policy
    text: str
    """For people."""
    value: float
    threshold: float
    since: int
    """The first step that showed it; checkpoints from before it are good."""


@dataclass(kw_only=True)
class _Known:
    """What a checkpoint holds."""

    losses: list[float] = field(default_factory=list)
    """Of the latest steps outside spikes."""
    spike: int = 0
    """Steps in a row that are in one."""
    unused: int = 0
    """Validations in a row."""
    since: dict[str, int] = field(default_factory=dict)
    """First step of each condition that holds."""
    fine: dict[str, int] = field(default_factory=dict)
    """The latest step at which it was looked for and did not hold."""
    raised: list[str] = field(default_factory=list)
    """Of those that hold, the ones that were raised."""


class Alarms:
    """The alarms of a run.

    Args:
        section: of the configuration.
        saved: `as_meta` of a checkpoint; None for a run that begins.
    """

    def __init__(self, section: AlarmsSection, saved: Mapping[str, Any] | None = None) -> None:
        self.section, self._known = section, _Known(**(saved or {}))
        self.pending: list[Alarm] = []
        """Raised and not yet acted on."""

    def as_meta(self) -> dict[str, Any]:
        return asdict(self._known)

    def take(self) -> list[Alarm]:
        """What was raised since the last call, the weightiest policy first."""
        found, self.pending = self.pending, []
        return sorted(found, key=lambda alarm: ("stop", "rollback", "warn").index(alarm.policy))

    def on_step(self, step: int, loss: float) -> None:
        """Look at the loss of a step; one that is not finite was skipped and is none of theirs."""
        spike, known = self.section.loss_spike, self._known
        if not math.isfinite(loss):
            return
        threshold = math.inf
        if len(known.losses) >= spike.window // 2:
            middle = median(known.losses)
            deviation = 1.4826 * median(abs(each - middle) for each in known.losses)
            rise = spike.deviations * max(deviation, LEAST_DEVIATION * abs(middle))
            threshold = middle + max(rise, LEAST_SPIKE)
        is_high = loss > threshold
        known.spike = known.spike + 1 if is_high else 0
        if not is_high or known.spike > spike.window:  # so long that it is no spike but what the loss is now
            known.losses = [*known.losses[-spike.window + 1 :], loss]
        self._note(
            "loss_spike", spike, step, is_high, known.spike >= spike.steps, loss, threshold,
            f"loss {loss:.4g} is above {threshold:.4g}, what the {len(known.losses)} steps before allow",
        )  # fmt: skip

    def on_diagnostics(self, step: int, numbers: Mapping[str, float]) -> None:
        """Look at the numbers of `loop_diagnostics`, which every rank has alike."""
        after = [
            (int(name.partition(".loop")[2]), name) for name in numbers if name.startswith("token_correlation.loop")
        ]
        if after:
            loop, name = max(after)
            value, alike = numbers[name], self.section.states_alike
            self._note(
                "states_alike", alike, step, value >= alike.correlation, True, value, alike.correlation,
                f"the states of tokens are alike, mean cosine {value:.4f} after loop {loop}",
            )  # fmt: skip

    def on_validation(self, step: int, losses: Mapping[int, float]) -> None:
        """Look at the validation losses by loop count."""
        unused, known, most = self.section.loops_unused, self._known, max(losses)
        if most == 1 or 1 not in losses:
            return
        gain = losses[1] - losses[most]
        known.unused = known.unused + 1 if gain < unused.difference else 0
        self._note(
            "loops_unused", unused, step, known.unused > 0, known.unused >= unused.validations, gain, unused.difference,
            f"{most} loops are worth {gain:.4g} nats in {known.unused} validations in a row",
        )  # fmt: skip

    def _note(
        self, name: str, section: Any, step: int, holds: bool, is_long: bool, value: float, threshold: float, text: str
    ) -> None:  # fmt: skip
        """Raise an alarm whose condition holds and has held for long enough."""
        known = self._known
        if not holds:
            known.since.pop(name, None)
            known.fine[name] = step
            known.raised = [other for other in known.raised if other != name]
            return
        since = known.since.setdefault(name, known.fine.get(name, 0) + 1)
        if is_long and name not in known.raised and section.policy != "off":
            known.raised.append(name)
            alarm = Alarm(
                name=name, policy=section.policy, text=f"alarms.{name}: {text}", value=value, threshold=threshold,
                since=since,
            )  # fmt: skip
            self.pending.append(alarm)
