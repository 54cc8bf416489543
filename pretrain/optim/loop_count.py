"""The loop count of a step, or of each of its sequences, as a function of seed, step, length of the run and number of
the sample in the run alone.

No generator object is kept and no rank enters: every rank computes the same count, on any layout and after any resume.
The draws come from a keyed hash and plain arithmetic, not from a library's random generator, whose streams may change
between its versions.

- fixed: model.num_loops.
- uniform: each count in [minimum, maximum] equally likely.
- poisson: 1 + Poisson(model.num_loops - 1), cut to [minimum, maximum].
- poisson_lognormal (Huginn, arXiv 2502.05171, section 3.3): rate = exp(Normal(log m - sigma²/2, sigma)), so that
  E[rate] = m; count = 1 + Poisson(rate), with m = model.num_loops - 1, so that E[count] = model.num_loops; then cut to
  [minimum, maximum]. The cut moves the mean a little when much of the tail lies outside.

With `growth`, model.num_loops above, or the maximum of uniform, is the number of that step (`GrowthSection`); where it
has to be whole, it is rounded.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pretrain.config.loop_sampling import LoopSamplingSection
from pretrain.config.run import TrainSection
from pretrain.keyed_hash import bits, open_uniform
from pretrain.model.config import ModelSection
from pretrain.schema.choice import choose


@dataclass(frozen=True, kw_only=True)
class StepLoops:
    """What a training step does with its loops."""

    counts: Sequence[int]
    """Loop counts of the sequences of the global batch, in their order."""
    backprop_loops: int | None
    """The last loops through which gradients flow; None: all."""
    regulariser_share: float
    """Share of the weight of the loop regulariser that is in force."""
    short_loops: int
    """Loops after which train.loop_loss.over=consistent looks, besides the last."""

    @property
    def mean(self) -> float:
        """Mean loop count; a whole number where all are equal."""
        least = min(self.counts)
        return least if least == max(self.counts) else sum(self.counts) / len(self.counts)


def step_loops(model: ModelSection, train: TrainSection, seed: int, step: int, first_sample: int) -> StepLoops:
    """The loops of a step, counted from 0, whose batch begins with a sample of the run, counted from 0 as well."""
    if train.loop_sampling.per == "step":
        counts = [num_loops_at(model, train, seed, step)] * train.global_batch
    else:
        samples = range(first_sample, first_sample + train.global_batch)
        counts = [num_loops_at(model, train, seed, step, sample) for sample in samples]
    return StepLoops(
        counts=counts, backprop_loops=backprop_loops_at(train, step),
        regulariser_share=regulariser_share_at(model, train, step), short_loops=short_loops_at(max(counts), seed, step),
    )  # fmt: skip


def num_loops_at(model: ModelSection, train: TrainSection, seed: int, step: int, sample: int | None = None) -> int:
    """How often the loop block is applied in a training step, counted from 0, or to one sample of the run in it."""
    sampling = train.loop_sampling
    full = sampling.growth.at(sampling.full(model.num_loops)[1], step, train.steps)
    return _distribution(sampling).draw(full, sampling, f"{seed}/{step}" if sample is None else f"{seed}/of/{sample}")


def short_loops_at(num_loops: int, seed: int, step: int) -> int:
    """Each count below that of a step equally likely; 1 where there is none."""
    return 1 + (bits(f"loops/short/{seed}/{step}") * max(0, num_loops - 1) >> 64)


def backprop_loops_at(train: TrainSection, step: int) -> int | None:
    """The last loops of a training step through which gradients flow; None: all."""
    full = train.backprop_loops
    return None if full is None else _rounded(train.backprop_growth.at(full, step, train.steps))


def regulariser_share_at(model: ModelSection, train: TrainSection, step: int) -> float:
    """Share of the loop regulariser's weight that is in force in a training step, counted from 0."""
    length = model.loop_regulariser.warmup * train.steps
    return step / length if step < length else 1.0


def expected_loops(model: ModelSection, train: TrainSection, step: int) -> float:
    """Mean of what may be drawn in a training step, counted from 0 (of the Poisson ones before the draws are cut to
    their range)."""
    sampling = train.loop_sampling
    full, distribution = (
        sampling.growth.at(sampling.full(model.num_loops)[1], step, train.steps),
        _distribution(sampling),
    )
    return distribution.mean(_rounded(full) if distribution.is_whole else full, sampling)


def mean_loops(model: ModelSection, train: TrainSection) -> float:
    """Mean loop count of a run's steps (of the Poisson ones before the draws are cut to their range)."""
    sampling = train.loop_sampling
    return _distribution(sampling).mean(sampling.growth.mean(sampling.full(model.num_loops)[1]), sampling)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One way to draw loop counts. The first argument of both is the count, mean or maximum of the step."""

    draw: Callable[[float, LoopSamplingSection, str], int]
    """The last argument keys the draw."""
    mean: Callable[[float, LoopSamplingSection], float]
    is_whole: bool = False
    """Whether the draw rounds the first argument."""


def _fixed(count: float, _: LoopSamplingSection, __: str) -> int:
    return _rounded(count)


def _uniform(maximum: float, sampling: LoopSamplingSection, key: str) -> int:
    num_counts = _rounded(maximum) - sampling.minimum + 1
    return sampling.minimum + (bits(f"loops/uniform/{key}") * num_counts >> 64)


def _poisson(mean: float, sampling: LoopSamplingSection, key: str, sigma: float = 0.0) -> int:
    """`sigma` is the log-normal spread of the rate."""
    if mean == 1:
        return max(1, sampling.minimum)
    normal = NormalDist().inv_cdf(open_uniform(f"loops/rate/{key}")) if sigma else 0.0
    log_rate = math.log(mean - 1) - sigma**2 / 2 + sigma * normal
    uniform = open_uniform(f"loops/count/{key}")
    return max(1 + _quantile(log_rate, uniform, sampling.maximum - 1), sampling.minimum)


def _poisson_lognormal(mean: float, sampling: LoopSamplingSection, key: str) -> int:
    return _poisson(mean, sampling, key, sampling.sigma)


DISTRIBUTIONS = {
    "fixed": Distribution(draw=_fixed, mean=lambda count, _: count, is_whole=True),
    "uniform": Distribution(
        draw=_uniform, mean=lambda maximum, sampling: (sampling.minimum + maximum) / 2, is_whole=True
    ),
    "poisson": Distribution(draw=_poisson, mean=lambda mean, _: mean),
    "poisson_lognormal": Distribution(draw=_poisson_lognormal, mean=lambda mean, _: mean),
}


def _distribution(sampling: LoopSamplingSection) -> Distribution:
    return choose(DISTRIBUTIONS, sampling.distribution, "train.loop_sampling.distribution")


def _rounded(number: float) -> int:
    """To the nearest whole number, halves up."""
    return math.floor(number + 0.5)


def _quantile(log_rate: float, uniform: float, largest: int) -> int:
    """The `uniform` quantile of a Poisson distribution, cut to `largest`: the first count whose cumulative probability
    reaches it."""
    cumulative = 0.0
    for count in range(largest):
        cumulative += math.exp(count * log_rate - math.exp(log_rate) - math.lgamma(count + 1))
        if cumulative >= uniform:
            return count
    return largest
