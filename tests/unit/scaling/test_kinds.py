"""Kinds of tasks: means over their tasks, one panel each, and the difference of their slopes."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.scaling.analysis import analyse
from pretrain.scaling.kinds import of_kinds
from pretrain.scaling.tables import make_tables
from tests.unit.scaling.test_comparable import model_row
from tools.scaling_plot import main

TASKS = {"copy": ("copy", 0.02), "assign_0": ("assign", 0.04), "assign_1": ("assign", 0.06), "hop": ("hop", 0.15)}
"""Task group of each task, and its slope in log depth."""
KINDS = {"reasoning": ["hop"], "recall": ["copy", "assign"]}


def rows(seeds: int = 3, offset: float = 0.05) -> list[EvaluationRow]:
    """4⊗L and 4L⊗1: accuracies on lines; a seed moves all of them alike, by a standard deviation of `offset`."""
    found, rng = [], np.random.default_rng(0)
    for seed in range(seeds):
        for layers, loops in [(4, L) for L in (2, 3, 4, 6)] + [(4 * L, 1) for L in (1, 2, 3, 4, 6)]:
            moved = rng.normal(0, offset)
            for task, (group, slope) in TASKS.items():
                value = 0.3 + slope * math.log(layers * loops / 4) + moved
                of = {"task": task, "task_group": group, "metric": "acc", "stderr": 0.003, "num_examples": 10_000}
                found.append(model_row(layers, loops, seed=seed, value=value, **of))
    return found


def test_a_kind_is_the_mean_over_its_tasks_and_slopes_differ_by_what_depth_is_worth() -> None:
    analysis = analyse(rows(), kinds=KINDS)
    assert analysis.task_groups == ["reasoning", "recall"] and len(analysis.curves) == 4
    (point, *_) = next(curve for curve in analysis.curves if curve.task_group == "recall").points
    own = [row for row in rows() if row.run == point.row.run and row.task != "hop" and row.num_loops == 1]
    assert point.value == pytest.approx(sum(row.value for row in own) / 3) and point.num_examples == 30_000
    assert len(analysis.differences) == 2 and not analysis.isoplots and not any(analysis.laws.values())
    for found in analysis.differences:
        low, high = found.fit.alpha_interval
        assert found.kinds == ("reasoning", "recall")
        assert found.fit.alpha == pytest.approx(0.15 - 0.04, abs=1e-9) and low < 0.11 < high
        assert high - low < 0.02, "what a seed does to both kinds is no noise of the difference"
    one = next(fit for curve, fit in zip(analysis.curves, analysis.fits, strict=True) if curve.task_group == "recall")
    assert one and one.alpha_interval[1] - one.alpha_interval[0] > 0.04


def test_tasks_of_unlike_metrics_have_no_mean_and_unknown_ones_are_named() -> None:
    mixed = [replace(row, metric="nll") if row.task == "copy" else row for row in rows(1)]
    with pytest.raises(ValueError, match=r"^--group recall: acc, nll have no mean: choose tasks of like metrics$"):
        analyse(mixed, kinds=KINDS)
    shares = [replace(row, metric="exact_match") if row.task == "copy" else row for row in rows(1)]
    assert analyse(shares, kinds=KINDS).curves[-1].metric == "score", "both are shares of right answers"
    with pytest.raises(
        ValueError, match=r"^--group x: no row is of 'hops': there are assign, assign_0, assign_1, copy"
    ):
        analyse(rows(1), kinds={"x": ["hops"]})


def test_difficulties_of_one_task_can_be_of_several_kinds() -> None:
    """The first of them has the name of the group too, and means itself alone."""
    several = [replace(row, task=row.task.removesuffix("_0")) for row in rows(1) if row.task_group == "assign"]
    found = of_kinds(several, {"recall": ["assign"], "reasoning": ["assign_1"]})
    assert {(row.task_group, row.task) for row in found} == {("recall", "assign"), ("reasoning", "assign_1")}
    assert len(found) == len(several)


def test_the_command_draws_a_panel_for_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines(tmp_path / "depth.jsonl").append(rows(2))
    kinds = ["--group", "reasoning=hop", "--group", "recall=copy,assign"]
    assert main([str(tmp_path / "depth.jsonl"), *kinds]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"reasoning - recall  4⊗L +0\.11 \[", printed)
    drawn = (tmp_path / "groups.svg").read_text()
    assert drawn.count("effective depth D (layers)</text>") == 2 and "parameters (each" not in drawn
    assert drawn.count("reasoning − recall, ") == 2
    assert len((tmp_path / "groups.csv").read_text().splitlines()) == 5
    with pytest.raises(SystemExit):
        main(["--group", "reasoning"])
    assert "--group: needs a name and others such as all=a,b, got reasoning" in capsys.readouterr().err
    (table,) = [table for table in make_tables(analyse(rows(), kinds=KINDS)) if "difference" in table.title]
    assert [row[:2] for row in table.rows] == [("reasoning - recall", "baseline k⊗1"), ("reasoning - recall", "4⊗L")]
