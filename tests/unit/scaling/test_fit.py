"""The numbers of the scaling plot: lines and their intervals, ratios, covered gaps, the joint law, isoplots."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.analysis import analyse
from pretrain.scaling.axes import DEPTH
from pretrain.scaling.curves import Curve, make_curves
from pretrain.scaling.figure import draw
from pretrain.scaling.fit import Fit, fit_curve, ratio_of
from pretrain.scaling.gap import find_gaps
from pretrain.scaling.isoplot import make_isoplots
from pretrain.scaling.law import JointLaw, fit_law
from pretrain.scaling.table import render
from pretrain.scaling.tables import make_tables
from tests.support.scaling_rows import EMBEDDING_PARAMS, LAYER_PARAMS, make_row, model_fields, sweep

DEPTHS = (4, 8, 12, 24, 36, 48)

TABLE_3 = {
    # k⊗L: values of validation perplexity, closed book, open book, math, all 15 tasks, primitives (arXiv 2502.17416,
    # table 3)
    (24, 1): (7.40, 11.2, 33.9, 29.3, 26.0, 47.5),
    (12, 1): (8.16, 8.2, 26.9, 26.7, 21.8, 35.7),
    (12, 2): (7.90, 9.3, 30.8, 34.3, 26.5, 51.2),
    (8, 1): (8.75, 6.3, 22.7, 17.1, 16.1, 33.0),
    (8, 3): (8.19, 8.5, 30.8, 28.4, 23.9, 55.3),
    (6, 1): (9.25, 4.0, 19.3, 17.7, 14.6, 24.1),
    (6, 4): (8.42, 8.2, 28.7, 29.8, 23.7, 56.1),
    (4, 1): (10.12, 1.8, 13.8, 9.7, 9.0, 19.4),
    (4, 6): (8.79, 6.7, 26.2, 24.8, 20.4, 56.9),
}
TABLE_3_GAPS = {
    (12, 2): (34, 37, 56, 282, 110, 131),
    (8, 3): (41, 44, 72, 92, 78, 153),
    (6, 4): (44, 58, 64, 104, 80, 136),
    (4, 6): (48, 52, 61, 77, 67, 133),
}
COLUMNS = ("ppl", "closed", "open", "math", "all", "primitives")


def curve_of(values: dict[int, list[float]], **fields: object) -> Curve:
    """A curve of single-depth runs: replicates by depth."""
    rows = [
        make_row(run=f"{depth}-{seed}", effective_depth=depth, value=value, **fields)
        for depth, found in values.items()
        for seed, value in enumerate(found)
    ]
    return make_curves(rows)[0]


def fitted(curve: Curve, seed: int = 0) -> Fit:
    fit = fit_curve(curve, seed)
    assert fit is not None
    return fit


@settings(deadline=None, max_examples=30)
@given(
    alpha=st.floats(-2, 2),
    beta=st.floats(-5, 5),
    depths=st.lists(st.integers(1, 500), min_size=4, max_size=12, unique=True),
)
def test_fit_recovers_an_exact_law(alpha: float, beta: float, depths: list[int]) -> None:
    fit = fitted(curve_of({depth: [alpha * math.log(depth) + beta] for depth in depths}, stderr=0.0))
    for depth in depths:
        assert fit.alpha * math.log(depth) + fit.beta == pytest.approx(alpha * math.log(depth) + beta, abs=1e-6)
    assert fit.held_out_error == pytest.approx(0, abs=1e-6)
    assert fit.alpha_interval == pytest.approx((fit.alpha, fit.alpha), abs=1e-6)


def test_no_line_through_fewer_than_four_different_depths() -> None:
    assert fit_curve(curve_of({depth: [1.0, 2.0] for depth in (2, 4, 8)})) is None


def examples_only(rng: np.random.Generator) -> Curve:
    """One run a depth; the only noise is that of 500 examples."""
    return curve_of(
        {d: [rng.binomial(500, 0.15 * math.log(d) + 0.1) / 500] for d in DEPTHS},
        metric="acc",
        stderr=None,
        num_examples=500,
    )


def examples_and_seeds(rng: np.random.Generator) -> Curve:
    """Three runs a depth that differ by a seed's noise above that of the examples."""
    shares = {depth: [0.15 * math.log(depth) + 0.1 + rng.normal(0, 0.04) for _ in range(3)] for depth in DEPTHS}
    values = {depth: [rng.binomial(500, share) / 500 for share in found] for depth, found in shares.items()}
    return curve_of(values, metric="acc", stderr=None, num_examples=500)


