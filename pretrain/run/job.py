"""What a batch job asks of a run directory, answered on one line: `python -m pretrain.run.job progress runs/x`."""

import sys
from functools import partial
from pathlib import Path

from pretrain.checkpoint.names import newest_step
from pretrain.command.console import run_command
from pretrain.command.options import OptionParser


def main() -> int:
    parser = OptionParser(description="Questions of a batch job about a run directory.")
    parser.add_argument("question", choices=["progress"], help="progress: the step that a resumed run starts from")
    parser.add_argument("run", type=Path, help="directory of the run")
    options = parser.parse_args()
    return run_command(partial(_say_progress, options.run))


def _say_progress(run_dir: Path) -> None:
    print(f"step {newest_step(run_dir)}")


if __name__ == "__main__":
    sys.exit(main())
