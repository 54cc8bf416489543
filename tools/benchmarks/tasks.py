"""Examples per second of each reasoning task, in one process, at the difficulty of the papers.

In each of --task-rounds turns, each task makes --task-examples new examples; the figure is the median over turns,
printed with the number of questions that the task's solver answers per second. An example of a held-out split costs 16
examples on average.
"""

import argparse
from statistics import median
from typing import Any

from benchmarks.measure import Row, add_rounds, row, timed

from pretrain.command.options import positive
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Example, Task

SETTINGS: tuple[tuple[str, dict[str, object], int | None], ...] = (
    ("addition", {}, 20_000),
    ("p_hop", {"num_hops": 16}, 20_000),
    ("p_hop", {"num_hops": 32}, 20_000),
    ("p_hop", {"num_hops": 4, "length": 64, "sampling": "uniform"}, 20_000),
    ("i_gsm", {}, None),
    ("variable_assignment", {"depth": 0, "wording": "code"}, 20_000),
    ("variable_assignment", {"depth": 2}, 20_000),
    ("induction_copying", {}, 20_000),
    ("group_composition", {}, 20_000),
    ("group_composition", {"group": "cyclic", "order": 60}, 20_000),
    ("multiplication", {}, 20_000),
    ("prosqa", {}, None),
    ("prontoqa", {}, None),
)
"""Task, parameters, and target in examples/s."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task-examples", type=positive, default=2000, help="examples of a turn (default: 2000)")
    add_rounds(parser, "task", 5)


def run(args: argparse.Namespace) -> list[Row]:
    tasks = [make_task(name, parameters) for name, parameters, _ in SETTINGS]
    figures: list[list[tuple[float, float]]] = [[] for _ in tasks]
    for turn in args.task_rounds.numbers():
        for task, measured in zip(tasks, figures, strict=True):
            measured.append(_take_turn(task, turn, args.task_examples))
    rows = []
    for (name, parameters, wanted), measured in zip(SETTINGS, figures, strict=True):
        setting = " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])
        made, solved = (median(column) for column in zip(*measured, strict=True))
        target = f">= {wanted:.3g}" if wanted else ""
        rows.append(row(f"tasks: {setting}", made, "examples/s", target, f"solver {solved:.3g} a second"))
    return rows


def _take_turn(task: Task[Any], turn: int, num_examples: int) -> tuple[float, float]:
    """Examples made and questions solved per second."""
    examples: list[Example] = []
    making = timed(lambda: examples.extend(task.generate(turn, number) for number in range(num_examples)))

    def solve_all() -> None:
        for example in examples:
            task.solve(example.question)

    solving = timed(solve_all)
    return num_examples / making, num_examples / solving
