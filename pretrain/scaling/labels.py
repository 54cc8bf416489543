"""Names of points where they hide neither a point nor each other; a name without such a place is left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = 9.5
OFFSETS = ((0, 8), (0, -17), (9, -4), (-9, -4), (9, 7), (-9, 7), (9, -15), (-9, -15), (0, 19), (0, -28), (9, 18))
"""Points from the marker to try, in this order."""
MARKER = 5.0
"""Half the size of a marker, in points."""
MOST = 60
"""Most names in a panel."""


class Label(NamedTuple):
    x: float
    y: float
    text: str
    colour: str
    error: float
    """Half the height of the error bar, which no name may cross."""


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def place_labels(figure: "Figure", labels: Sequence[tuple["Axes", Sequence[Label]]]) -> None:
    """Write the names of the points of all panels, whose layout is settled."""
    scale = figure.dpi / 72
    for axes, wanted in labels:
        frame = axes.get_window_extent()
        spots = [tuple(axes.transData.transform((label.x, label.y))) for label in wanted]
        half = MARKER * scale
        taken = [Box(x - half, y - half, x + half, y + half) for x, y in spots]
        for label, (x, _) in zip(wanted, spots, strict=True):
            ends = [axes.transData.transform((label.x, label.y + sign * label.error))[1] for sign in (-1, 1)]
            taken.append(Box(x - half / 2, ends[0], x + half / 2, ends[1]))
        for label, (x, y) in list(zip(wanted, spots, strict=True))[:MOST]:
            width, height = 0.62 * SIZE * len(label.text) * scale, 1.15 * SIZE * scale
            for right, up in OFFSETS:
                side = (right > 0) - (right < 0)
                left = x + right * scale - (0 if side > 0 else width if side < 0 else width / 2)
                box = Box(left, y + up * scale - 0.15 * height, left + width, y + up * scale + 0.9 * height)
                is_inside = box.left >= frame.x0 and box.right <= frame.x1 + 20 * scale
                is_inside &= box.bottom >= frame.y0 and box.top <= frame.y1 + 4 * scale
                if is_inside and not any(box.meets(other) for other in taken):
                    taken.append(box)
                    axes.annotate(
                        label.text.replace("$", r"\$"), (label.x, label.y), (right, up), textcoords="offset points",
                        ha={1: "left", -1: "right", 0: "center"}[side], fontsize=SIZE, color=label.colour,
                        annotation_clip=False,
                    )  # fmt: skip
                    break
