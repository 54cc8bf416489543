"""How large the type of a figure is where documents show it."""

import re
from pathlib import Path

PAGE = 850
"""Pixels of a document's column."""


def smallest_type(figure: Path) -> float:
    """Pixels of the smallest type of an SVG that is as wide as the column."""
    text = figure.read_text(encoding="utf-8")
    (width,) = re.findall(r'viewBox="0 0 ([\d.]+)', text)
    sizes = re.findall(r"(?:font: |font-size: )[^;\"]*?([\d.]+)px", text)
    assert sizes, f"{figure}: no type"
    return min(map(float, sizes)) * PAGE / float(width)
