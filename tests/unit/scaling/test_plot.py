"""The scaling plot: which rows count, the files written, the page in a browser, and one line for bad input."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.scaling.analysis import analyse
from pretrain.scaling.axes import DEPTH, MAX_DRAWN, TRAINING, possible_axes, subsample
from pretrain.scaling.curves import make_curves
from pretrain.scaling.figure import _few_ticks, draw
from pretrain.scaling.law import law_points
from pretrain.scaling.page import write_page
from pretrain.scaling.rows import choose_metric, in_group, latest, tell_apart
from pretrain.scaling.tables import make_tables
from tests.support.scaling_rows import FIELDS, make_row, model_fields, sweep, write_rows
from tools.scaling_plot import main

ROOT = Path(__file__).parents[3]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_latest_keeps_the_last_step_of_each_run_and_the_later_of_two_equal_rows() -> None:
    rows = [
        make_row(step=10, num_loops=1, value=9.0),
        make_row(step=20, num_loops=2, value=8.0),
        make_row(step=20, num_loops=2, value=7.0),
        make_row(step=10, num_loops=3, value=6.0),
        make_row(run="b", step=5, value=5.0),
    ]
    assert sorted(row.value for row in latest(rows)) == [5.0, 7.0]


def test_a_row_of_another_group_is_a_row_of_its_own() -> None:
    row = make_row()
    assert in_group(row, "all") == replace(row, task_group="all") and row.task_group == "validation"


def test_tasks_of_a_group_are_averaged_with_their_standard_error() -> None:
    (curve,) = make_curves([make_row(task="x", value=1.0, stderr=0.3), make_row(task="y", value=3.0, stderr=0.4)])
    (point,) = curve.points
    assert (point.value, point.depth, point.num_examples) == (2.0, 2, 16)
    assert point.stderr == pytest.approx(0.25)


def test_an_accuracy_without_a_standard_error_has_the_binomial_one() -> None:
    (curve,) = make_curves([make_row(metric="acc", value=0.2, stderr=None, num_examples=400)])
    assert curve.points[0].stderr == pytest.approx(0.02)


def test_families_have_curves_of_their_own_over_all_runs() -> None:
    rows = [
        make_row(run=str(depth), family="baseline", effective_depth=depth, value=9.0 - depth) for depth in (1, 2, 4, 8)
    ]
    baseline, looped = make_curves([*rows, make_row(num_loops=2)])
    assert (baseline.family, baseline.num_depths, looped.family, looped.num_depths) == ("baseline", 4, "looped", 1)


def test_a_point_that_lacks_a_task_of_its_group_is_told() -> None:
    rows = [make_row(task="x"), make_row(task="y"), make_row(run="b", task="x")]
    assert make_curves(rows)[0].warnings == ("1 of 2 points lack some of the group's 2 tasks: not like with like",)


@pytest.mark.parametrize(
    ("metric", "values", "stderr", "flags"),
    [
        ("acc", (0.2, 0.5, 0.4), 0.01, 1),
        ("acc", (0.2, 0.5, 0.4), 0.10, 0),
        ("acc", (0.2, 0.4, 0.5), 0.01, 0),
        ("nll", (4.0, 3.5, 3.8), 0.01, 1),
        ("nll", (4.0, 3.8, 3.5), 0.01, 0),
        ("nll", (4.0, 3.8, 3.9), None, 1),
    ],
)
def test_values_that_get_worse_with_depth_beyond_chance_are_flagged(
    metric: str, values: tuple[float, ...], stderr: float | None, flags: int
) -> None:
    rows = [
        make_row(metric=metric, value=value, stderr=stderr, num_loops=index + 1, effective_depth=2 * index + 2)
        for index, value in enumerate(values)
    ]
    assert len(make_curves(rows)[0].warnings) == flags


def test_a_metric_is_chosen_for_each_group() -> None:
    rows = [
        make_row(),
        make_row(metric="acc", value=0.5),
        make_row(task="t", task_group="other", metric="ppl", value=9.0),
        make_row(task="t", task_group="other", metric="em", value=0.2),
        make_row(task="u", task_group="alone", metric="speed", value=9.0),
    ]

    def chosen(*choices: str) -> list[str]:
        return [row.metric for row in choose_metric(rows, choices)[0]]

    assert chosen() == ["acc", "em", "speed"] and chosen("ppl") == ["acc", "ppl", "speed"]
    assert chosen("nll", "other=em") == chosen("validation=nll", "em") == ["nll", "em", "speed"]
    with pytest.raises(
        ValueError, match=r"task 't' has several metrics: choose one with --metric 'other=\{ppl,speed\}'"
    ):
        choose_metric([row if row.metric != "em" else replace(row, metric="speed") for row in rows])
    with pytest.raises(ValueError, match="no row has metric 'f1': choose one of acc, em, nll, ppl, speed"):
        chosen("f1")
    with pytest.raises(ValueError, match="no row of task group 'alone' has metric 'acc': choose one of speed"):
        chosen("alone=acc")
    with pytest.raises(ValueError, match="no row is of task group 'lone': there are alone, other, validation"):
        chosen("lone=acc")


def test_runs_of_one_name_in_two_files_stay_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depths = [{"run": "x", "num_loops": loops, "effective_depth": 2 * loops} for loops in (1, 2, 3)]
    seeds = [
        write_rows(tmp_path / str(seed) / "depth.jsonl", *({**row, "value": 3.5 - 0.1 * seed} for row in depths))
        for seed in (0, 1)
    ]
    copy = write_rows(tmp_path / "copy.jsonl", *({**row, "value": 3.5} for row in depths))
    assert main([*map(str, seeds), "--out", str(tmp_path)]) == 0
    assert "2 files hold different runs of the name 'x'" in capsys.readouterr().err
    rows, notes = tell_apart({file: JsonLines(file).read(EvaluationRow) for file in seeds})
    (curve,) = make_curves(latest(rows))
    assert len(curve.points) == 6 and len(notes) == 1
    rows, notes = tell_apart({file: JsonLines(file).read(EvaluationRow) for file in (seeds[0], copy)})
    assert len(rows) == 3 and not notes


def test_rows_of_one_run_in_two_files_are_one_run(tmp_path: Path) -> None:
    loss = write_rows(tmp_path / "a.jsonl", {"run": "x"}, {"run": "x", "step": 20, "value": 3.0})
    task = write_rows(tmp_path / "b.jsonl", {"run": "x", "task": "t", "task_group": "t", "metric": "acc", "value": 0.5})
    rows, notes = tell_apart({file: JsonLines(file).read(EvaluationRow) for file in (loss, task)})
    assert {row.run for row in rows} == {"x"} and len(rows) == 3 and not notes


def test_a_value_that_is_not_finite_is_written_read_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was finite at an earlier step, which is not shown for the later one."""
    file = JsonLines(tmp_path / "depth.jsonl")
    rows = [make_row(num_loops=loops, effective_depth=2 * loops) for loops in (1, 2, 3)]
    values = {"nan": math.nan, "inf": math.inf}
    file.append([*rows, *(make_row(run=name, step=20, value=value) for name, value in values.items())])
    file.append([make_row(run="nan", step=10)])
    assert main([str(file.path)]) == 0
    printed = capsys.readouterr()
    for name in values:
        assert f"run {name}, step 20: validation nll at 1 loops is not finite: left out" in printed.err
    analysis = analyse(file.read(EvaluationRow, strict=True))
    assert [point.row.run for curve in analysis.curves for point in curve.points] == ["a", "a", "a"]
    JsonLines(tmp_path / "lost.jsonl").append([make_row(value=math.nan)])
    assert main([str(tmp_path / "lost.jsonl")]) == 2
    assert "error: none of 1 results is finite: there is nothing to plot" in capsys.readouterr().err


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "depth.jsonl", {}, {"num_loops": 2})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\n\n  \n"))
    assert len(JsonLines(file).read(EvaluationRow, strict=True)) == 2


