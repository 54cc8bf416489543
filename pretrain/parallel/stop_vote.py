"""The vote to stop: all ranks end after the same piece of work, for the same reason.

Each rank puts its stop request into a sum over all ranks that the work does anyway; a signal that comes later counts in
the next one. Where ranks have several reasons, the weightiest wins. Cost: a few numbers in a collective.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.parallel.phase import Phase

REASONS = ("train.exit_after", "SIGINT", "SIGHUP", "SIGUSR1", "SIGTERM")
"""Why a run stops before its last step, the weakest first."""


class StopVote:
    """One rank's part of the vote: `stop_request` gives why it wants to stop now, one of REASONS, or None. A vote is a
    sign of progress: it ticks in `phase`."""

    def __init__(
        self, stop_request: Callable[[], str | None], device: torch.device, phase: Phase | None = None
    ) -> None:
        self._stop_request, self._device, self._phase = stop_request, device, phase or Phase(device)
        self.reason: str | None = None
        """Why all ranks stop, the same on each; None while they go on."""
        self.work_s: list[float] = []
        """How long each rank worked in its last step that is known, as all ranks know by the vote."""

    def sum(self, values: Tensor) -> list[float]:
        """Sum numbers [n] over all ranks, and vote in the same collective."""
        request = self._stop_request()
        ballot = [float(reason == request) for reason in REASONS]
        ballots = torch.tensor(ballot, dtype=torch.float64, device=self._device)
        work = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=self._device)
        work[dist.get_rank()] = self._phase.work.seconds
        totals = sum_over_ranks(torch.cat((values.double(), ballots, work)))
        self._phase.tick()
        self.work_s, counts = totals[-len(work) :], totals[len(values) : -len(work)]
        chosen = [reason for reason, count in zip(REASONS, counts, strict=True) if count]
        self.reason = chosen[-1] if chosen else self.reason
        return totals[: len(values)]

    def hold(self) -> None:
        """Vote in a collective of its own, for work that has none."""
        self.sum(torch.zeros(0, device=self._device))


def sum_over_ranks(values: Tensor) -> list[float]:
    """Sums of fp64 numbers [n] over all ranks. Collective."""
    dist.all_reduce(values)
    return values.tolist()
