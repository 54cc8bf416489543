"""Which machine keeps the others waiting: how long each rank itself works in a step.

All ranks of a step end together, so the time of a step does not say who was late. What a rank does alone (reading its
data; forward and backward until its gradients are to be summed) differs. The ranks of one replica wait for each other
in the pipeline, so a replica counts as the slowest of its ranks, and replicas are compared.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import Any

from pretrain.config.layout import Layout
from pretrain.config.ranks import RanksSection

WINDOW = 20
"""Steps over which a replica must be slow."""


@dataclass(frozen=True, kw_only=True)
class ReplicaWork:
    """How long replicas worked in a step."""

    median_s: float
    """Of two, the shorter."""
    worst_s: float
    slowest: str
    """Its ranks and their machines."""


class Stragglers:
    """Compares the replicas of a run.

    Args:
        section: of the configuration.
        hosts: machine of each rank.
        tensor: tensor-parallel ranks, which are neighbours.
        layout: of the ranks.
    """

    def __init__(self, section: RanksSection, hosts: Sequence[str], tensor: int, layout: Layout) -> None:
        self._factor, self._hosts, self._replicas = section.slow_factor, hosts, layout.data_parallel
        self._members = [
            [rank for rank in range(len(hosts)) if rank // tensor % self._replicas == replica]
            for replica in range(self._replicas)
        ]
        self._latest: deque[list[float]] = deque(maxlen=WINDOW)
        self._named: int | None = None

    def on_step(self, seconds: Sequence[float]) -> tuple[ReplicaWork | None, str | None]:
        """What a step took, by rank: the times of its replicas, if there are several, and a line to say, if one has
        become slow or is no longer."""
        if self._replicas == 1 or not all(map(math.isfinite, seconds)) or not all(seconds):
            return None, None
        times = [max(seconds[rank] for rank in members) for members in self._members]
        worst = max(range(self._replicas), key=times.__getitem__)
        self._latest.append([time / median_low(times) for time in times])
        return ReplicaWork(median_s=median_low(times), worst_s=times[worst], slowest=self._name(worst)), self._said()

    def _said(self) -> str | None:
        if len(self._latest) < WINDOW:
            return None
        means = [fmean(ratios) for ratios in zip(*self._latest, strict=True)]
        slow = max(range(self._replicas), key=means.__getitem__)
        before, self._named = self._named, slow if means[slow] > self._factor else None
        if self._named == before:
            return None
        if self._named is None:
            return f"{self._name(before or 0)} is as fast as the others again"
        return (
            f"warning: {self._name(slow)} works {means[slow]:.2f} times as long as the median in a step, over the last "
            f"{WINDOW} steps: all others wait for it"
        )

    def _name(self, replica: int) -> str:
        members = self._members[replica]
        hosts = ", ".join(dict.fromkeys(self._hosts[rank] for rank in members))
        return f"rank{'s' * (len(members) > 1)} {', '.join(map(str, members))} on {hosts}"


def work_fields(work: ReplicaWork | None) -> dict[str, Any]:
    """The fields of a row of a step."""
    return {} if work is None else {"work_s": work.median_s, "work_worst_s": work.worst_s, "slowest": work.slowest}
