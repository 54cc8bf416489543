"""All analyses of a set of evaluation rows, computed once for the tables, the figure and the page."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.identity import ResultRow, parse_inputs
from pretrain.rows.provenance import counted, told_runs
from pretrain.scaling.comparable import VALIDATION
from pretrain.scaling.curves import Curve, make_curves
from pretrain.scaling.fit import Fit, Ratio, fit_curve, ratio_of
from pretrain.scaling.floors import Floors, floors_of
from pretrain.scaling.gap import Gap, find_gaps
from pretrain.scaling.isoplot import Isoplot, make_isoplots
from pretrain.scaling.kinds import Kinds, SlopeDifference, differences, of_kinds
from pretrain.scaling.law import JointLaw, fit_law
from pretrain.scaling.rows import choose_metric, latest, with_means
from pretrain.scaling.variants import at_best_settings, by_variant

Row = TypeVar("Row", bound=ResultRow)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The results. `fits` has one entry per curve; of `laws`, by variant, each is a string with the reason if no law
    could be fitted."""

    curves: list[Curve]
    fits: list[Fit | None]
    ratios: list[Ratio]
    gaps: list[Gap]
    laws: dict[str, JointLaw | str]
    isoplots: list[Isoplot]
    floors: Floors
    """What chance and the best shortcut get."""
    differences: list[SlopeDifference]
    """Of the slopes of kinds of tasks."""
    is_of_kinds: bool = False
    """Whether its task groups are kinds of tasks."""
    left_out: list[str]
    """Results that are no points, and why, a line each."""

    @property
    def determined_laws(self) -> dict[str, JointLaw]:
        """The laws that say something, by variant."""
        return {name: law for name, law in self.laws.items() if isinstance(law, JointLaw) and not law.undetermined}

    @property
    def task_groups(self) -> list[str]:
        return list(dict.fromkeys(curve.task_group for curve in self.curves))

    @property
    def note(self) -> str:
        """What the figure stands on: runs, seeds, and the examples of each point, by task group."""
        points = {group: [] for group in self.task_groups}
        for curve in self.curves:
            points[curve.task_group] += curve.all_points
        said = [
            f"{group} {counted((point.num_examples for point in found), _noun(group))}"
            for group, found in points.items()
        ]
        return f"{told_runs(point.row for found in points.values() for point in found)}; {', '.join(said)}"


def analyse(
    rows: Iterable[EvaluationRow], metrics: Sequence[str] = (), *, from_step: int = 0, kinds: Kinds | None = None
) -> Analysis:
    """Analyse the rows of any number of runs and steps.

    Args:
        rows: of any tasks.
        metrics: choices of `choose_metric`.
        from_step: first step of the isoplots.
        kinds: instead of all task groups these kinds of tasks, without isoplots and law.

    Raises:
        ValueError: there are no rows, none has a finite value, or `choose_metric` or `of_kinds` refuses a choice.
    """
    rows, left_out = without_repeats(list(rows))
    if not rows:
        raise ValueError("there are no rows")
    chosen, without = choose_metric(rows, metrics)
    chosen = of_kinds(chosen, kinds) if kinds else with_means(chosen)
    # The latest step first: a run that diverged is not shown as it was before.
    newest = latest(chosen)
    curves = make_curves(_finite(newest))
    if not curves:
        raise ValueError(f"none of {len(newest)} results is finite: there is nothing to plot")
    fits = [fit_curve(curve) for curve in curves]
    in_law = [] if kinds else _finite(latest(row for row in rows if row.is_trained_depth))
    losses, other_losses = _of_one_text(in_law)
    losses, other_settings = at_best_settings(losses)
    return Analysis(
        curves=curves, fits=fits, ratios=_ratios(curves, fits), gaps=find_gaps(curves),
        laws={name: fit_law(of_variant) for name, of_variant in by_variant(losses).items()},
        isoplots=[] if kinds else make_isoplots(_finite(chosen), _finite(rows), from_step=from_step),
        floors=floors_of(newest), differences=differences(curves) if kinds else [], is_of_kinds=bool(kinds),
        left_out=[
            *left_out, *without, *other_losses, *other_settings,
            *dict.fromkeys(
                f"run {row.run}, step {row.step}: {row.task} {row.metric} at {row.num_loops} loops is not finite: "
                "left out"
                for row in newest
                if not math.isfinite(row.value)
            ),
        ],
    )  # fmt: skip


def _ratios(curves: Sequence[Curve], fits: Sequence[Fit | None]) -> list[Ratio]:
    """Each curve of looped models against the baselines that agree with it in all but k and L."""
    found = []
    for curve, fit in zip(curves, fits, strict=True):
        if curve.family != "looped" or fit is None:
            continue
        for other, baseline in zip(curves, fits, strict=True):
            agrees = other.key.all_but_shape == curve.key.all_but_shape
            has_ends = other.key.shape[::2] == curve.key.shape[::2]
            is_baseline = (other.task_group, other.family) == (curve.task_group, "baseline")
            if is_baseline and agrees and has_ends and baseline is not None:
                found.append(ratio_of(curve.task_group, (curve.name, other.name), fit, baseline))
    return found


def without_repeats(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows without those of runs that repeat another with the same configuration, seed and data: they are no
    further seeds. A line for each such run."""
    first: dict[tuple[str, str | None], str] = {}
    names: dict[str, str] = {}
    repeats: dict[str, str] = {}
    for row in rows:
        if row.run_id is None or row.config is None:
            continue
        names.setdefault(row.run_id, row.run)
        kept = first.setdefault((row.config, row.data), row.run_id)
        if kept != row.run_id:
            repeats[row.run_id] = kept
    said = [
        f"run {names[run]} has the configuration, seed and data of run {names[kept]}: it is no further seed, left out"
        for run, kept in repeats.items()
    ]
    return [row for row in rows if row.run_id not in repeats or row.run_id is None], said


def _of_one_text(rows: Sequence[EvaluationRow]) -> tuple[list[EvaluationRow], list[str]]:
    """The validation losses for the joint law, which holds on one text under one tokenizer: of several, those of which
    there are most, and a line for the others."""
    by_text: dict[tuple[str | None, str | None], list[EvaluationRow]] = defaultdict(list)
    for row in rows:
        if row.task == VALIDATION:
            by_text[row.data, parse_inputs(row.inputs).get("tokenizer")].append(row)
    if not by_text:
        return [], []
    chosen = max(by_text.values(), key=len)
    rest = sum(map(len, by_text.values())) - len(chosen)
    said = f"joint law: {rest} validation losses are of other data or tokenizers than the other {len(chosen)}: left out"
    return chosen, [said] if rest else []


def _noun(task_group: str) -> str:
    """What an example of a group is."""
    return "sequences" if task_group == VALIDATION else "questions"


def _finite(rows: Iterable[EvaluationRow]) -> list[EvaluationRow]:
    return [row for row in rows if math.isfinite(row.value)]
