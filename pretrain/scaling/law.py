"""The joint law of validation loss over parameters, loops and tokens (arXiv 2604.21106):

    loss = E + A·(N_once + r^phi·N_rec)^-a + B·T^-b

N_once is the number of parameters used once (including embeddings and head), N_rec that of the loop block, r the number
of loops, T the number of training tokens. phi is the worth of a loop: 1 if r loops equal r separate blocks, 0 if they
equal one block.

If all runs saw the same number of tokens, B·T^-b is part of E and the law is fitted without it.

Fit: least squares. For given (a, b, phi) the law is linear in (E, A, B), so these are solved exactly and
Levenberg-Marquardt moves only the three exponents, starting from the best points of a grid. All bootstrap draws are
fitted as one batch. The interval of phi resamples residuals, scaled by sqrt(n / (n - number of constants, 6 or 4)),
which keeps the design of the sweep.

Points: the latest validation loss of each run at each evaluated loop count. A model trained at one loop count should be
evaluated at that one: the law is about models trained for the loops that they run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.axes import subsample
from pretrain.scaling.fit import interval

Array = NDArray[np.float64]

PUBLISHED = "arXiv 2604.21106 has phi = 0.46, from 116 runs of one effective depth, 1 to 8 loops"

MIN_POINTS = 8
MAX_POINTS = 2000
"""Most points that are fitted, evenly spaced ones if there are more."""
MIN_LEVELS = 3
"""Distinct parameter counts, or token counts, that a power law with an offset needs."""

LOW, HIGH = np.array([0.01, 0.01, -1.0]), np.array([3.0, 3.0, 3.0])
"""Range of the exponents a, b and phi."""

NUM_DRAWS, MIN_DRAWS, MAX_CELLS = 500, 50, 1_000_000
ITERATIONS = 60
GRID = 0.1, 0.25, 0.5, 0.9
GRID_PHI = 0.0, 0.3, 0.6, 1.0
NUM_STARTS = 8


@dataclass(frozen=True, kw_only=True)
class JointLaw:
    """The constants of the law, phi's 95% interval, and the fitted points."""

    offset: float
    """E, in nats per token; E + B·T^-b if all runs saw the same number of tokens."""
    a: float
    b: float | None
    """None if all runs saw the same number of tokens."""
    phi: float
    phi_interval: tuple[float, float]
    error: float
    """Root mean square residual, in nats per token."""
    at_edge: bool
    """Whether an exponent reached the end of its range: the points do not determine the law."""
    runs: tuple[str, ...]
    num_loops: tuple[int, ...]
    equivalent_params: Array
    """N_once + r^phi·N_rec of each point."""
    tokens: Array
    losses: Array
    predicted: Array

    @property
    def undetermined(self) -> str:
        """Why these points do not determine phi; empty if they do."""
        low, high = self.phi_interval
        if self.at_edge:
            return "an exponent ran into the end of its range: these points do not determine the law"
        if low <= 0 and high >= 1:
            return "phi is not determined: to these points a loop may be worth nothing (0) or a block of its own (1)"
        return ""


