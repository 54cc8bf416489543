"""The look of all figures: colours, grid lines, and a figure that is saved in several formats."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that differ for colour-blind readers too (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
SKY, PINK, GREY = "#56b4e9", "#cc79a7", "#999999"

STYLE: dict[Any, Any] = {
    "font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "legend.frameon": False, "legend.fontsize": 10, "svg.fonttype": "none",
    "svg.hashsalt": "looped",  # the same drawing gives the same file
}  # fmt: skip


NOTE: dict[str, Any] = {"fontsize": 10, "color": "#666666", "va": "bottom", "linespacing": 1.15}
NOTE_LINE, NOTE_LETTER, NOTE_EDGE = 0.165, 0.072, 0.08
"""Inches of a line and of a letter of the note below a figure, and around it."""


@contextmanager
def new_figure(files: Sequence[Path], width: float, height: float, note: str) -> Iterator["Figure"]:
    """An empty figure that is saved to every file at the end, in the format of the file's suffix.

    Args:
        files: png and svg.
        width: inches.
        height: inches, without the note, which makes the figure higher (`Figure.get_figheight`).
        note: what the figure stands on (`pretrain.rows.provenance`), written below all else; "" for none.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = wrap(note, int((width - 2 * NOTE_EDGE) / NOTE_LETTER))
    below = NOTE_LINE * len(lines) + 2 * NOTE_EDGE if lines else 0.0
    whole = height + below
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, whole), layout="constrained")
        figure.set_layout_engine("constrained", rect=(0, below / whole, 1, height / whole))
        figure.text(NOTE_EDGE / width, NOTE_EDGE / whole, "\n".join(lines), in_layout=False, **NOTE)
        yield figure
        _read_no_formulas(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keep the layout: computing it costs as much as drawing
        for legend in figure.legends:  # above the note, which the layout knows nothing of
            legend.set_bbox_to_anchor((0, below / whole, 1, height / whole), figure.transFigure)
        for file in files:
            figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else None)


def _read_no_formulas(figure: "Figure") -> None:
    """Take dollar signs in names, of tasks or tokens, as they are. The numbers of a logarithmic axis are formulas."""
    from matplotlib.axis import Tick
    from matplotlib.text import Text

    numbers = {text for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in numbers:
            text.set_parse_math(False)


def draw_grid_lines(axes: "Axes") -> None:
    """Light horizontal lines behind what is drawn."""
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
