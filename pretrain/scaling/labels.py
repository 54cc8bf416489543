"""Names of points where they hide neither a point nor each other, and where no line crosses them if there is such a
place; a name without any is left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as MatplotlibPath

SIZE = 9.5
OFFSETS = (
    (0, 8), (0, -17), (9, -4), (-9, -4), (9, 7), (-9, 7), (9, -15), (-9, -15), (0, 19), (0, -28), (9, 18), (-9, 18),
    (9, -26), (-9, -26), (18, 7), (-18, 7), (18, -15), (-18, -15),
)  # fmt: skip
"""Points from the marker to try, in this order."""
MARKER = 5.0
"""Half the size of a marker, in points."""
NEAR = 30.0
"""Points that have their names in their own order, from above to below, lie no farther beside each other."""
BEHIND: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
"""What is behind a name that a line crosses."""
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
        drawn = [line for line in axes.get_lines() if line.get_linestyle() not in ("None", "none", " ", "")]
        lines = [line.get_transform().transform_path(line.get_path()) for line in drawn]
        taken = [Box(x - half, y - half, x + half, y + half) for x, y in spots]
        for label, (x, _) in zip(wanted, spots, strict=True):
            ends = [axes.transData.transform((label.x, label.y + sign * label.error))[1] for sign in (-1, 1)]
            taken.append(Box(x - half / 2, ends[0], x + half / 2, ends[1]))
        named: list[tuple[tuple[float, float], Box]] = []
        for label, (x, y) in list(zip(wanted, spots, strict=True))[:MOST]:
            free = []
            for right, up in OFFSETS:
                box = _box(label.text, (x + right * scale, y + up * scale), _side(right), scale)
                is_inside = box.left >= frame.x0 and box.right <= frame.x1 + 20 * scale
                is_inside &= box.bottom >= frame.y0 and box.top <= frame.y1 + 4 * scale
                if is_inside and not any(box.meets(other) for other in taken):
                    near = [(other, theirs) for (place, other), theirs in named if abs(place - x) < NEAR * scale]
                    is_turned = any((other - y) * (theirs.bottom - box.bottom) < 0 for other, theirs in near)
                    free.append((is_turned, _is_crossed(box, lines, scale), (right, up), box))
            if not free:
                continue
            _, is_crossed, offset, box = min(free, key=lambda each: each[:2])
            taken.append(box)
            named.append(((x, y), box))
            axes.annotate(
                label.text.replace("$", r"\$"), (label.x, label.y), offset, textcoords="offset points",
                ha={1: "left", -1: "right", 0: "center"}[_side(offset[0])], fontsize=SIZE, color=label.colour,
                annotation_clip=False, bbox=BEHIND if is_crossed else None,
            )  # fmt: skip


def _side(right: float) -> int:
    """Where a name stands beside its point: 1 to the right, -1 to the left, 0 above or below."""
    return (right > 0) - (right < 0)


def _box(text: str, place: tuple[float, float], side: int, scale: float) -> Box:
    """What a name covers, in pixels."""
    width, height = 0.62 * SIZE * len(text) * scale, 1.15 * SIZE * scale
    left = place[0] - (0 if side > 0 else width if side < 0 else width / 2)
    return Box(left, place[1] - 0.15 * height, left + width, place[1] + 0.9 * height)


def _is_crossed(box: Box, lines: Sequence["MatplotlibPath"], margin: float) -> bool:
    """Whether a line runs through it, or nearer than `margin` pixels."""
    from matplotlib.transforms import Bbox

    inside = Bbox.from_extents(box.left - margin, box.bottom - margin, box.right + margin, box.top + margin)
    return any(line.intersects_bbox(inside, filled=False) for line in lines)