def unknown_noise(rng: np.random.Generator) -> Curve:
    """One run a depth, of a loss whose standard error nobody wrote down."""
    return curve_of({depth: [0.15 * math.log(depth) + 0.1 + rng.normal(0, 0.02)] for depth in DEPTHS[:5]}, stderr=None)


def offset_runs(rng: np.random.Generator) -> Curve:
    """Five runs, each scored at every depth, so that a run's offset is in all of its points."""
    offsets = rng.normal(0, 0.05, 5)
    rows = [
        make_row(
            run=str(run),
            num_loops=index + 1,
            effective_depth=depth,
            value=0.15 * math.log(depth) + 0.1 + offset + rng.normal(0, 0.02),
        )
        for run, offset in enumerate(offsets)
        for index, depth in enumerate(DEPTHS)
    ]
    return make_curves([replace(row, stderr=0.01) for row in rows])[0]


@pytest.mark.parametrize("make", [examples_only, examples_and_seeds, unknown_noise, offset_runs])
def test_the_truth_is_inside_the_intervals_in_90_of_100_trials(make: Callable[[np.random.Generator], Curve]) -> None:
    rng, inside, num_trials = np.random.default_rng(1), np.zeros(2), 300
    for trial in range(num_trials):
        fit = fitted(make(rng), trial)
        inside += [
            low <= truth <= high for truth, (low, high) in ((0.15, fit.alpha_interval), (0.1, fit.beta_interval))
        ]
    assert inside.min() >= 0.9 * num_trials
    assert fit.alpha_interval[1] - fit.alpha_interval[0] < 0.15, "an interval that says nothing covers everything"


def test_more_examples_and_more_seeds_narrow_the_interval() -> None:
    def width(num_examples: int, seeds: int) -> float:
        rng = np.random.default_rng(0)
        values = {d: list(rng.binomial(num_examples, 0.15 * math.log(d) + 0.1, seeds) / num_examples) for d in DEPTHS}
        low, high = fitted(curve_of(values, metric="acc", stderr=None, num_examples=num_examples)).alpha_interval
        return high - low

    assert width(10_000, 1) < width(100, 1) / 3
    assert width(100, 25) < width(100, 1) / 3


def test_all_right_is_not_certainty() -> None:
    low, high = fitted(
        curve_of({depth: [1.0] for depth in DEPTHS}, metric="acc", stderr=None, num_examples=10)
    ).alpha_interval
    assert low < 0 < high


def test_the_error_of_a_held_out_depth_is_that_of_the_line_through_the_others() -> None:
    values = {2: [1.0], 4: [2.0], 8: [3.0], 16: [4.4]}
    errors = []
    for held_out, (value,) in values.items():
        rest = [depth for depth in values if depth != held_out]
        line = np.polyfit(np.log(rest), [values[depth][0] for depth in rest], 1)
        errors.append(value - np.polyval(line, math.log(held_out)))
    assert fitted(curve_of(values)).held_out_error == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_ratio_of_two_alphas_and_its_interval() -> None:
    inside = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        looped = fitted(
            curve_of({depth: [0.12 * math.log(depth) + rng.normal(0, 0.01)] for depth in DEPTHS}, stderr=0.01)
        )
        baseline = fitted(
            curve_of({depth: [0.10 * math.log(depth) + rng.normal(0, 0.01)] for depth in DEPTHS}, stderr=0.01)
        )
        interval = ratio_of("t", ("l", "b"), looped, baseline).interval
        assert interval is not None
        inside += interval[0] <= 1.2 <= interval[1]
    assert inside >= 90
    flat = fitted(curve_of({depth: [rng.normal(0, 0.01)] for depth in DEPTHS}, stderr=0.01))
    assert ratio_of("t", ("l", "b"), looped, flat).interval is None


def table_3_rows() -> list[EvaluationRow]:
    return [
        make_row(
            **model_fields("looped" if loops > 1 else "baseline", layers, loops, 10**9),
            task=column,
            task_group=column,
            metric="ppl" if column == "ppl" else "acc",
            value=value,
        )
        for (layers, loops), values in TABLE_3.items()
        for column, value in zip(COLUMNS, values, strict=True)
    ]


