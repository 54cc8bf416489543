"""Verify a job before it runs for days: its own configuration in miniature, on this machine, in a minute or two.

    python -m pretrain.verify --config configs/pretrain/<name>.yaml [--world-size N] [a.b=c ...]
    bash slurm/submit.sh --verify slurm/pretrain_looped.sh --nodes=4 ... configs/pretrain/<name>.yaml

Prints a table of ticks, a row as soon as it is known: data, disk and memory, order of the data, every layout of the job
that fits here against one rank, generation with and without a cache, killed and resumed against uninterrupted, export
against the model. Layers and loops, parallelism, optimizer and data are the user's; width, batch and length are small
(`pretrain/verification/miniature.py`).

Exit code 0: every row that was made holds. 1: one does not, and says the first difference. 2: bad input.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pretrain.command.console import FAILED, run_command
from pretrain.command.options import OptionParser, positive
from pretrain.config.layout import Layout, check_layout
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.device.ranks import planned_world_size

DEFAULT_CONFIG = Path("configs/pretrain/quickstart.yaml")


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    options = parse(argv)
    verdicts: list[bool] = []
    return run_command(partial(_verify, options, verdicts)) or (0 if all(verdicts) else FAILED)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends with exit code 2 where it is malformed."""
    parser = OptionParser(
        prog="python -m pretrain.verify", description="Verify a pretraining job in miniature before it runs.",
        epilog="Keys: python -m pretrain.train --help.",
    )  # fmt: skip
    option = parser.add_argument
    option("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")
    option("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the file")
    ranks = "ranks of the job; default: $WORLD_SIZE, $SLURM_NTASKS or two replicas"
    option("--world-size", type=positive, metavar="N", help=ranks)
    elsewhere = "the job runs on other machines: its memory is shown, not compared"
    option("--elsewhere", action="store_true", help=elsewhere)
    return parser.parse_intermixed_args(argv)


def _verify(options: argparse.Namespace, verdicts: list[bool]) -> None:
    config = read_config(options.config, RunConfig, options.overrides)
    layout = _layout(config, options.world_size)
    from pretrain.verification.checks import run_checks  # numpy and tokenizers: help and errors are quick
    from pretrain.verification.job import make_job

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        job = make_job(config, layout, Path(folder), is_elsewhere=options.elsewhere)
        print(f"{options.config}, {job.describe()}", flush=True)
        for tick, seconds in run_checks(job):
            print(f"{tick.mark} {tick.name:<7} {tick.text}  [{seconds:.1f} s]", flush=True)
            if tick.holds is not None:
                verdicts.append(tick.holds)
    wrong = verdicts.count(False)
    outcome = f"{wrong} of {len(verdicts)} rows do not hold" if wrong else f"all {len(verdicts)} rows hold"
    print(f"{outcome}, {time.monotonic() - started:.0f} s")


def _layout(config: RunConfig, world_size: int | None) -> Layout:
    """How the job lies on its ranks. Where nobody says how many: two replicas, or one where the batch is for one."""
    replica = config.ranks_per_replica
    ranks = world_size or planned_world_size(0)
    if ranks:
        return check_layout(config, ranks)
    try:
        return check_layout(config, 2 * replica)
    except ValueError:
        return check_layout(config, replica)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
