"""The horizontal axes of the scaling plot: depth, and each cost in which models are matched."""

import json
from pathlib import Path

import pytest

from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.scaling.axes import AXES
from pretrain.scaling.curves import make_curves
from pretrain.scaling.rows import with_step_times
from tests.support.scaling_rows import write_rows
from tools.scaling_plot import main


def test_each_cost_that_models_are_matched_in_is_an_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two models that are equal in one cost and not in the other, one file each, with the times of their steps."""
    costs = {"looped": (4, 400.0, [9.0, 0.2, 0.3]), "baseline": (1, 800.0, [0.2])}
    files = []
    for family, (loops, cache, times) in costs.items():
        row = {"run": family, "run_id": family, "family": family, "num_loops": loops, "effective_depth": 4}
        rows = [row | {"cache_bytes_per_token": cache, "num_params": 1000 * loops, "value": float(loops)}]
        files.append(write_rows(tmp_path / family / "eval" / "depth.jsonl", *rows))
        lines = [{"run_id": family, "step": n + 1, "step_time_s": time} for n, time in enumerate(times)]
        lines.append({"run_id": "an older run", "step": 1, "step_time_s": 70.0})
        (tmp_path / family / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = [row for file in files for row in with_step_times(JsonLines(file).read(EvaluationRow), file)]
    curves = make_curves(read)
    places = {axis.name: [place for curve in curves for place, _ in axis.placed(curve.points)] for axis in AXES}
    assert places["cache bytes"] == [800, 400] and places["step time"] == [0.2, 0.3]
    assert len(set(places["effective depth"])) == len(set(places["inference FLOPs"])) == 1

    options = [name for axis in ("inference FLOPs", "cache bytes", "step time") for name in ("--axis", axis)]
    assert main([*map(str, files), "--out", str(tmp_path), *options]) == 0
    figure = (tmp_path / "scaling.svg").read_text()
    labels = ("inference FLOPs per token", "cache (bytes per token)", "training step (seconds, median)")
    assert [f">{label}<" in figure for label in labels] == [True] * 3
    assert all(f'"label":"{axis.name}"' in (tmp_path / "scaling.html").read_text() for axis in AXES)
    capsys.readouterr()
    (tmp_path / "baseline" / "metrics.jsonl").unlink()
    for wrong, line in {
        "cash bytes": "--axis=cash bytes is not known, did you mean cache bytes?",
        "step time": "--axis step time: no row says it; there are effective depth, parameters",
    }.items():
        assert main([str(files[1]), "--out", str(tmp_path), "--axis", wrong]) == 2
        assert line in capsys.readouterr().err