def test_bare_command_reads_every_run_and_writes_beside_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    law = [
        {"num_loops": loops, "effective_depth": 2 * loops, "value": 5 - 0.5 * math.log(2 * loops)}
        for loops in (1, 2, 3, 4)
    ]
    write_rows(tmp_path / "runs/a/eval/depth.jsonl", *law)
    write_rows(tmp_path / "runs/b/eval/depth.jsonl", {"run": "b", "family": "baseline"})
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    out = tmp_path / "runs/a/eval"
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "scaling.svg").read_text()
    header = "task_group,family,curve,metric,alpha,alpha_low,alpha_high,beta,beta_low,beta_high,held_out_error"
    assert (out / "fit.csv").read_text().startswith(f"{header},num_depths\n")
    with (out / "fit.csv").open() as file:
        baseline, looped = csv.DictReader(file)
    assert (baseline["family"], baseline["alpha"], baseline["alpha_low"], baseline["num_depths"]) == (
        "baseline",
        "",
        "",
        "1",
    )
    assert float(looped["alpha"]) == pytest.approx(-0.5)
    assert float(looped["beta"]) == pytest.approx(5)
    assert float(looped["alpha_low"]) < -0.5 < float(looped["alpha_high"])
    printed = capsys.readouterr().out
    assert "a line needs 4 depths" in printed
    assert "no curve has a line" not in printed