def law_points(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The validation losses of trained models among evaluation rows."""
    return [row for row in rows if row.task == "validation" and row.metric == "nll" and row.tokens_seen]


def fit_law(rows: Sequence[EvaluationRow], seed: int = 0) -> JointLaw | str:
    """Fit the law to the validation losses among the latest rows of each run, with `seed` for the bootstrap.

    Returns:
        The law, or the reason why these points do not determine it (empty if there are no validation losses).
    """
    points = law_points(rows)
    if not points:
        return ""
    usable = [row for row in points if row.num_loops == 1 or row.num_loop_params is not None]
    unknown = len(points) - len(usable)
    chosen = subsample(usable, MAX_POINTS)
    hint = f"; {unknown} of several loops lack num_loop_params and do not count" if unknown else ""
    loops = np.array([row.num_loops for row in chosen], dtype=float)
    total = np.array([row.num_params for row in chosen], dtype=float)
    recurrent = np.array([row.num_loop_params or 0 for row in chosen], dtype=float)
    tokens = np.array([row.tokens_seen for row in chosen], dtype=float)
    losses = np.array([row.value for row in chosen], dtype=float)
    sizes, budgets = len(np.unique(total)), len(np.unique(tokens))
    if len(chosen) < MIN_POINTS or len(np.unique(loops)) < 2 or sizes < MIN_LEVELS or 1 < budgets < MIN_LEVELS:
        return (
            f"needs {MIN_POINTS} validation losses, 2 loop counts, "
            f"{MIN_LEVELS} parameter counts and 1 or {MIN_LEVELS} token counts; "
            f"there are {len(chosen)}, {len(np.unique(loops))}, {sizes} and {budgets}{hint}"
        )
    design = _Design(once=total - recurrent, recurrent=recurrent, loops=loops, tokens=tokens)
    best = design.search(losses)
    fitted, constants = design.predict(best[None], losses[None])
    residuals = losses - fitted[0]
    num_draws = min(NUM_DRAWS, max(MIN_DRAWS, MAX_CELLS // len(losses)))
    scale = np.sqrt(len(losses) / (len(losses) - (6 if design.has_tokens else 4)))
    picks = np.random.default_rng(seed).integers(0, len(losses), (num_draws, len(losses)))
    draws = design.descend(np.tile(best, (num_draws, 1)), fitted + scale * (residuals - residuals.mean())[picks])
    return JointLaw(
        offset=float(constants[0, 0]),
        a=float(best[0]),
        b=float(best[1]) if design.has_tokens else None,
        phi=float(best[2]),
        phi_interval=interval(draws[:, 2]),
        error=float(np.sqrt(np.mean(residuals**2))),
        at_edge=bool(np.any(best - LOW < 1e-6) or np.any(HIGH - best < 1e-6)),
        runs=tuple(row.run for row in chosen),
        num_loops=tuple(row.num_loops for row in chosen),
        equivalent_params=design.equivalent(best[None])[0],
        tokens=tokens,
        losses=losses,
        predicted=fitted[0],
    )


class _Design:
    """The models of the sweep, fixed in every fit. Exponents are (draws × 3), losses (draws × points)."""

    def __init__(self, *, once: Array, recurrent: Array, loops: Array, tokens: Array) -> None:
        self.once, self.recurrent, self.log_loops = once, recurrent, np.log(loops)
        self.log_scale = float(np.log(once + recurrent).mean())  # scales the columns to order 1
        self.log_tokens = np.log(tokens) - np.mean(np.log(tokens))
        self.has_tokens = len(np.unique(tokens)) > 1

    def equivalent(self, exponents: Array) -> Array:
        """N_once + r^phi·N_rec (draws × points)."""
        return self.once + np.exp(exponents[:, 2:] * self.log_loops) * self.recurrent

    def predict(self, exponents: Array, losses: Array) -> tuple[Array, Array]:
        """Predictions (draws × points) with the best E, A, B for these exponents, and E, A, B in scaled units (draws ×
        3, or × 2 without B)."""
        powers = np.exp(-exponents[:, :1] * (np.log(self.equivalent(exponents)) - self.log_scale))
        terms = [np.ones_like(powers), powers]
        if self.has_tokens:
            terms.append(np.exp(-exponents[:, 1:2] * self.log_tokens))
        columns = np.stack(terms, axis=-1)
        gram = columns.swapaxes(1, 2) @ columns + 1e-12 * len(self.once) * np.eye(len(terms))
        constants = np.linalg.solve(gram, columns.swapaxes(1, 2) @ losses[..., None]).astype(np.float64, copy=False)
        return (columns @ constants)[..., 0], constants[..., 0]

    def search(self, losses: Array) -> Array:
        """The best-fitting exponents (3), descending from the best points of a grid."""
        grid = np.stack(np.meshgrid(GRID, GRID, GRID_PHI, indexing="ij"), axis=-1).reshape(-1, 3)
        starts = grid[np.argsort(self._costs(grid, losses[None]))[:NUM_STARTS]]
        ends = self.descend(starts, np.tile(losses, (NUM_STARTS, 1)))
        return ends[np.argmin(self._costs(ends, losses[None]))]

    def descend(self, exponents: Array, losses: Array) -> Array:
        """Levenberg-Marquardt on each row of a batch, within the range of the exponents."""
        damping = np.full(len(exponents), 1e-3)
        fitted, _ = self.predict(exponents, losses)
        costs = np.sum((losses - fitted) ** 2, axis=1)
        for _ in range(ITERATIONS):
            moves = [self.predict(exponents + step, losses)[0] - fitted for step in 1e-6 * np.eye(3)]
            slopes = np.stack(moves, axis=-1) / 1e-6
            gram = slopes.swapaxes(1, 2) @ slopes
            gram += damping[:, None, None] * (gram * np.eye(3)) + 1e-15 * np.eye(3)
            steps = np.linalg.solve(gram, slopes.swapaxes(1, 2) @ (losses - fitted)[..., None])[..., 0]
            moved = np.clip(exponents + np.clip(steps, -0.5, 0.5), LOW, HIGH)
            new_fitted, _ = self.predict(moved, losses)
            new_costs = np.sum((losses - new_fitted) ** 2, axis=1)
            better = new_costs < costs
            furthest = np.max(np.abs(moved - exponents))  # rejected steps count too: the next one is shorter
            exponents = np.where(better[:, None], moved, exponents)
            fitted = np.where(better[:, None], new_fitted, fitted)
            costs, damping = np.where(better, new_costs, costs), np.where(better, damping / 5, damping * 5)
            if furthest < 1e-7:
                break
        return exponents

    def _costs(self, exponents: Array, losses: Array) -> Array:
        return np.sum((losses - self.predict(exponents, losses)[0]) ** 2, axis=1)
