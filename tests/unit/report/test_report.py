"""The page of a run: what it shows of whatever files there are, on its own, in a browser."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.logging import LoggingSection
from pretrain.config.run import RunConfig
from pretrain.report.chart import LEFT, MOST_POINTS, WIDTH, Chart, Series, _value_scale, draw, number
from pretrain.report.page import write_last_report, write_report
from pretrain.report.reading import diagnostic_charts, evaluation_charts, results, step_charts, troubles
from pretrain.rows.jsonl import JsonLines
from pretrain.run.logger import RunMetrics
from tests.support.run_rows import step_row

ROOT = Path(__file__).parents[3]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>alert('x')</script>&\""


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with everything, and names that are HTML."""
    run = tmp_path / "a <b> run"
    run.mkdir()
    JsonLines(run / "metrics.jsonl").append(
        step_row(step, loss=9.0 / step, grad_norm=1e-3 * 10 ** (step % 4), num_loops=step % 3, skipped=step // 700)
        for step in range(1, 901)
    )
    losses = [
        {"step": step, "task": "validation", "metric": "nll", "num_loops": loops, "value": 5 - step / 300} | noise
        for step in (300, 600, 900) for loops in (10, 2, 1) for noise in ({"stderr": 0.1 * loops},)
    ]  # fmt: skip
    once = {"step": 900, "task": EVIL, "metric": "acc", "num_loops": 2, "value": 0.25, "num_examples": 40}
    write_lines(run / "eval" / "depth.jsonl", [*losses, once])
    names = ("state_norm.loop10", "state_norm.loop2", "entropy")
    write_lines(
        run / "diagnostics.jsonl", [{"step": step, "config": "x", **dict.fromkeys(names, step)} for step in (1, 2)]
    )
    (run / "sample.txt").write_text(f"KING {EVIL}")
    (run / "config.yaml").write_text(json.dumps({"run": {"name": EVIL}, "train": {"steps": 900, "teacher": None}}))
    (run / "environment.txt").write_text("git commit: abc\ndevice: cpu: two\n")
    (run / "state").write_text("complete\n")
    (run / "requeues.txt").write_text(f"t job 7 at step 20: {EVIL}\n")
    with RunMetrics(
        RunConfig(logging=LoggingSection(wandb="disabled")), run, num_steps=900, resumed_step=900, stream=io.StringIO()
    ) as metrics:
        for text in ("step 20 of 900: resumed here", "warning: odd", "step 900: validation nll 1.0", "set aside: x"):
            metrics.message(text)
    (run / "jobs" / "7-0").mkdir(parents=True)
    (run / "jobs" / "7-0" / "step.log").write_text("0: step 3\n0: warning: few documents\n0: warning: few documents\n")
    return run


def test_the_page_has_everything_that_the_run_has(run: Path) -> None:
    page = write_report(run).read_text()
    titles = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert titles == [
        "training loss (nats per token)", "learning rate", "gradient norm, before clipping", "tokens per second",
        "loops of a step", "validation: loss (nats per token)", "state norm", "entropy",
    ]  # fmt: skip
    legends = [re.findall("</i>(.*?)</span>", text) for text in re.findall('<div class="legend">(.*?)</div>', page)]
    assert legends == [["1 loop", "2 loops", "10 loops"], ["loop2", "loop10"]]
    for text in ("<dd>complete</dd>", "<dd>900 of 900</dd>", "<td>2.0000 ± 0.1000</td>", "<td>0.2500</td>",
                 "<td>train.teacher</td><td>null</td>", "<td>device</td><td>cpu: two</td>",
                 "<li>job 7-0: warning: few documents</li>", "<li>step 700: 1 skipped, not finite"):  # fmt: skip
        assert page.count(text) == 1, text


def test_the_log_of_a_run_tells_its_restarts_and_warnings(run: Path) -> None:
    lines = [line for line in troubles(run) if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", line)]
    assert [line.split(" ", 1)[1] for line in lines] == ["step 20 of 900: resumed here", "warning: odd"]
    assert (run / "log.txt").read_text().count("\n") == 4


def test_names_and_samples_are_text(run: Path) -> None:
    page = write_report(run).read_text()
    assert "<script" not in page and "a <b> run" not in page
    assert page.count("&lt;script&gt;alert(") == 5  # task, sample, run.name, requeue and last error
    assert page.count("a &lt;b&gt; run") == 2


def test_the_page_loads_nothing(run: Path) -> None:
    page = write_report(run).read_text()
    assert re.findall(r'(?:src|href)="([^"]*)"|url\(|@import', page) == ["data:,"]
    assert "default-src 'none'" in page


def console_of(page: Path, folder: Path) -> tuple[list[str], list[str]]:
    """What the console of a browser says about a page, and what it asks of the network, its own affairs aside."""
    log = folder / "net.json"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "<h1>" in done.stdout
    asked = re.findall(r'"url":"(https?://[^"]*)"', log.read_text())
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], [u for u in asked if "example.org" in u]


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome to open the page in")
def test_a_browser_has_nothing_to_say_about_the_page(run: Path, tmp_path: Path) -> None:
    """The same look at a page that loads a picture and runs a script sees both refused."""
    page = write_report(run)
    assert console_of(page, tmp_path) == ([], [])
    text, worse = page.read_text(), tmp_path / "worse.html"
    picture = "<img src='http://example.org/x.png'><script>console.error('ran')</script></body>"
    worse.write_text(text.replace("</body>", picture))
    said, asked = console_of(worse, tmp_path)
    assert len(said) == 2 and all("Content Security Policy" in line for line in said) and asked == []
    worse.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", picture))
    said, asked = console_of(worse, tmp_path)
    assert any("ran" in line for line in said) and asked, "the look would see a request"


def test_a_fine_tuned_run_has_a_page(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0, "epoch": step, "stage": step // 2} for step in (1, 2, 3)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    answers = [
        {"step": step, "split": "validation", "num_thoughts": step - 1, "num_loops": 1, "accuracy": 0.5}
        for step in (1, 2, 2, 3)
    ]
    write_lines(tmp_path / "eval" / "coconut.jsonl", [*answers, {**answers[0], "step": 3}])
    assert [chart.title for chart in step_charts(tmp_path)] == ["training loss (nats per token)", "curriculum stage"]
    (chart,) = evaluation_charts(tmp_path)
    assert [(series.name, list(series.points)) for series in chart.series] == [
        ("0 thoughts", [(1, 0.5), (3, 0.5)]), ("1 thought", [(2, 0.5)]), ("2 thoughts", [(3, 0.5)]),
    ]  # fmt: skip
    assert [row[:4] for row in results(tmp_path)] == [
        ("validation", "accuracy", f"{name}, 1 loop", "0.5000") for name in ("0 thoughts", "1 thought", "2 thoughts")
    ]
    assert "validation: accuracy" in write_report(tmp_path).read_text()


def test_results_of_other_examples_stand_apart_beside_what_takes_no_reasoning(tmp_path: Path) -> None:
    row = {"step": 3, "task": "p_hop", "metric": "acc", "num_loops": 1, "chance": 0.25, "shortcut": 0.361}
    asked = [
        {"value": 0.5, "num_examples": 9, "inputs": "examples=a checkpoint=1"},
        {"value": 0.6, "num_examples": 9, "inputs": "examples=a checkpoint=2"},
        {"value": 0.7, "num_examples": 9, "inputs": "examples=b"},
        {"value": 0.8, "num_examples": 2, "inputs": "examples=c"},
    ]
    write_lines(tmp_path / "eval" / "depth.jsonl", [row | each for each in asked])
    assert [line[3:] for line in results(tmp_path)] == [
        (value, "3", size, "0.25", "0.361") for value, size in (("0.6000", "9"), ("0.7000", "9"), ("0.8000", "2"))
    ]
    assert "<th>best shortcut</th>" in write_report(tmp_path).read_text()


def test_what_is_damaged_or_not_finite_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": null}\n{"step": 2, "loss": 3.0}\n[1]\n{"step": "x", "loss": 1}\n{"st\n'
        '{"step": 4, "loss": true}\n{"step": 5, "loss": 2}\n'
    )
    (chart,) = step_charts(tmp_path)
    assert chart.series[0].points == [(2, 3.0), (5, 2)]
    (tmp_path / "diagnostics.jsonl").write_text('{"step": 1, "a.b": "text", "c": NaN}\n')
    assert diagnostic_charts(tmp_path) == []
    damaged = [line.partition(" ")[0] for line in troubles(tmp_path)]
    assert damaged == [f"{tmp_path / 'metrics.jsonl'}:{number}:" for number in (3, 5)]
    (tmp_path / "config.yaml").write_text("train: [")
    assert "config.yaml: while parsing" in write_report(tmp_path).read_text()


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    page = write_report(tmp_path).read_text()
    assert "<dd>waiting</dd>" in page and "<svg viewBox" not in page


