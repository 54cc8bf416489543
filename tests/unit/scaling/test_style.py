"""The look of figures."""

import re
from pathlib import Path

from pretrain.scaling.style import new_figure


def test_dollar_signs_in_names_are_no_formulas(tmp_path: Path) -> None:
    names = ["a $x_1$ title", "a $\\alpha$ axis", "a $b$ curve", "a $1 note $2"]
    with new_figure([tmp_path / "figure.svg"], 4, 3, "") as figure:
        axes = figure.subplots()
        axes.plot([1, 1e6], [1, 2], label=names[2])
        axes.set(xscale="log", title=names[0], xlabel=names[1])
        axes.annotate(names[3], (10, 1.5))
        axes.legend()
    drawn = re.sub(r"<tspan[^>]*>|</tspan>", "", (tmp_path / "figure.svg").read_text())
    assert [name for name in names if f">{name}</text>" not in drawn] == []
    assert "mathdefault" not in re.sub(r"<!--.*?-->", "", drawn)  # the powers of ten of the axis are drawn
