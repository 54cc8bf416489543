"""Status of runs: `python tools/status.py runs/` prints one line per run; `pretrain/run/status.py` defines the states.

`req` counts requeues, `checkpoint` is the step and the age of the newest one. Errors too long for the table are printed
below it. --watch looks again every few seconds, until Ctrl-C: a terminal shows the table in one place, a pipe gets one
when a run has changed.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import contextlib
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from pretrain.command.console import run_command
from pretrain.command.options import MOST_SHOWN, OptionParser
from pretrain.run.status import IMPORTED, RunStatus, find_runs, read_queue, read_status

HEADINGS = ("run", "state", "step", "loss", "tok/s", "MFU", "ETA", "req", "checkpoint")
RIGHT = (2, 3, 4, 5, 6, 7, 8)
"""Right-aligned columns, those of numbers."""
WATCH_S = 5.0
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
"""Where the cursor goes, and what is cleared there."""
LEAST_NAME, LEAST_ERROR = 10, 28
"""Least width of the columns in characters; with less space, errors are printed below the table."""


def span(seconds: float | None) -> str:
    """Format a duration: 45s, 12m, 3h20m, 2d4h."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(0, round(seconds))}s"
    if minutes < 60:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes < 24 * 60 else f"{minutes // 1440}d{minutes % 1440 // 60}h"


def short(number: float | None) -> str:
    """Format a number with three or four digits: 950, 9.5k, 1.25M."""
    if number is None:
        return ""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.3g}"


def cells(run: RunStatus) -> tuple[str, ...]:
    step = "" if run.state == IMPORTED else f"{run.step}/{'?' if run.num_steps is None else run.num_steps}"
    loss = "" if run.loss is None else f"{run.loss:.3f}"
    mfu = "" if run.mfu_pct is None else f"{run.mfu_pct:.1f}%"
    checkpoint = "" if run.checkpoint_step is None else f"{run.checkpoint_step} {span(run.checkpoint_age_s)}"
    return (
        run.name, run.state, step, loss, short(run.tokens_per_s), mfu, span(run.eta_s), str(run.requeues or ""),
        checkpoint,
    )  # fmt: skip


def table(runs: list[RunStatus], width: int | None) -> str:
    """The lines to print for a terminal of `width` characters (None: no limit)."""
    rows = [HEADINGS, *map(cells, runs)]
    # columns that are empty for all runs are left out
    shown = [number for number in range(len(HEADINGS)) if number < 3 or any(row[number] for row in rows[1:])]
    widths = {number: max(len(row[number]) for row in rows) for number in shown}
    errors = max(len(run.error) for run in runs)
    without_name = sum(widths.values()) - widths[0] + 2 * (len(shown) - 1)
    beside = width is None or width - without_name - LEAST_NAME - 2 >= min(errors, LEAST_ERROR)
    if width is not None:
        wanted = min(errors + 2, LEAST_ERROR) if errors and beside else 0
        widths[0] = min(widths[0], max(LEAST_NAME, width - without_name - wanted))
    lines = []
    for row, error in zip(rows, ["last error" if errors else "", *(run.error for run in runs)], strict=True):
        name = row[0] if len(row[0]) <= widths[0] else "…" + row[0][1 - widths[0] :]
        others = (row[n].rjust(widths[n]) if n in RIGHT else row[n].ljust(widths[n]) for n in shown[1:])
        words = [name.ljust(widths[0]), *others]
        line = "  ".join([*words, error] if beside else words).rstrip()
        lines.append(line if width is None or len(line) <= width or not beside else line[: width - 1] + "…")
    below = [f"{run.name}: {run.error}" for run in runs if run.error] if not beside else []
    return "\n".join([*lines, *([""] if below else []), *below])


def look(folder: Path) -> list[RunStatus]:
    paths, queue = find_runs(folder), read_queue()
    names = [str(path.relative_to(folder)) if path != folder else path.resolve().name for path in paths]
    return [read_status(path, name, queue) for path, name in zip(paths, names, strict=True)]


def width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def watch(folder: Path, seconds: float) -> None:
    """Show the runs again and again, until Ctrl-C."""
    shown: list[object] = []
    while True:
        runs = look(folder)
        if sys.stdout.isatty():
            height = shutil.get_terminal_size().lines
            lines = [
                f"{time.strftime('%H:%M:%S')}, every {seconds:g} s, Ctrl-C ends this",
                "",
                *screen(runs, height - 3),
            ]
            print(HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in lines) + REST_OF_SCREEN, end="", flush=True)
        elif (seen := [(run.name, run.state, run.step, run.checkpoint_step, run.error) for run in runs]) != shown:
            print(*([""] if shown else []), table(runs, width()), sep="\n", flush=True)
            shown = list(seen)
        time.sleep(seconds)


def screen(runs: list[RunStatus], height: int) -> list[str]:
    """As many lines of the table as there is room for."""
    lines = table(runs, width()).splitlines()
    return lines if len(lines) <= height else [*lines[: max(1, height - 1)], f"... {len(runs)} runs"]


def interval(text: str) -> float:
    """Type of an option: seconds between two looks."""
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(
        f"needs seconds, from 0.1 on, got {text[:MOST_SHOWN]}; the folder stands before it"
    )


def run(options: argparse.Namespace) -> None:
    if options.watch is None:
        print(table(look(options.folder), width()))
        return
    with contextlib.suppress(KeyboardInterrupt):
        watch(options.folder, options.watch)


def main() -> int:
    parser = OptionParser(description="Print a line for each run: state, step, loss, speed, last error.")
    runs = "a run, or a folder with runs below it; default: runs"
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help=runs)
    again = f"look again and again, until Ctrl-C; default: every {WATCH_S:g} s"
    parser.add_argument("--watch", type=interval, nargs="?", const=WATCH_S, metavar="SECONDS", help=again)
    return run_command(partial(run, parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
