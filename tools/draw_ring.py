"""Draw the README's figure: the ring of pipeline stages, and the timeline of a step beside a pipeline without loops.

The timeline is simulated: every stage runs its forward and backward passes in the order of the (interleaved) 1F1B
schedule, each as soon as its input has arrived; a backward pass takes twice as long as a forward pass. Both pipelines
have the same depth: L passes over k layers, or one pass over k·L layers.

    python tools/draw_ring.py [--output FILE.svg]
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser
from pretrain.plan.pipeline import Visit, stage_order
from pretrain.scaling.style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_STAGES, NUM_LOOPS, NUM_MICRO_BATCHES = 4, 3, 4
FORWARD = ("#9ecae1", "#4292c6", "#08519c")
BACKWARD = ("#fdd0a2", "#fd8d3c", "#d94801")
"""Colours of the passes by loop, first to last."""

INK, QUIET = "#22303c", "#7a8793"


class Pass(NamedTuple):
    """A visit of one micro-batch to one stage in one loop; the unit of time is a forward pass of one loop."""

    stage: int
    visit: Visit
    start: float
    duration: float


def simulate(num_stages: int, num_loops: int, num_micro_batches: int, forward_time: float) -> list[Pass]:
    """All passes of a step, in no particular order, each started when its stage is free and its input has arrived.

    `forward_time` is the time of a forward pass through one stage in one loop; a backward pass takes twice as long.
    """
    ends: dict[tuple[bool, int, int], float] = {}
    queues = [stage_order(stage, num_stages, num_loops, num_micro_batches) for stage in range(num_stages)]
    free, passes = [0.0] * num_stages, []
    while any(queues):
        for stage, queue in enumerate(queues):
            while queue:
                is_forward, micro_batch, loop = queue[0]
                place = loop * num_stages + stage  # index along the unrolled depth
                if is_forward:
                    source = (True, micro_batch, place - 1) if place else None
                elif place == num_loops * num_stages - 1:
                    source = (True, micro_batch, place)
                else:
                    source = (False, micro_batch, place + 1)
                if source and source not in ends:
                    break
                start = max(free[stage], ends[source] if source else 0.0)
                duration = forward_time * (1 if is_forward else 2)
                free[stage] = ends[is_forward, micro_batch, place] = start + duration
                passes.append(Pass(stage, queue.pop(0), start, duration))
    return passes


def draw_ring(axes: "Axes") -> None:
    """Draw the stages in a ring, the path of a micro-batch through them, and where it enters and leaves."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    def box(x: float, y: float, text: str, colour: str, width: float = 1.0, height: float = 0.5) -> None:
        style: dict[str, Any] = {
            "boxstyle": "round,pad=0.02,rounding_size=0.08",
            "facecolor": colour,
            "edgecolor": "none",
        }
        axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
        axes.text(x, y, text, ha="center", va="center", color="white", fontsize=9, linespacing=1.35)

    def arrow(start: tuple[float, float], end: tuple[float, float], bend: float, colour: str = INK) -> None:
        style: dict[str, Any] = {"connectionstyle": f"arc3,rad={bend}", "arrowstyle": "-|>", "color": colour}
        axes.add_patch(FancyArrowPatch(start, end, mutation_scale=13, linewidth=1.8, **style))

    centres = [(-1.2, 1.2), (1.2, 1.2), (1.2, -1.2), (-1.2, -1.2)]
    for stage, (x, y) in enumerate(centres):
        box(x, y, f"stage {stage}\n¼ of the block", FORWARD[2], width=1.3, height=0.62)
    arrow((-0.52, 1.3), (0.52, 1.3), -0.12)
    arrow((1.3, 0.86), (1.3, -0.86), -0.12)
    arrow((0.52, -1.3), (-0.52, -1.3), -0.12)
    arrow((-1.3, -0.86), (-1.3, 0.86), -0.12)
    axes.text(0, 0.12, "L times round", ha="center", va="center", fontsize=13, fontweight="bold", color=INK)
    axes.text(0, -0.2, "same weights each time", ha="center", va="center", fontsize=9, color=QUIET)
    box(-1.2, 2.25, "embedding, prelude", QUIET, width=1.95, height=0.42)
    box(-1.2, -2.25, "coda, norm, head", QUIET, width=1.95, height=0.42)
    arrow((-1.2, 2.03), (-1.2, 1.54), 0, QUIET)
    arrow((-1.2, -1.54), (-1.2, -2.03), 0, QUIET)
    axes.text(-0.1, 2.25, "first time in", va="center", fontsize=8.5, color=QUIET)
    axes.text(-0.1, -2.25, "last time out", va="center", fontsize=8.5, color=QUIET)
    axes.set(xlim=(-2.4, 2.0), ylim=(-2.55, 2.55), aspect="equal")
    axes.axis("off")