def test_a_long_run_is_a_small_page_that_shows_its_one_spike(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, ({"step": n, "loss": 90.0 if n == 7777 else 2.0} for n in range(1, 20_001)))
    page = write_report(tmp_path).read_text()
    assert len(page) < 40_000
    (band,) = re.findall('<path class="band"[^>]* d="M([^"]*)Z"', page)
    heights = [float(point.split()[1]) for point in band.split("L")]
    assert sorted(heights)[0] < 30 < 100 < sorted(heights)[1], "high up, once"


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_an_axis_has_a_few_different_round_numbers(low: float, span: float) -> None:
    high = low + span
    if high - low < 1e-6 * abs(low):
        return
    scale = _value_scale(low, high)
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 6 and all(scale.low <= tick <= scale.high * (1 + 1e-9) + 1e-9 * span for tick in ticks)
    assert scale.place(high) < scale.place(low)


@given(st.floats(1e-8, 1e8), st.floats(31, 1e12))
def test_a_wide_axis_is_logarithmic(low: float, ratio: float) -> None:
    scale = _value_scale(low, low * ratio)
    ticks = scale.ticks(5)
    assert scale.is_log and 1 <= len(ticks) <= 5 and all(scale.low <= tick <= scale.high for tick in ticks)


def test_a_line_alone_is_named_in_the_title(tmp_path: Path) -> None:
    numbers = {"weight_norm.loop": 1.5, "grad_norm": 2.0}
    write_lines(tmp_path / "diagnostics.jsonl", [{"step": step, **numbers} for step in (1, 2)])
    losses = {"task": "validation", "metric": "nll", "num_loops": 2}
    write_lines(tmp_path / "eval" / "depth.jsonl", [{"step": step, "value": 1.0, **losses} for step in (1, 2)])
    charts = [*evaluation_charts(tmp_path), *diagnostic_charts(tmp_path)]
    titles = [re.findall("<figcaption>(.*?)</figcaption>", draw(chart))[0] for chart in charts]
    assert titles == ["validation: loss (nats per token), 2 loops", "weight norm, loop", "grad norm"]