def test_bare_command_reads_the_sweeps_where_no_run_lies_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "bb"):
        row = {"run": name, "num_loops": len(name), "effective_depth": 2 * len(name)}
        write_rows(tmp_path / f"runs/sweeps/s/{name}/eval/depth.jsonl", row)
    monkeypatch.chdir(tmp_path)
    assert main(["--out", "here"]) == 0
    assert "validation" in (tmp_path / "here/scaling.svg").read_text()


def test_points_are_drawn_where_no_curve_has_enough_depths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "depth.jsonl", {}, {"num_loops": 2, "effective_depth": 4})
    assert main([str(file), "--out", str(tmp_path / "plots/here")]) == 0
    assert capsys.readouterr().out.count("no curve has a line: a line needs 4 depths\n") == 1
    assert sorted(path.name for path in (tmp_path / "plots/here").iterdir()) == [
        "fit.csv",
        "scaling.html",
        "scaling.png",
        "scaling.svg",
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"run": "a"', "depth.jsonl:2: Invalid JSON"),
        (
            json.dumps({key: value for key, value in FIELDS.items() if key != "value"}),
            "depth.jsonl:2: value: Field required",
        ),
        (json.dumps(FIELDS | {"value": "x"}), "depth.jsonl:2: value: Input should be a valid number"),
        (json.dumps(FIELDS | {"tokens_seen": math.nan}), "depth.jsonl:2: tokens_seen: "),
        (json.dumps(FIELDS | {"effective_depth": 0}), "depth.jsonl:2: effective_depth: "),
        (json.dumps(FIELDS | {"num_loops": "3"}), "depth.jsonl:2: num_loops: "),
        (json.dumps(FIELDS | {"family": "deep"}), "depth.jsonl:2: family: "),
    ],
)
def test_a_damaged_line_is_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, message: str
) -> None:  # fmt: skip
    file = write_rows(tmp_path / "depth.jsonl", {})
    file.write_text(file.read_text() + bad + "\n")
    assert main([str(file)]) == 0
    error = capsys.readouterr().err
    assert message in error and error.startswith("warning: ") and error.endswith(": passed over\n")
    assert error.count("\n") == 1
    file.write_text(bad + "\n")
    assert main([str(file), "--out", str(tmp_path / "none")]) == 2
    assert f"error: nothing to plot: no rows in {file}" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_missing_and_empty_files_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert main(["absent.jsonl"]) == 2
    Path("empty.jsonl").touch()
    assert main(["empty.jsonl"]) == 2
    nothing, absent, empty = capsys.readouterr().err.splitlines()
    assert "no file matches runs/*/eval/depth.jsonl" in nothing
    assert absent == "error: absent.jsonl: No such file or directory"
    assert "no rows in empty.jsonl" in empty


def test_script_runs_without_torch(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "depth.jsonl", *sweep(seeds=1, steps=1))
    code = "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(ROOT / "tools/scaling_plot.py"), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert "plot: " in result.stdout


def test_chance_and_the_best_shortcut_are_lines_of_every_format(tmp_path: Path) -> None:
    """Means over the tasks of a group that all have them; a task of which rows disagree has none."""
    of = {"metric": "acc", "value": 0.5, "task_group": "g", "is_main": True}
    rows = [make_row(**of, task=task, chance=chance, shortcut=0.4) for task, chance in (("x", 0.25), ("y", 0.35))]
    rows += [make_row(**of | {"run": "b", "num_loops": 2, "effective_depth": 4}, task="y", chance=0.35, shortcut=0.5)]
    analysis = analyse(rows)
    assert analysis.floors == {"g": {"chance": pytest.approx(0.3)}}
    (table,) = [table for table in make_tables(analysis) if table.title == "what takes no reasoning"]
    assert table.rows == [("g", "0.3", "-")]
    draw(analysis, [tmp_path / "x.svg"])
    write_page(analysis, tmp_path / "x.html")
    assert ">chance 0.3<" in (tmp_path / "x.svg").read_text() and "chance 0.3" in (tmp_path / "x.html").read_text()
    plain = analyse([replace(row, chance=None, shortcut=None) for row in rows])
    assert plain.floors == {} and "what takes no reasoning" not in [table.title for table in make_tables(plain)]


