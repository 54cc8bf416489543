"""Measure this machine: `python tools/bench.py {train,engine,ring,data,checkpoint,tasks,depths,loops,
diagnostics,generation,coconut,rollouts,plot,speed,plan,graph,attention} [--json FILE]`.

Prints the machine and a table of figures, each with its target and the reference measured in the same run, and writes
them as JSON. The module of the same name in `tools/benchmarks/` documents what is measured: it has
`add_arguments(parser)`, and `run(arguments)`, which returns rows of name, value, unit, target and against.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import contextlib
import importlib
import json
import platform
import signal
import sys
import time
from pathlib import Path

from benchmarks.measure import Turns, require_possible

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser, positive

BENCHMARKS = (
    "train",
    "engine",
    "ring",
    "data",
    "checkpoint",
    "tasks",
    "depths",
    "loops",
    "diagnostics",
    "generation",
    "coconut",
    "rollouts",
    "plot",
    "speed",
    "plan",
    "graph",
    "attention",
)
MINUTES = "turns that do not begin in this time are left out, what takes twice as long is given up; default: 15"


def parse_arguments() -> argparse.Namespace:
    """The options, including those of the chosen benchmark."""
    parser = OptionParser(description="Measure this machine.", add_help=False)
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows; default: runs/bench/<benchmark>.json")
    if any(word in BENCHMARKS for word in sys.argv[1:]):
        benchmark = parser.parse_known_args()[0].benchmark
        importlib.import_module(f"benchmarks.{benchmark}").add_arguments(parser)
    parser.add_argument("--minutes", type=positive, default=15, metavar="M", help=MINUTES)
    parser.add_argument("-h", "--help", action="help", help="show this; after a benchmark's name, its options too")
    return parser.parse_args()


def machine() -> str:
    """One line: processor or GPU, cores, versions."""
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):  # not Linux: keep the name from `platform`
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    devices = [f"{name}, {torch.get_num_threads()} threads"]
    devices += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{'; '.join(devices)}; torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"


def table(rows: list[dict[str, object]]) -> str:
    """Format rows as a Markdown table."""
    head = ["| figure | value | target | against |", "|---|---|---|---|"]
    line = "| {name} | {value:.3g} {unit} | {target} | {against} |"
    return "\n".join([*head, *(line.format(**row) for row in rows)])


def measure(arguments: argparse.Namespace) -> None:
    """Run the benchmark, print its rows and write them.

    Raises:
        ValueError: a figure cannot be.
        TimeoutError: the time was over twice.
    """

    def give_up(*_: object) -> None:
        raise TimeoutError(f"{arguments.benchmark} is given up after {2 * arguments.minutes} minutes: raise --minutes")

    Turns.deadline = time.monotonic() + 60 * arguments.minutes
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120 * arguments.minutes)
    path = arguments.json or Path("runs/bench") / f"{arguments.benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    rows = importlib.import_module(f"benchmarks.{arguments.benchmark}").run(arguments)
    print(table(rows))
    require_possible(rows)
    text = json.dumps({"machine": machine(), "rows": rows}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"written to {path}")


def main() -> int:
    arguments = parse_arguments()
    return run_command(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
