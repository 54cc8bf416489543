"""Pretrain a looped GPT from one configuration, on one process or on many.

    python -m pretrain.train --config configs/pretrain/<name>.yaml [a.b=c ...] [--dry-run]
    torchrun --nproc-per-node 2 -m pretrain.train --config configs/pretrain/<name>.yaml
    sbatch slurm/pretrain_looped.sh configs/pretrain/<name>.yaml

Exit code 0: the run is complete, or it was asked to stop and can be resumed by the same command (`state` in the run
directory says which). 2: bad input, one line each on standard error. 1: the work failed. 130: interrupted before there
was anything to save.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from pretrain.config.read import parse
from pretrain.config.run import check_layout
from pretrain.run.console import run_on_ranks


def prepare(argv: Sequence[str]) -> Callable[[], int]:
    """What the command line asks for: the plan, printed, or a training run on the ranks of this world."""
    command = parse(argv)
    if command.dry_run:
        from pretrain.plan.plan import default_world_size, make_plan
        from pretrain.run.directory import run_directory

        world_size = command.world_size or default_world_size(command.config, os.environ)
        print(make_plan(command.config, world_size).render() + f"run directory  {run_directory(command.config.run)}")
        return lambda: 0
    from pretrain.parallel.groups import world_from_environment  # torch is imported only now: help and errors are quick

    layout = check_layout(command.config, world_from_environment()[1])
    from pretrain.trainer import run

    return partial(run, command.config, layout)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    return run_on_ranks(partial(prepare, argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