def test_a_thousand_seeds_are_all_read_but_not_all_drawn(tmp_path: Path) -> None:
    """The size of the figure, and so the time it takes, is bounded however many runs there are."""
    fields = [model_fields("looped", 4, loops, 10**9, seed) for loops in (1, 2, 3, 4) for seed in range(1000)]
    file = write_rows(tmp_path / "depth.jsonl", *fields)
    assert main([str(file)]) == 0
    drawn = len(re.findall("<use ", (tmp_path / "scaling.svg").read_text()))
    assert MAX_DRAWN < drawn < 6 * MAX_DRAWN
    with (tmp_path / "fit.csv").open() as lines:
        assert [row["num_depths"] for row in csv.DictReader(lines)] == ["4"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    assert main([str(write_rows(out / "depth.jsonl", *sweep()))]) == 0
    return out / "scaling.html"


def test_page_is_self_contained_and_escapes_names(page: Path, tmp_path: Path) -> None:
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.(?!data:)", page.read_text())
    file = write_rows(
        tmp_path / "depth.jsonl", {"task": "t", "task_group": "<script>alert(1)</script>", "run": "</script>"}
    )
    assert main([str(file)]) == 0
    text = (tmp_path / "scaling.html").read_text()
    assert "<script>alert(1)" not in text
    assert '"</script>"' not in text
    assert "<h1>Scaling with loops: &lt;/script&gt;</h1>" in text and "<p>&lt;/script&gt;</p>" in text, "whose it is"


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome to open the page in")
def test_page_opens_in_a_browser_without_console_errors(page: Path, tmp_path: Path) -> None:
    # Errors land in the title, so that the document says them: what chromium itself logs is about its own machine.
    probe = "<script>document.title = 'fine'; const fail = text => { document.title = 'error: ' + text; };"
    probe += "addEventListener('error', event => fail(event.message)); "
    probe += "console.error = (...words) => fail(words.join(' '));</script></head>"
    opened = tmp_path / "page.html"
    opened.write_text(page.read_text().replace("</head>", probe, 1))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", "--dump-dom", opened.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "<title>fine</title>" in result.stdout
    assert result.stdout.count('class="main-svg"') >= 3, "a figure was not drawn"
    assert "inference FLOPs" in result.stdout, "the choice of axis is missing"
    assert "Share" not in re.sub(r"(?s)<script.*?</script>", "", result.stdout), "a button that uploads"


def test_a_point_of_unknown_cost_has_no_place_on_its_axis_and_no_share_in_what_needs_it(tmp_path: Path) -> None:
    unknown = {"tokens_seen": None, "train_flops": None}
    looped = [
        make_row(run=f"k{n}", num_loops=n, effective_depth=2 * n, **(unknown if n > 2 else {})) for n in (1, 2, 3)
    ]
    analysis = analyse([*looped, make_row(run="deep", family="baseline", num_params=3000, effective_depth=6)])
    points = [point for curve in analysis.curves if curve.family == "looped" for point in curve.points]
    assert sorted(point.row.run for _, point in DEPTH.placed(points)) == ["k1", "k2", "k3"]
    assert sorted(point.row.run for _, point in TRAINING.placed(points)) == ["k1", "k2"]
    assert TRAINING in possible_axes(analysis.curves)
    assert [gap.iso_param for gap in analysis.gaps if gap.runs == ("k3",)] == [None]
    assert [row.run for row in law_points(looped)] == ["k1", "k2"]
    notes = [note for table in make_tables(analysis) for note in table.notes]
    assert any("training FLOPs of 1 of 1 points are unknown or 0" in note for note in notes)
    draw(analysis, [tmp_path / "figure.svg"])
    write_page(analysis, tmp_path / "figure.html")
    assert "unknown" in (tmp_path / "figure.html").read_text().rpartition("Plotly.newPlot")[2]


def test_of_very_many_points_enough_are_drawn() -> None:
    assert subsample(range(5)) == range(5)
    drawn = subsample(range(12345))
    assert (len(set(drawn)), drawn[0], drawn[-1]) == (MAX_DRAWN, 0, 12344)


@settings(deadline=None)
@given(st.floats(1e-3, 1e20), st.floats(1.5, 1e12))
def test_a_logarithmic_axis_names_a_few_different_numbers(low: float, ratio: float) -> None:
    place = Figure().subplots()
    place.set_xscale("log")
    place.set_xlim(low, low * ratio)
    _few_ticks(place)
    labels = [label.get_text() for label in place.get_xticklabels()]
    assert 2 <= len(set(labels)) == len(labels) <= 5
    assert place.get_xlim() == pytest.approx((low, low * ratio))
