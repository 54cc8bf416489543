"""The committed figures are those that the tools of today draw from the committed rows, and what figures say of their
points: what bars are, and which name is whose."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pretrain.config.read import read_config
from pretrain.config.sweep import ALONG, SweepConfig
from pretrain.rows.metrics import METRIC_NAMES
from pretrain.scaling.axes import DEPTH
from pretrain.scaling.curves import make_curves
from pretrain.scaling.figure import PANEL_HEIGHT, TOP, name_axes
from pretrain.scaling.labels import Label, place_labels
from pretrain.scaling.spots import meaning_of_bars, spots_of
from pretrain.scaling.style import new_figure
from tests.support.figures import smallest_type
from tests.support.scaling_rows import make_row, model_fields, write_rows
from tools import compare, draw_ring, scaling_plot

ROOT = Path(__file__).parents[3]
SWEEPS = sorted((ROOT / "configs" / "sweeps" / "results").glob("*/depth.jsonl"))
QUICK_START = sorted((ROOT / "tools" / "figures").glob("*.jsonl"))

RING = ROOT / "tools" / "figures" / "ring.svg"
FIGURES = [
    *sorted((ROOT / "configs").glob("*/results/*/*.svg")), *sorted((ROOT / "tools" / "figures").glob("quickstart*.svg"))
]  # fmt: skip


def content_of(figure: Path) -> tuple[list[str], Counter[str]] | None:
    """The texts of an SVG and how many of each kind of shape it has; None if there is none."""
    if not figure.exists():
        return None
    svg = figure.read_text(encoding="utf-8")
    return re.findall("<text[^>]*>(.*?)</text>", svg, re.S), Counter(re.findall("<(path|use|g)\\b", svg))


@pytest.mark.parametrize("rows", [*SWEEPS, *QUICK_START], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_committed_figure_is_what_its_rows_give(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_sweep = rows in SWEEPS
    options, along = [], []
    if is_sweep:
        sweep = read_config(ROOT / "configs" / "sweeps" / f"{rows.parent.name}.yaml", SweepConfig)
        options, along = sweep.plot_options, sweep.compare_options(tmp_path)
    copy = Path(shutil.copy(rows, tmp_path / "rows.jsonl"))
    assert scaling_plot.main([str(copy), "--out", str(tmp_path), *options]) == 0
    assert not along or compare.main([str(copy), *along]) == 0
    capsys.readouterr()
    for name in ("scaling.svg", "law.svg", ALONG):
        figure = rows.with_name(name) if is_sweep else rows.with_suffix(".svg")
        if is_sweep or name == "scaling.svg":
            assert content_of(figure) == content_of(tmp_path / name), f"{figure}: draw it anew"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_type_has_9_pixels_where_a_committed_figure_is_850_wide(figure: Path) -> None:
    assert smallest_type(figure) >= 9


@pytest.mark.parametrize("figure", FIGURES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_figure_names_its_runs_seeds_and_how_much_they_were_asked(figure: Path) -> None:
    """What it names is what its rows say: other tests draw it anew from them."""
    texts, _ = content_of(figure) or ([], Counter())
    said = " ".join(re.sub("<[^>]*>", "", text) for text in texts)
    assert re.search(r"\b(\d+ runs|run \w+)\b.*, seeds? \d(, \d)*", said)
    assert re.search(r"\b\d[\d,]* (\w+ )?(questions|sequences|pairs of layers)", said)


def test_the_figure_without_a_run_says_so(tmp_path: Path) -> None:
    assert draw_ring.main(["--output", str(tmp_path / "ring.svg")]) == 0
    (said,) = re.findall("<!-- (No run: .*?) -->", RING.read_text(encoding="utf-8"))
    assert "4 stages, 4 micro-batches and 3 loops" in said
    assert RING.read_bytes() == (tmp_path / "ring.svg").read_bytes(), "draw it anew"


@pytest.mark.parametrize(
    ("values", "stderr", "meaning"),
    [
        ({0: 2.0}, None, ""),
        ({0: 2.0}, 0.1, "± standard error over examples"),
        ({0: 2.0, 1: 3.0}, None, "± sd over seeds (dots)"),
    ],
)
def test_the_legend_says_what_bars_are(values: dict[int, float], stderr: float | None, meaning: str) -> None:
    rows = [make_row(run=f"r-seed{seed}", value=value, stderr=stderr) for seed, value in values.items()]
    (curve,) = make_curves(rows)
    assert meaning_of_bars(spots_of(curve, DEPTH)) == meaning


def test_bars_of_several_and_of_single_seeds_are_told_apart() -> None:
    shape = {"num_params": 100, "stderr": 0.1}
    rows = [make_row(run=f"a-seed{seed}", value=2.0 + seed, num_loops=1, **shape) for seed in (0, 1)]
    (curve,) = make_curves([*rows, make_row(run="a-seed0", value=1.0, num_loops=2, effective_depth=4, **shape)])
    said = "± sd over seeds (dots), of one seed ± standard error over examples"
    assert meaning_of_bars(spots_of(curve, DEPTH)) == said


def test_a_curve_of_few_depths_has_its_name_alone_in_the_legend(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", *(model_fields("looped", 4, loops, 1000) for loops in (1, 2)))
    assert scaling_plot.main([str(tmp_path / "rows.jsonl")]) == 0
    texts, _ = content_of(tmp_path / "scaling.svg") or ([], Counter())
    assert not [text for text in texts if "depths" in text or "line" in text]


def test_of_two_names_at_one_place_the_upper_is_of_the_upper_point() -> None:
    with new_figure([], 4, 3, "") as figure:
        axes = figure.subplots()
        axes.set(xlim=(1, 3), ylim=(0, 1))
        axes.axhline(0.4)
        names = [Label(2, 0.4, "lower", "black", 0.0), Label(2, 0.45, "upper", "black", 0.1)]
        figure.draw_without_rendering()
        place_labels(figure, [(axes, names)])
        heights = {text.get_text(): text.get_window_extent().y0 for text in axes.texts}
    assert heights["upper"] > heights["lower"]


def test_a_name_that_no_place_keeps_clear_of_lines_has_a_ground_of_its_own() -> None:
    with new_figure([], 4, 3, "") as figure:
        axes = figure.subplots()
        axes.plot([1, 2, 3], [0.1, 0.5, 0.9], "o", linestyle="none")
        figure.draw_without_rendering()
        place_labels(figure, [(axes, [Label(2, 0.5, "clear", "black", 0.0)])])
        for height in range(100):
            axes.axhline(height / 100)
        place_labels(figure, [(axes, [Label(2, 0.5, "crossed", "black", 0.0)])])
        grounds = {text.get_text(): text.get_bbox_patch() is not None for text in axes.texts}
    assert grounds == {"clear": False, "crossed": True}


def test_no_name_of_an_axis_is_longer_than_its_panel() -> None:
    with new_figure([], 4, PANEL_HEIGHT, "") as figure:
        axes = figure.subplots()
        for metric in METRIC_NAMES:
            name_axes(axes, "title", "depth", metric)
            figure.draw_without_rendering()
            name = axes.yaxis.label
            assert name.get_window_extent().height < (PANEL_HEIGHT - TOP) * figure.dpi, name.get_text()
