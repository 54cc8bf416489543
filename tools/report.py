"""A run on one page: `python tools/report.py runs/12x2` writes `runs/12x2/report.html`, without network and scripts.

Curves of loss, validation by loop count, learning rate, gradient norm, throughput, memory and diagnostics, results,
samples (`sample*.txt` of the run), warnings and restarts, configuration and environment. Training writes the page at
its end; this command does so while a run is at work, and for older ones.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser
from pretrain.report.page import write_report
from pretrain.run.status import find_runs


def run(folders: Sequence[Path]) -> None:
    for path in [path for folder in folders for path in find_runs(folder)]:
        print(write_report(path))


def main() -> int:
    parser = OptionParser(description="Write report.html of runs: curves, results, samples, configuration.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="a run, or a folder with runs below it")
    return run_command(partial(run, parser.parse_args().runs))


if __name__ == "__main__":
    sys.exit(main())
