"""The loop count of a step as a function of (seed, step) alone.

No generator object is kept and no rank enters: every rank computes the same count, on any layout and after any resume.
The draws come from a keyed hash and plain arithmetic, not from a library's random generator, whose streams may change
between its versions.

- fixed: model.num_loops.
- uniform: each count in [minimum, maximum] equally likely.
- poisson_lognormal (Huginn, arXiv 2502.05171, section 3.3): rate = exp(Normal(log m - sigma²/2, sigma)), so that
  E[rate] = m; count = 1 + Poisson(rate), with m = model.num_loops - 1, so that E[count] = model.num_loops; then cut to
  [minimum, maximum]. The cut moves the mean a little when much of the tail lies outside.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from pretrain.config.run import LoopSamplingSection
from pretrain.keyed_hash import bits, open_uniform
from pretrain.model.config import ModelSection
from pretrain.schema.choice import choose


def num_loops_at(model: ModelSection, sampling: LoopSamplingSection, seed: int, step: int) -> int:
    """How often the loop block is applied in a training step, counted from 0."""
    return _distribution(sampling).draw(model, sampling, seed, step)


def mean_loops(model: ModelSection, sampling: LoopSamplingSection) -> float:
    """Mean loop count of a step (for poisson_lognormal before the draws are cut to their range)."""
    return _distribution(sampling).mean(model, sampling)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One way to draw loop counts."""

    draw: Callable[[ModelSection, LoopSamplingSection, int, int], int]
    """(model, sampling, seed, step) -> loop count."""
    mean: Callable[[ModelSection, LoopSamplingSection], float]


def _uniform(_model: ModelSection, sampling: LoopSamplingSection, seed: int, step: int) -> int:
    num_counts = sampling.maximum - sampling.minimum + 1
    return sampling.minimum + (bits(f"loops/uniform/{seed}/{step}") * num_counts >> 64)


def _poisson_lognormal(model: ModelSection, sampling: LoopSamplingSection, seed: int, step: int) -> int:
    if model.num_loops == 1:
        return max(1, sampling.minimum)
    spread = NormalDist().inv_cdf(open_uniform(f"loops/rate/{seed}/{step}"))
    log_rate = math.log(model.num_loops - 1) - sampling.sigma**2 / 2 + sampling.sigma * spread
    count = 1 + _poisson(log_rate, open_uniform(f"loops/count/{seed}/{step}"), sampling.maximum - 1)
    return max(count, sampling.minimum)


DISTRIBUTIONS = {
    "fixed": Distribution(draw=lambda model, *_: model.num_loops, mean=lambda model, _: float(model.num_loops)),
    "uniform": Distribution(draw=_uniform, mean=lambda _, sampling: (sampling.minimum + sampling.maximum) / 2),
    "poisson_lognormal": Distribution(draw=_poisson_lognormal, mean=lambda model, _: float(model.num_loops)),
}


def _distribution(sampling: LoopSamplingSection) -> Distribution:
    return choose(DISTRIBUTIONS, sampling.distribution, "train.loop_sampling.distribution")


def _poisson(log_rate: float, uniform: float, largest: int) -> int:
    """The `uniform` quantile of a Poisson distribution, cut to `largest`: the first count whose cumulative probability
    reaches it."""
    cumulative = 0.0
    for count in range(largest):
        cumulative += math.exp(count * log_rate - math.exp(log_rate) - math.lgamma(count + 1))
        if cumulative >= uniform:
            return count
    return largest
