"""Time of tools/scaling_plot.py for 100,000 rows: reading, fits, intervals, figures and page.

Twenty models and five tasks in two groups; once with ten seeds of a hundred steps, once with a thousand seeds of one
step, where every row is a separate point. There is no reference: the figures are seconds on this machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measure import Row, add_rounds, row, timed

ROOT = Path(__file__).parents[2]
MODELS = [("looped", 4, loops) for loops in range(1, 11)] + [("baseline", 4 * loops, 1) for loops in range(1, 11)]
SHAPES = {"of many steps": (10, 100), "each a point of a run": (1000, 1)}
"""Name -> number of seeds and steps; with the models and tasks, 100,000 rows each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "plot", 3, "runs")


def run(args: argparse.Namespace) -> list[Row]:
    figures: list[Row] = []
    for name, (num_seeds, num_steps) in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "depth.jsonl")
            file.write_text("".join(rows(num_seeds, num_steps)), encoding="utf-8")
            command = [sys.executable, ROOT / "tools/scaling_plot.py", file]
            plot = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            seconds = median(timed(plot) for _ in args.plot_rounds.numbers())
        against = "this machine, Python's start included"
        figures.append(row(f"plot of 100,000 rows, {name}", seconds, "s", "< 5", against))
    return figures


def rows(num_seeds: int, num_steps: int) -> Iterator[str]:
    """Lines of depth.jsonl: every model, seed, task and step."""
    for family, layers, loops in MODELS:
        for seed in range(num_seeds):
            model = {
                "run": f"{family}-{layers}x{loops}-{seed}", "family": family, "num_loops": loops,
                "effective_depth": layers * loops, "num_params": (2 + layers) * 10**6,
                "num_loop_params": layers * 10**6, "eval_flops_per_token": (2.0 + layers * loops) * 1e6,
                "train_flops": (2.0 + layers * loops) * 1e15, "tokens_seen": 10**9, "metric": "acc", "stderr": 0.1,
                "num_examples": 1000,
            }  # fmt: skip
            for task in range(5):
                value = 0.1 + 0.01 * layers + 0.001 * task
                scored = model | {"task": f"task {task}", "task_group": f"group {task % 2}", "value": value}
                for step in range(num_steps):
                    yield json.dumps(scored | {"step": step}) + "\n"
