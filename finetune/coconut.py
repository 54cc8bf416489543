"""Fine-tune a model to reason in latent thoughts, on one process or on many.

    deepspeed finetune/coconut.py [--config configs/finetune/<name>.yaml] [--init runs/<name>] [a.b=c ...] [--dry-run]
    sbatch slurm/finetune_coconut.sh configs/finetune/<name>.yaml

Exit codes as those of pretrain.train: 0 complete, or asked to stop and resumable by the same command; 2 bad input, one
line each on standard error; 1 the work failed; 130 interrupted before there was anything to save.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial

from finetune.config import check_layout
from finetune.run.command import parse
from pretrain.run.console import run_on_ranks


def prepare(argv: Sequence[str]) -> Callable[[], int]:
    """What the command line asks for: the plan, printed, or a fine-tuning run on the ranks of this world."""
    command = parse(argv)
    if command.dry_run:
        from finetune.run.plan import render_plan

        print(render_plan(command.config, command.world_size))
        return lambda: 0
    from pretrain.parallel.groups import world_from_environment  # torch is imported only now: help and errors are quick

    layout = check_layout(command.config, world_from_environment()[1])
    from finetune.trainer import run

    return partial(run, command.config, layout)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    return run_on_ranks(partial(prepare, argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