def draw_timeline(axes: "Axes", num_loops: int, title: str, end: float) -> None:
    """Draw one step of every stage, in the colours of the legend."""
    passes = simulate(NUM_STAGES, num_loops, NUM_MICRO_BATCHES, forward_time=NUM_LOOPS / num_loops)
    for stage, visit, start, duration in passes:
        shade = visit.chunk if num_loops > 1 else 1
        colour = (FORWARD if visit.is_forward else BACKWARD)[shade]
        axes.barh(stage, duration, left=start, height=0.86, color=colour, edgecolor="white", linewidth=0.8)
        ink = INK if shade == 0 or (shade == 1 and not visit.is_forward) else "white"
        number = str(visit.micro_batch + 1)
        axes.text(start + duration / 2, stage, number, ha="center", va="center", fontsize=7.5, color=ink)
    total = max(item.start + item.duration for item in passes)
    idle = 1 - sum(item.duration for item in passes) / (NUM_STAGES * total)
    axes.axvline(total, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title(f"{title}: {idle:.0%} idle", fontsize=11, color=INK)
    axes.set_yticks(range(NUM_STAGES), [f"stage {stage}" for stage in range(NUM_STAGES)], fontsize=8.5, color=INK)
    axes.set(xlim=(0, end), ylim=(NUM_STAGES - 0.45, -0.55), xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw(file: Path) -> None:
    """Draw the ring on the left and both timelines on the right, and save them in the format of the file's suffix."""
    import matplotlib as mpl

    file.parent.mkdir(parents=True, exist_ok=True)
    note = (
        f"No run: the schedule of one step, computed for {NUM_STAGES} stages, {NUM_MICRO_BATCHES} micro-batches and "
        f"{NUM_LOOPS} loops; a backward pass takes twice the time of a forward pass, sending takes none."
    )
    with new_figure([file], 13, 4.3, note) as figure:
        mpl.rcParams["svg.fonttype"] = "path"  # the README's reader may lack the font
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 2.15))
        draw_ring(figure.add_subplot(grid[:, 0]))
        plain, looped = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        passes = simulate(NUM_STAGES, 1, NUM_MICRO_BATCHES, forward_time=NUM_LOOPS)
        end = max(item.start + item.duration for item in passes) * 1.005
        draw_timeline(plain, 1, f"one pass over {NUM_LOOPS}k layers", end)
        draw_timeline(looped, NUM_LOOPS, f"{NUM_LOOPS} times round the ring of k layers", end)
        legend = "time of one step   (blue: forward, orange: backward, darker: later loop, number: micro-batch)"
        looped.set_xlabel(legend, fontsize=9, color=QUIET)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OptionParser(description="Draw the ring of pipeline stages and its timeline.")
    default = Path(__file__).parent / "figures" / "ring.svg"
    parser.add_argument("--output", type=Path, default=default, help=".svg or .png; default: tools/figures/ring.svg")
    options = parser.parse_args(arguments)
    return run_command(lambda: draw(options.output))


if __name__ == "__main__":
    sys.exit(main())
