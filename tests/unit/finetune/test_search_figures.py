"""The figures of the latent search at their widest: legible in a document, and nothing cut off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text

from finetune.search import figures
from finetune.search.latent_search import ThoughtNumbers
from finetune.search.search_tree import NodeValue, Process, ProcessBar, concepts, node_values, top_values
from finetune.search.search_tree import values_by_height as by_height
from finetune.search.tree_layout import view_tree
from pretrain.scaling.style import new_figure
from pretrain.tasks.prosqa.prosqa import ProsQA, ProsQAParameters
from pretrain.tasks.prosqa.prosqa_graph import Graph
from pretrain.tasks.prosqa.prosqa_symbolic import SymbolForm
from tests.support.figures import smallest_type
from tests.unit.finetune.test_scoring import make_row

NOTE = "3 runs: sim_cot, cot and coconut, seed 1; 1,000 test questions; bars: ± standard error over questions"
WIDE_GRAPH = 24
"""Seed of a graph of nine nodes at one distance, as many as any of 60 has."""


def values_after(num_thoughts: int) -> tuple[list[NodeValue], Graph]:
    graph = ProsQA(ProsQAParameters()).draw_graph(Random(WIDE_GRAPH))
    of_name = {graph.idx_to_symbol[node]: 0.1 for node in concepts(graph)}
    return node_values(0, graph, num_thoughts, of_name), graph


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that are not all on a figure that was drawn, numbers of axes left out: they have some beyond their ends."""
    outside: list[str] = []

    @contextmanager
    def checked(files: Sequence[Path], width: float, height: float, note: str) -> Iterator[Figure]:
        with new_figure(files, width, height, note) as figure:
            yield figure
        figure.draw_without_rendering()  # places as of the resolution of the figure, not of the file
        box = figure.bbox
        numbers = {text for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
        for text in set(figure.findobj(Text)) - numbers:
            assert isinstance(text, Text)
            extent = text.get_window_extent()
            if text.get_visible() and text.get_text() and not (box.x0 <= extent.x0 and extent.x1 <= box.x1):
                outside.append(text.get_text())

    monkeypatch.setattr(figures, "new_figure", checked)
    return outside


def test_type_has_9_pixels_in_every_figure_and_none_is_cut_off(tmp_path: Path, drawn: list[str]) -> None:
    after = {count: values_after(count) for count in range(1, figures.MAX_PANELS + 1)}
    shares = dict.fromkeys(Process, 1 / 6)
    bars = [ProcessBar(label=f"{count} thoughts", accuracy=0.5, stderr=0.01, shares=shares) for count in range(8)]
    row = [("'quimpus'", 0.25)] * 5
    thoughts = ThoughtNumbers(
        norms=[1.0] * 6, norm_deviations=[0.1] * 6, token_norm=1.0, token_norm_deviation=0.1, cosines=[0.5] * 5,
        cosine_deviations=[0.1] * 5, question=0, top_tokens=[row] * 6,
    )  # fmt: skip
    grid = [replace(make_row(), num_thoughts=count, num_loops=loops) for count in range(7) for loops in (1, 2, 3, 4)]
    views = {count: view_tree(graph, values) for count, (values, graph) in after.items()}
    narrow = SymbolForm().graph("Aa,ab,Bc,?Abc")
    of_one = view_tree(narrow, node_values(0, narrow, 1, dict.fromkeys("abc", 0.5)))
    figures.draw_tree(views, NOTE, [tmp_path / "tree.svg"])
    figures.draw_tree({1: of_one}, NOTE, [tmp_path / "narrow_tree.svg"])
    heights = {count: by_height(values) for count, (values, _) in after.items()}
    figures.draw_heights(heights, NOTE, [tmp_path / "heights.svg"])
    tops = {count: top_values(values) for count, (values, _) in after.items()}
    figures.draw_parallelism(tops, NOTE, [tmp_path / "p.svg"])
    figures.draw_process(bars, NOTE, [tmp_path / "process.svg"])
    figures.draw_thoughts(thoughts, NOTE, [tmp_path / "thoughts.svg"])
    figures.draw_grid(grid, NOTE, [tmp_path / "grid.svg"])
    sizes = {path.stem: round(smallest_type(path), 1) for path in tmp_path.glob("*.svg")}
    assert len(sizes) == 7 and min(sizes.values()) >= 9, sizes
    assert drawn == []
