"""What is one curve, and what is not: shapes, settings, seeds, data, questions, and loops that a model was not trained
with."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.identity import digest
from pretrain.rows.jsonl import JsonLines
from pretrain.scaling import figure as drawing
from pretrain.scaling.analysis import Analysis, analyse, without_repeats
from pretrain.scaling.figure import draw
from pretrain.scaling.rows import choose_metric
from tests.support.figures import smallest_type
from tests.support.scaling_rows import EMBEDDING_PARAMS, LAYER_PARAMS, make_row, write_rows
from tools.scaling_plot import main


def model_row(layers: int, loops: int, *, seed: int = 0, trained: int | None = None, **fields: object) -> EvaluationRow:
    """A row of k⊗L with its identity; `settings` are merged."""
    trained = trained or loops
    settings = {"model.num_loop_layers": layers, "model.num_loops": trained}
    settings |= dict(fields.pop("settings", {}))  # type: ignore[call-overload]
    apart = [layers, trained, seed, settings, fields.get("data"), fields.get("tokens_seen")]
    params = EMBEDDING_PARAMS + layers * LAYER_PARAMS
    known = {
        "run": f"{layers}x{trained}-seed{seed}", "run_id": digest(apart), "seed": seed,
        "settings": settings, "variant": digest(settings), "config": digest([settings, seed]), "data": "d",
        "trained_loops": (trained, trained), "num_prelude_layers": 0, "num_loop_layers": layers, "num_coda_layers": 0,
        "num_loops": loops, "effective_depth": layers * loops, "num_params": params,
        "num_loop_params": layers * LAYER_PARAMS, "family": "looped" if trained > 1 else "baseline",
        "eval_flops_per_token": 2.0 * (EMBEDDING_PARAMS + layers * loops * LAYER_PARAMS), "tokens_seen": 10**9,
        "train_flops": 6e9 * layers * loops * LAYER_PARAMS,
    }  # fmt: skip
    return make_row(**(known | fields))


def on_lines(slope_looped: float = 0.08, slope_baseline: float = 0.10) -> list[EvaluationRow]:
    """4⊗L and 4L⊗1 on two lines of accuracy in log depth."""
    share = {"task": "t", "task_group": "t", "metric": "acc", "stderr": 0.002}
    rows = [model_row(4, L, value=0.1 + slope_looped * math.log(4 * L), **share) for L in (2, 3, 6, 9, 12)]
    return rows + [model_row(4 * L, 1, value=0.1 + slope_baseline * math.log(4 * L), **share) for L in (2, 3, 6, 9, 12)]


def names(analysis: Analysis) -> list[str]:
    return [curve.name for curve in analysis.curves]


def test_other_k_are_curves_of_their_own_and_change_no_slope() -> None:
    """12⊗2, 8⊗3 and 6⊗4 are as deep as 4⊗6, and no seeds of it."""
    share = {"task": "t", "task_group": "t", "metric": "acc", "stderr": 0.002}
    others = [model_row(k, L, value=value, **share) for k, L, value in ((12, 2, 0.5), (8, 3, 0.3), (6, 4, 0.4))]
    alone, together = analyse(on_lines()), analyse([*on_lines(), *others])
    assert sorted(names(together)) == ["12⊗L", "4⊗L", "6⊗L (6x4-seed0)", "8⊗L", "baseline k⊗1"]
    assert [ratio.value for ratio in together.ratios] == [pytest.approx(0.8, abs=0.01)]
    assert together.ratios == alone.ratios
    assert [curve.warnings for curve in together.curves if curve.name in ("4⊗L", "baseline k⊗1")] == [(), ()]


def test_k_times_1_begins_the_curve_of_k_times_l() -> None:
    first = model_row(4, 1, value=0.2, task="t", task_group="t", metric="acc", stderr=0.002)
    curve = next(curve for curve in analyse([*on_lines(), first]).curves if curve.family == "looped")
    assert [point.label for point in curve.points] == ["4⊗1", "4⊗2", "4⊗3", "4⊗6", "4⊗9", "4⊗12"]
    assert [point.label for point in curve.own_points] == ["4⊗2", "4⊗3", "4⊗6", "4⊗9", "4⊗12"]


def test_loops_that_a_model_was_not_trained_with_are_drawn_and_in_no_fit_gap_or_law(tmp_path: Path) -> None:
    share = {"task": "t", "task_group": "t", "metric": "acc", "stderr": 0.002}
    more = [model_row(4, L, trained=6, value=0.01, **share) for L in (1, 2, 24)]
    losses = [model_row(4, L, trained=6, value=3.0) for L in (6, 24)]
    analysis = analyse([*on_lines(), *more, *losses])
    curve = next(curve for curve in analysis.curves if (curve.family, curve.task_group) == ("looped", "t"))
    assert [point.row.num_loops for point in curve.extrapolated] == [1, 2, 24]
    assert analysis.ratios == analyse(on_lines()).ratios
    assert {gap.num_loops for gap in analysis.gaps if gap.task_group == "t"} == {2, 3, 6, 9, 12}
    assert "there are 1," in str(analysis.laws)
    assert any("not trained at (1, 2, 24): in no fit" in warning for warning in curve.warnings)
    draw(analysis, [tmp_path / "figure.svg"])
    assert "hollow: loops it was not trained with" in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"settings": {"optimizer.lr": 0.001}}, "(lr=0.001)"),
        ({"data": "other"}, "data=other"),
        ({"tokens_seen": 2 * 10**9, "settings": {"train.steps": 9}}, "tokens=2e+09"),
        ({"num_prelude_layers": 2, "num_coda_layers": 2, "settings": {"model.num_prelude_layers": 2}}, "2+4⊗L+2"),
    ],
)
def test_what_differs_splits_families_and_names_them(change: dict[str, object], name: str) -> None:
    others = [model_row(4, L, value=4.0, **change) for L in (2, 3)]
    analysis = analyse([*(model_row(4, L, value=3.0) for L in (2, 3)), *others])
    assert len(analysis.curves) == 2 and any(name in curve.name for curve in analysis.curves)
    assert sorted(len(curve.points) for curve in analysis.curves) == [2, 2]


def test_seeds_are_replicates_and_a_repeated_run_is_none() -> None:
    seeds = [model_row(4, 2, seed=seed, value=3.0 + seed) for seed in (0, 1)]
    again = replace(seeds[0], run_id="again", run="again", value=9.0)
    (curve,) = analyse([*seeds, again]).curves
    assert [point.value for point in curve.points] == [3.0, 4.0]
    assert without_repeats([*seeds, again])[1] == [
        "run again has the configuration, seed and data of run 4x2-seed0: it is no further seed, left out"
    ]


def test_other_questions_are_other_curves() -> None:
    fields = {"task": "t", "task_group": "t", "metric": "acc", "value": 0.5}
    asked = [model_row(4, L, inputs=f"examples={'a' if L < 4 else 'b'} bos=yes", **fields) for L in (2, 3, 4, 6)]
    curves = analyse(asked).curves
    assert sorted(tuple(point.row.num_loops for point in curve.points) for curve in curves) == [(2, 3), (4, 6)]
    assert any("examples=a" in curve.name for curve in curves)


def paper_rows() -> list[EvaluationRow]:
    """Tasks of two groups that have no metric in common, and one in percent."""
    metrics = {
        ("squadv2", "open_book"): {"exact": 30.0, "f1": 40.0}, ("drop", "open_book"): {"em": 0.1, "f1": 0.2},
        ("asdiv", "math_word_problems"): {"acc": 0.3}, ("svamp", "math_word_problems"): {"exact_match": 0.5},
        ("lambada_openai", "lambada_openai"): {"perplexity": 20.0, "acc": 0.4},
    }  # fmt: skip
    return [
        model_row(4, 2, task=task, task_group=group, metric=metric, value=value, is_main=metric != "perplexity"
                  and metric not in ("exact", "em"), stderr=None)
        for (task, group), values in metrics.items() for metric, value in values.items()
    ]  # fmt: skip


def test_each_task_is_judged_by_its_own_metric_and_all_15_are_averaged() -> None:
    found = {curve.task_group: curve.points[0].value for curve in analyse(paper_rows()).curves}
    assert found["open_book"] == pytest.approx(0.3) and found["math_word_problems"] == pytest.approx(0.4)
    assert found["all_15"] == pytest.approx((0.4 + 0.2 + 0.3 + 0.5) / 4)
    assert found["all"] == pytest.approx((0.4 + 0.2 + 0.3 + 0.5 + 0.4) / 5)


def test_a_task_without_the_metric_that_is_asked_for_is_named() -> None:
    rows, left_out = choose_metric(paper_rows(), ["open_book=em"])
    assert left_out == ["task squadv2 of open_book has no em, but exact, f1: left out"]
    assert {row.task: row.metric for row in rows}["drop"] == "em"


def test_the_commands_of_the_readme_plot_mixed_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = JsonLines(tmp_path / "depth.jsonl")
    file.append([*paper_rows(), model_row(4, 2), model_row(4, 4)])
    assert main([str(file.path)]) == 0
    assert main([str(file.path), "--metric", "lambada_openai=perplexity", "--colour", "model.num_loops"]) == 0
    capsys.readouterr()
    old = write_rows(tmp_path / "old.jsonl", {})
    assert main([str(old), "--colour", "optimizer.lr"]) == 2
    assert "--colour optimizer.lr: no row says its configuration" in capsys.readouterr().err


def test_no_line_where_the_interval_of_the_slope_holds_0(tmp_path: Path) -> None:
    """As of one model scored at five depths, whose loss is a U."""
    values = {1: 4.838, 2: 4.807, 3: 4.804, 4: 4.807, 6: 4.820}
    rows = [model_row(2, L, trained=6, value=value, trained_loops=(1, 6)) for L, value in values.items()]
    analysis = analyse(rows)
    assert analysis.fits[0] is not None and not analysis.fits[0].has_slope
    draw(analysis, [tmp_path / "figure.svg"])
    assert "no slope, its interval holds 0" in (tmp_path / "figure.svg").read_text()
    assert "log D" not in (tmp_path / "figure.svg").read_text()


def test_points_are_named_and_axes_stay_within_what_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    place = drawing.place_labels
    monkeypatch.setattr(drawing, "place_labels", lambda figure, labels: (place(figure, labels), drawn.append(figure)))
    zeros = [model_row(4, L, task="t", task_group="t", metric="acc", value=0.0, stderr=0.01) for L in (2, 3)]
    ones = [model_row(4, L, task="u", task_group="u", metric="acc", value=1.0, stderr=0.01) for L in (2, 3)]
    draw(analyse([*zeros, *ones, *(model_row(4, L, value=0.01, stderr=0.02) for L in (2, 3))]), [tmp_path / "f.svg"])
    limits = {axes.get_title(loc="left"): axes.get_ylim() for axes in drawn[0].axes}
    assert limits["t"][0] == 0 and limits["u"][1] == 1 and limits["validation"][0] == 0
    text = (tmp_path / "f.svg").read_text()
    assert text.count(">4⊗2<") == 4 and text.count(">4⊗3<") == 4, "of t, u, all and the validation text"


def test_no_line_runs_through_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the quick start, whose line falls and rises, and of lines that end at one place."""
    names: list[str] = []

    def check(figure: Figure, labels: Any) -> None:
        place(figure, labels)
        for axes in figure.axes:
            for text in axes.texts:
                box = text.get_window_extent()
                lines = [line for line in axes.get_lines() if line.get_linestyle() != "None"]
                paths = [line.get_transform().transform_path(line.get_path()) for line in lines]
                assert not any(path.intersects_bbox(box, filled=False) for path in paths), text.get_text()
                names.append(text.get_text())

    place = drawing.place_labels
    monkeypatch.setattr(drawing, "place_labels", check)
    values = {1: 4.793, 2: 4.763, 3: 4.757, 4: 4.759, 6: 4.771}
    rows = [model_row(2, L, trained=6, value=value, trained_loops=(1, 6)) for L, value in values.items()]
    draw(analyse(rows), [tmp_path / "one.svg"])
    assert names == [f"2⊗{L}" for L in values]
    shapes = ((1, 1, 0.5), (1, 4, 0.97), (4, 1, 0.99))
    share = {"task": "t", "task_group": "t", "metric": "acc", "stderr": 0.01}
    draw(analyse([model_row(k, L, value=value, **share) for k, L, value in shapes]), [tmp_path / "two.svg"])
    assert sorted(names[len(values) :]) == sorted(2 * ["1⊗1", "1⊗4", "4⊗1"])


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_type_has_9_pixels_where_the_figure_is_850_wide(tmp_path: Path, groups: int) -> None:
    shared = {"metric": "acc", "value": 0.5}
    rows = [model_row(k, 2, task=f"t{n}", task_group=f"t{n}", **shared) for k in (2, 4) for n in range(groups)]
    draw(analyse(rows), [tmp_path / "f.svg"])
    assert smallest_type(tmp_path / "f.svg") >= 9