def test_gaps_of_the_published_table() -> None:
    gaps = {
        (gap.depth // gap.num_loops, gap.num_loops, gap.task_group): gap
        for gap in find_gaps(make_curves(table_3_rows()))
    }
    assert len(gaps) == 24
    for (layers, loops), published in TABLE_3_GAPS.items():
        for column, expected in zip(COLUMNS, published, strict=True):
            gap = gaps[layers, loops, column]
            assert gap.covered_pct is not None
            assert gap.iso_param is not None
            assert gap.iso_flop is not None
            # The table's values are rounded, its gaps are not made from the rounded ones: allow what half a unit can
            # do.
            half = 0.005 if column == "ppl" else 0.05
            span = abs(gap.iso_flop - gap.iso_param)
            slack = 100 * half * (2 + 2 * gap.covered_pct / 100) / (span - 2 * half) + 0.5
            assert gap.covered_pct == pytest.approx(expected, abs=slack), (layers, loops, column)


def test_a_gap_needs_both_baselines_with_as_many_tokens() -> None:
    rows = [row for row in table_3_rows() if row.task == "math"]
    others = [row for row in rows if (row.family, row.effective_depth) != ("baseline", 24)]
    later = [
        replace(row, tokens_seen=2 * 10**9) if row.effective_depth == 24 and row.num_loops == 1 else row for row in rows
    ]
    for lacking in (others, later):
        gaps = find_gaps(make_curves(lacking))
        assert [gap.iso_flop for gap in gaps] == [None] * 4
        assert all(gap.iso_param is not None and gap.covered_pct is None for gap in gaps)


def test_seeds_of_a_model_are_one_gap() -> None:
    rows = [
        *table_3_rows(),
        make_row(**model_fields("looped", 4, 6, 10**9, seed=1), task="math", task_group="math", value=26.8),
        make_row(**model_fields("baseline", 24, 1, 10**9, seed=1), task="math", task_group="math", value=31.3),
    ]
    rows = [replace(row, metric="acc") for row in rows if row.task == "math"]
    mean, best = [gap for gap in find_gaps(make_curves(rows)) if gap.num_loops == 6]
    assert (mean.statistic, best.statistic) == ("mean", "best") and len(mean.runs) == len(best.runs) == 2
    assert mean.covered_pct == pytest.approx(100 * (25.8 - 9.7) / (30.3 - 9.7))
    assert best.covered_pct == pytest.approx(100 * (26.8 - 9.7) / (31.3 - 9.7))


def test_the_best_of_seeds_is_the_lowest_loss() -> None:
    found = [("looped", 2, 2, (4.0, 3.6)), ("baseline", 4, 1, (3.5, 3.4)), ("baseline", 2, 1, (5.0, 4.4))]
    rows = [
        make_row(**model_fields(family, layers, loops, 10**9, seed), value=value)
        for family, layers, loops, values in found
        for seed, value in enumerate(values)
    ]
    mean, best = find_gaps(make_curves(rows))
    perplexities = [[math.exp(value) for value in values] for *_, values in (found[0], found[2], found[1])]
    assert (mean.value, mean.iso_param, mean.iso_flop) == pytest.approx([np.mean(each) for each in perplexities])
    assert (best.value, best.iso_param, best.iso_flop) == pytest.approx([min(each) for each in perplexities])
    assert mean.metric == "ppl", "the paper's gap is one of perplexities"
    (table,) = [table for table in make_tables(analyse(rows)) if table.title.startswith("% of the gap")]
    assert [row[1] for row in table.rows] == [
        "mean of 2: looped-2x2-1000000000-0, ...",
        "best of 2: looped-2x2-1000000000-0, ...",
    ]


def law_rows(
    phi: float, noise: float, seed: int, tokens: tuple[int, ...] = (10**8, 4 * 10**8, 16 * 10**8, 64 * 10**8)
) -> list[EvaluationRow]:
    """Runs of a law with known constants: r loops of 16/r to 64/r layers, so with and without loops at equal depth."""
    rng, rows = np.random.default_rng(seed), []
    for depth in (16, 32, 64):
        for loops in (1, 2, 4, 8):
            for budget in tokens:
                layers = depth // loops
                size = EMBEDDING_PARAMS + loops**phi * layers * LAYER_PARAMS
                loss = 1.8 + 250 * size**-0.32 + 700 * budget**-0.36 + rng.normal(0, noise)
                rows.append(
                    make_row(**model_fields("looped" if loops > 1 else "baseline", layers, loops, budget), value=loss)
                )
    return rows


@pytest.mark.parametrize("phi", [0.0, 0.46, 1.0])
def test_joint_law_of_exact_runs(phi: float) -> None:
    law = fit_law(law_rows(phi, 0.0, 0))
    assert isinstance(law, JointLaw)
    assert law.phi == pytest.approx(phi, abs=1e-3)
    assert (law.offset, law.a, law.b) == pytest.approx((1.8, 0.32, 0.36), rel=2e-2)
    assert not law.at_edge


def test_phi_is_recovered_from_noisy_runs() -> None:
    inside = 0
    for trial in range(20):
        law = fit_law(law_rows(0.46, 0.003, trial))
        assert isinstance(law, JointLaw)
        assert law.phi == pytest.approx(0.46, abs=0.05)
        inside += law.phi_interval[0] <= 0.46 <= law.phi_interval[1]
    assert inside >= 17


@pytest.mark.parametrize(("noise", "note"), [(0.003, "has phi = 0.46, from 116 runs"), (1.0, "determine")])
def test_phi_is_said_not_to_be_determined_by_runs_that_cannot_tell(tmp_path: Path, noise: float, note: str) -> None:
    """Noise of 1 nat is more than loops are worth in these runs; there is no panel of it then, and a line says why."""
    rows = law_rows(0.46, noise, 1)
    law = fit_law(rows)
    assert isinstance(law, JointLaw)
    assert bool(law.undetermined) == (noise > 0.01), law.phi_interval
    analysis = analyse(rows)
    (table,) = [table for table in make_tables(analysis) if table.title.startswith("validation loss = E")]
    assert note in table.notes[0]
    undrawn = draw(analysis, [tmp_path / "law.svg"], wanted=[DEPTH])
    assert undrawn == ([f"not drawn: joint law: {law.undetermined}"] if law.undetermined else [])
    assert ("joint law" in (tmp_path / "law.svg").read_text()) != bool(law.undetermined)


def test_joint_law_of_one_token_budget() -> None:
    law = fit_law(law_rows(0.46, 0.0005, 0, tokens=(10**9,)))
    assert isinstance(law, JointLaw)
    assert law.phi == pytest.approx(0.46, abs=0.05)
    assert law.b is None


def test_joint_law_needs_enough_different_runs() -> None:
    rows = law_rows(0.46, 0.003, 0)
    assert "needs 8 validation losses" in str(fit_law(rows[:5]))
    assert "there are 48, 1, 2 and 4" in str(
        fit_law([replace(row, num_loops=1, num_params=row.num_params % 3 + 1) for row in rows])
    )
    unknown = [replace(row, num_loop_params=None) for row in rows]
    assert "36 of several loops lack num_loop_params" in str(fit_law(unknown))
    assert fit_law([make_row(task="other", task_group="other")]) == ""


def test_isoplots_pair_a_value_with_the_loss_at_the_same_step_and_loop_count() -> None:
    rows = []
    for step in (10, 20, 30):
        for loops in (1, 2):
            loss = 5.0 - step / 20 - loops / 10
            rows.append(make_row(step=step, num_loops=loops, value=loss))
            rows += [
                make_row(
                    step=step, num_loops=loops, task=task, task_group="qa", metric="acc", value=0.9 - 0.1 * loss + shift
                )
                for task, shift in (("x", 0.1), ("y", -0.1))
            ]
    rows.append(make_row(step=99, task="x", task_group="qa", metric="acc", value=0.0))  # no loss is known there
    (isoplot,) = make_isoplots(rows, rows)
    assert (isoplot.task_group, isoplot.metric, len(isoplot.points)) == ("qa", "acc", 6)
    assert isoplot.line is not None and isoplot.line.has_slope
    assert (isoplot.line.slope, isoplot.line.intercept) == pytest.approx((-0.1, 0.9))
    (later,) = make_isoplots(rows, rows, from_step=20)
    assert {point.step for point in later.points} == {20, 30}
    assert make_isoplots(rows, rows, from_step=30) == []  # of one step nothing is over training


def test_everything_of_a_sweep_is_in_the_tables() -> None:
    analysis = analyse([make_row(**row) for row in sweep()])
    groups = ["all", "closed book", "math", "validation"]
    assert [curve.task_group for curve in analysis.curves] == [group for group in groups for _ in range(2)]
    text = "\n".join(map(render, make_tables(analysis)))
    for words in ("alpha_looped / alpha_baseline", "gap covered", "phi [95%]", "held out", "per nat of loss"):
        assert words in text
    (law,) = analysis.laws.values()
    assert isinstance(law, JointLaw)
    assert law.phi == pytest.approx(0.5, abs=0.15)
