"""The line value = alpha·log(D) + beta (natural log) through a curve, its intervals, and the ratio of two alphas.

The line is least squares over all points, replicates included. Its intervals come from a parametric bootstrap with two
sources of noise:

1. Examples. Every point is scored again on the same number of examples: binomial for an accuracy, otherwise normal with
   its standard error.
2. Seeds. Scatter about the line beyond the example noise is attributed to the runs. With one point per run it is one
   variance with n - 2 degrees of freedom; with several points per run, a run's common offset and the rest are two
   variances (one-way analysis of variance). Each bootstrap draw first draws the variances (scaled inverse chi-squared),
   so few runs give wide intervals, as Student's t would. The effect of a seed cannot be estimated from one run: its
   intervals hold for that seed only.

Cost: at most `MAX_CELLS` random numbers per curve.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.rows.metrics import ACCURACIES
from pretrain.scaling.curves import Curve

Array = NDArray[np.float64]

MIN_DEPTHS = 4
"""Fewer distinct depths are not evidence for a law."""

NO_SLOPE = "no slope, its interval holds 0"

NO_LINE = f"a line needs {MIN_DEPTHS} depths"

NUM_DRAWS, MIN_DRAWS, MAX_CELLS = 2000, 200, 2_000_000
"""Bootstrap draws per curve; fewer, but not below MIN_DRAWS, if draws times points would exceed MAX_CELLS."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """alpha and beta with 95% intervals (low, high), in the metric's unit."""

    alpha: float
    beta: float
    alpha_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    held_out_error: float
    """Root mean square over depths of: mean value at a depth minus the prediction of the line through all others."""
    alpha_draws: Array
    """alpha of each bootstrap draw."""

    @property
    def has_slope(self) -> bool:
        """Whether the interval of alpha leaves 0 out: else there is no line to draw."""
        return self.alpha_interval[0] > 0 or self.alpha_interval[1] < 0


class Ratio(NamedTuple):
    """alpha_looped / alpha_baseline with its 95% interval; None if the interval of alpha_baseline contains 0."""

    task_group: str
    names: tuple[str, str]
    """Of the two curves."""
    value: float
    interval: tuple[float, float] | None


def fit_curve(curve: Curve, seed: int = 0) -> Fit | None:
    """Fit a curve, with `seed` for the bootstrap; None if it has fewer than `MIN_DEPTHS` distinct depths."""
    if curve.num_depths < MIN_DEPTHS:
        return None
    x = np.log([point.depth for point in curve.points])
    values = np.array([point.value for point in curve.points])
    alpha, beta = map(float, np.polyfit(x, values, deg=1))
    stderrs = np.array([point.stderr for point in curve.points])
    runs = np.unique([point.row.run for point in curve.points], return_inverse=True)[1]
    num_draws = min(NUM_DRAWS, max(MIN_DRAWS, MAX_CELLS // len(values)))
    rng = np.random.default_rng(seed)
    noise = _example_noise(rng, curve, values, stderrs, num_draws)
    noise += _run_noise(rng, values - alpha * x - beta, runs, float(np.mean(stderrs**2)), num_draws)
    centred = x - x.mean()
    slopes = noise @ centred / (centred @ centred)
    alphas = alpha + slopes
    betas = beta + noise.mean(axis=1) - slopes * x.mean()
    return Fit(
        alpha=alpha, beta=beta, alpha_interval=interval(alphas), beta_interval=interval(betas),
        held_out_error=_held_out_error(x, values), alpha_draws=alphas,
    )  # fmt: skip


def ratio_of(task_group: str, names: tuple[str, str], looped: Fit, baseline: Fit) -> Ratio:
    """The ratio of two alphas, taking the bootstrap draws of the two families as independent."""
    low, high = baseline.alpha_interval
    value = looped.alpha / baseline.alpha if baseline.alpha else float("nan")
    if low <= 0 <= high:
        return Ratio(task_group, names, value, None)
    num_draws = min(len(looped.alpha_draws), len(baseline.alpha_draws))
    # both curves used the same bootstrap seed: pair their draws in random order
    order = np.random.default_rng(1).permutation(len(baseline.alpha_draws))[:num_draws]
    return Ratio(task_group, names, value, interval(looped.alpha_draws[:num_draws] / baseline.alpha_draws[order]))


def interval(draws: Array) -> tuple[float, float]:
    """The central 95% of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _example_noise(rng: np.random.Generator, curve: Curve, values: Array, stderrs: Array, num_draws: int) -> Array:
    """Deviation of each point if it were scored on other examples (draws × points)."""
    if curve.metric not in ACCURACIES or values.min() < 0 or values.max() > 1:
        return rng.normal(0.0, 1.0, (num_draws, len(values))) * stderrs
    # Effective number of examples: that of a single accuracy with the same variance as the mean over the tasks. With
    # a variance of 0 (all right or all wrong) it is the number of all examples.
    examples = np.array([point.num_examples for point in curve.points], dtype=float)
    variances = values * (1 - values)
    examples = np.where((stderrs > 0) & (variances > 0), variances / np.where(stderrs > 0, stderrs, 1) ** 2, examples)
    examples = np.maximum(np.rint(examples), 1)
    shares = (values * examples + 0.5) / (examples + 1)  # shrunk towards 1/2: 10 right of 10 is not certainty
    return rng.binomial(examples.astype(np.int64), shares, (num_draws, len(values))) / examples - shares


def _run_noise(
    rng: np.random.Generator, residuals: Array, runs: NDArray[np.intp], example_variance: float, num_draws: int
) -> Array:
    """Differences between runs beyond example noise (draws × points), from the residuals and each point's run."""
    num_points, sizes = len(residuals), np.bincount(runs)
    rest_freedom = num_points - max(len(sizes) + 1, 2)
    if rest_freedom < 1 or len(sizes) == num_points:
        spread = _excess(rng, float(residuals @ residuals), num_points - 2, example_variance, num_draws)
        return spread * rng.normal(size=(num_draws, num_points))
    means = np.bincount(runs, residuals) / sizes
    rest = residuals - means[runs] if len(sizes) > 1 else residuals
    squares = float(rest @ rest)
    noise = _excess(rng, squares, rest_freedom, example_variance, num_draws) * rng.normal(size=(num_draws, num_points))
    if len(sizes) > 1:
        freedom = len(sizes) - 1
        typical_size = (num_points - sizes @ sizes / num_points) / freedom
        offsets = _excess(rng, float(sizes @ means**2), freedom, squares / rest_freedom, num_draws) / np.sqrt(
            typical_size
        )
        noise += (offsets * rng.normal(size=(num_draws, len(sizes))))[:, runs]
    return noise


def _excess(rng: np.random.Generator, squares: float, freedom: int, known_variance: float, num_draws: int) -> Array:
    """Standard deviations (draws × 1): draw variances given a sum of squares, and subtract the known variance."""
    variances = squares / rng.chisquare(freedom, (num_draws, 1))
    return np.sqrt(np.maximum(variances - known_variance, 0.0))


def _held_out_error(x: Array, values: Array) -> float:
    """`Fit.held_out_error`; `x` is log depth, with three or more distinct values."""
    errors = []
    for held_out in np.unique(x):
        kept = x != held_out
        alpha, beta = np.polyfit(x[kept], values[kept], deg=1)
        errors.append(values[~kept].mean() - alpha * held_out - beta)
    return float(np.sqrt(np.mean(np.square(errors))))