def test_one_value_and_many_lines_are_drawn() -> None:
    assert "<circle" in draw(Chart(title="t", series=[Series(name="a", points=[(3, 0.0)])]))
    many = Chart(title="t", series=[Series(name=str(n), points=[(1, n), (2, n)]) for n in range(40)])
    assert len(set(re.findall('stroke="(.*?)"', draw(many)))) == 40
    long = Series(name="a", points=[(n, 1.0) for n in range(10 * MOST_POINTS)])
    (line,) = re.findall('class="line"[^>]* d="M([^"]*)"', draw(Chart(title="t", series=[long])))
    places = [float(point.split()[0]) for point in line.split("L")]
    assert len(places) == MOST_POINTS and min(places) >= LEFT and max(places) < WIDTH


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (12, "12"),
        (2500, "2.5k"),
        (3e6, "3M"),
        (1e-4, "1e-4"),
        (-1500, "-1.5k"),
        (1e13, "10T"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_a_page_that_cannot_be_written_is_a_warning_at_the_end_of_a_run(tmp_path: Path) -> None:
    said: list[str] = []
    session: Any = SimpleNamespace(rank=0, directory=tmp_path / "gone", say=said.append)
    write_last_report(session)
    (line,) = said
    assert line.startswith(f"warning: {tmp_path / 'gone' / 'report.html'}: ") and "tools/report.py" in line
    (tmp_path / "gone").mkdir()
    write_last_report(SimpleNamespace(rank=1, directory=tmp_path / "gone", say=said.append))  # type: ignore[arg-type]
    assert len(said) == 1 and not list((tmp_path / "gone").iterdir())


def test_the_command_writes_all_runs_of_a_folder(run: Path) -> None:
    command = [sys.executable, ROOT / "tools/report.py"]

    def call(folder: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, folder], cwd=ROOT, capture_output=True, text=True, check=False)

    done = call(run.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run / 'report.html'}\n", "")
    missing = call(run / "none")
    assert (missing.returncode, missing.stderr) == (2, f"error: {run / 'none'}: no such folder\n")
