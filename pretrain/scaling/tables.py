"""The analysis as tables for the terminal and the page, and as fit.csv."""

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from pretrain.scaling.analysis import Analysis
from pretrain.scaling.axes import MAX_DRAWN, TRAINING
from pretrain.scaling.fit import NO_LINE
from pretrain.scaling.floors import NAMES
from pretrain.scaling.law import PUBLISHED, JointLaw
from pretrain.scaling.table import Table

CSV_FIELDS = (
    "task_group", "family", "curve", "metric", "alpha", "alpha_low", "alpha_high", "beta", "beta_low", "beta_high",
    "held_out_error", "num_depths",
)  # fmt: skip


def write_fits(analysis: Analysis, file: Path) -> None:
    """Write the fits as CSV; the numbers are empty where no line was fitted."""
    with file.open("w", newline="", encoding="utf-8") as output:
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow(CSV_FIELDS)
        for curve, fit in zip(analysis.curves, analysis.fits, strict=True):
            numbers: tuple[object, ...] = ("",) * 7
            if fit:
                numbers = fit.alpha, *fit.alpha_interval, fit.beta, *fit.beta_interval, fit.held_out_error
            writer.writerow([curve.task_group, curve.family, curve.name, curve.metric, *numbers, curve.num_depths])


def make_tables(analysis: Analysis) -> list[Table]:
    """The tables that are not empty, in reading order."""
    makers = (_fit_table, _floor_table, _difference_table, _ratio_table, _gap_table, _law_table, _isoplot_table)
    return [table for make in makers if (table := make(analysis)).rows or table.notes]


def _fit_table(analysis: Analysis) -> Table:
    rows, notes = [], []
    for curve, fit in zip(analysis.curves, analysis.fits, strict=True):
        numbers = ("-", "-", f"- ({NO_LINE})")
        if fit:
            alpha, beta = _with_interval(fit.alpha, fit.alpha_interval), _with_interval(fit.beta, fit.beta_interval)
            numbers = alpha if fit.has_slope else f"{alpha}: none", beta, f"{fit.held_out_error:.2g}"
        rows.append((curve.task_group, curve.name, curve.metric, str(curve.num_depths), *numbers))
        num_points, warnings = len(curve.points), list(curve.warnings)
        if unplaced := num_points - len(TRAINING.placed(curve.points)):
            missing = f"training FLOPs of {unplaced} of {num_points} points are unknown or 0"
            warnings.insert(0, f"{missing}, so they are not drawn against these")
        if num_points > MAX_DRAWN:
            warnings.insert(0, f"{MAX_DRAWN} of {num_points} points are drawn; the line is through all")
        notes += [f"{curve.task_group}, {curve.name}: {warning}" for warning in warnings]
    if not any(analysis.fits):
        notes.insert(0, f"no curve has a line: {NO_LINE}")
    header = ("task group", "curve", "metric", "depths", "alpha [95%]", "beta [95%]", "error at a depth held out")
    title = "value = alpha·log(D) + beta, D: effective depth in layers"
    return Table(title=title, header=header, rows=rows, notes=notes)


def _floor_table(analysis: Analysis) -> Table:
    rows = [
        (group, *(f"{found[name]:.3g}" if name in found else "-" for name in NAMES))
        for group, found in analysis.floors.items()
    ]
    return Table(title="what takes no reasoning", header=("task group", *NAMES), rows=rows)


def _difference_table(analysis: Analysis) -> Table:
    rows = [
        (" - ".join(found.kinds), found.curve.name, _with_interval(found.fit.alpha, found.fit.alpha_interval))
        for found in analysis.differences
    ]
    title = "what depth is worth more to one kind of task than to another: difference of the two alphas"
    return Table(title=title, header=("kinds", "curve", "difference [95%]"), rows=rows)


def _ratio_table(analysis: Analysis) -> Table:
    rows = []
    for ratio in analysis.ratios:
        unbounded = f"{ratio.value:.3g} (unbounded: alpha_baseline may be 0)"
        rows.append(
            (
                ratio.task_group,
                *ratio.names,
                _with_interval(ratio.value, ratio.interval) if ratio.interval else unbounded,
            )
        )
    title = "a loop against layers of their own: alpha_looped / alpha_baseline"
    return Table(title=title, header=("task group", "looped", "baseline", "ratio [95%]"), rows=rows)


def _gap_table(analysis: Analysis) -> Table:
    rows: list[tuple[str, ...]] = []
    missing: Counter[str] = Counter()
    for gap in analysis.gaps:
        if gap.covered_pct is None:
            missing[gap.task_group] += gap.statistic == "mean"
            continue
        runs = gap.runs[0] if len(gap.runs) == 1 else f"{gap.statistic} of {len(gap.runs)}: {gap.runs[0]}, ..."
        numbers = [f"{value:.4g}" for value in (gap.iso_param or 0.0, gap.value, gap.iso_flop or 0.0)]
        rows.append(
            (gap.task_group, runs, str(gap.num_loops), str(gap.depth), gap.metric, *numbers, f"{gap.covered_pct:.0f}%")
        )
    notes = []
    if rows or any(curve.family == "baseline" for curve in analysis.curves):
        lack = "without two different baselines (equal parameters, equal FLOPs per token)"
        notes = [f"{group}: {count} looped model{'s' * (count > 1)} {lack}" for group, count in missing.items()]
    header = ("task group", "run", "loops", "depth", "metric", "iso-parameter", "looped", "iso-FLOP", "gap covered")
    title = "% of the gap between the iso-parameter and the iso-FLOP baseline"
    return Table(title=title, header=header, rows=rows, notes=notes)


def _law_table(analysis: Analysis) -> Table:
    """A row for each variant: what a loop is worth may differ between them, as all constants."""
    title = "validation loss = E + A·(N_once + r^phi·N_rec)^-a + B·T^-b"
    rows, notes, is_alone = [], [], len(analysis.laws) == 1
    without: dict[str, list[str]] = defaultdict(list)
    for variant, law in analysis.laws.items():
        of_variant = "" if is_alone else f"{variant}: "
        if isinstance(law, str):
            without[law if is_alone else law.partition("; there are")[0]].append(of_variant)
            continue
        constants = ["-" if number is None else f"{number:.3g}" for number in (law.offset, law.a, law.b, law.error)]
        row = (_with_interval(law.phi, law.phi_interval), *constants, str(len(law.losses)))
        rows.append(row if is_alone else (variant, *row))
        notes += [of_variant + law.undetermined] if law.undetermined else []
        if law.b is None:
            notes.append(f"{of_variant}all runs saw equally many tokens: B·T^-b is part of E")
    if any(isinstance(law, JointLaw) and not law.undetermined for law in analysis.laws.values()):
        notes.insert(0, PUBLISHED)
    for reason, names in without.items():
        notes.append((names[0] if len(names) == 1 else f"{len(names)} variants: each ") + reason)
    header = (*(() if is_alone else ("variant",)), "phi [95%]", "E", "a", "b", "error", "points")
    return Table(title=title, header=header, rows=rows, notes=notes)


def _isoplot_table(analysis: Analysis) -> Table:
    rows = []
    for isoplot in analysis.isoplots:
        line = ("-", "- (too few losses)")
        if found := isoplot.line:
            line = _with_interval(found.slope, found.slope_interval), f"{found.intercept:.4g}"
        rows.append((isoplot.task_group, isoplot.name, isoplot.metric, str(len(isoplot.points)), *line))
    header = ("task group", "curve", "metric", "points", "per nat of loss [95%]", "at loss 0")
    return Table(title="downstream value against validation loss over training steps", header=header, rows=rows)


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"
