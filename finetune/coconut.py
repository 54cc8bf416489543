"""Fine-tune a model to reason in latent thoughts, on one process or on many.

    deepspeed finetune/coconut.py [--config configs/finetune/<name>.yaml] [--init runs/<name>] [a.b=c ...] [--dry-run]
    sbatch slurm/finetune_coconut.sh configs/finetune/<name>.yaml

Exit codes as those of pretrain.train: 0 complete, or asked to stop and resumable by the same command; 2 bad input, one line each on
standard error; 1 the work failed; 130 interrupted before there was anything to save.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.cli import parse
from finetune.config import check_layout
from pretrain.console import BAD_INPUT, INTERRUPTED, exit_code, print_error


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
    try:
        command = parse(argv)
        if command.dry_run:
            from finetune.plan import render_plan

            print(render_plan(command.config, command.world_size))
            print(f"run directory  {Path(command.config.run.root, command.config.run.name)}")
            return 0
        from pretrain.parallel.groups import world_from_environment  # torch is imported only now: help and errors are quick

        layout = check_layout(command.config, world_from_environment()[1])
    except BrokenPipeError:  # the reader of the plan has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except (ValueError, OSError) as error:  # every rank finds the same
        if rank == "0":
            print_error(error)
        return BAD_INPUT
    from finetune.trainer import run

    try:
        return run(command.config, layout)
    except (ValueError, OSError) as error:
        print_error(error, f"rank {rank}: " if layout.world_size > 1 else "")
        return exit_code(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
