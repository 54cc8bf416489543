"""Teach a model by rewarding its right answers: GRPO on text, on loops and on latent thoughts.

    deepspeed finetune/grpo.py --config configs/finetune/<name>_grpo.yaml [--init runs/<name>] [a.b=c ...] [--dry-run]

Exit codes as those of pretrain.train: 0 complete, or asked to stop and resumable by the same command; 2 bad input, one
line each on standard error; 1 the work failed; 130 interrupted before there was anything to save.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.reinforce.config import GrpoConfig, check_layout
from pretrain.command.command_line import CommandLine, KeyOption
from pretrain.command.entry import run_entry
from pretrain.config.layout import Layout
from pretrain.plan.text import Row

COMMAND_LINE = CommandLine(
    schema=GrpoConfig,
    default_config=Path("configs/finetune/prosqa_hard_small_grpo.yaml"),
    program="deepspeed finetune/grpo.py",
    title="Teach a model by rewarding its right answers: GRPO on text, on loops and on latent thoughts.",
    examples="train.steps=100, rollout.group_size=16",
    plan="configuration, model, answers of a step and data",
    launch="Under deepspeed, pretrain.launch or srun the same command runs on all their ranks; alone, on one.",
    options=(
        KeyOption(
            option="--init",
            metavar="DIR",
            key="checkpoint.init_from",
            meaning="run whose answers are rewarded; the same as checkpoint.init_from=DIR",
        ),
    ),
)


def require_files(config: GrpoConfig) -> None:
    """Refuse a run to start from that is not there: told before torch is imported."""
    from pretrain.checkpoint.names import require_checkpoint

    require_checkpoint(Path(str(config.checkpoint.init_from)))


def plan(config: GrpoConfig, world_size: int) -> list[Row]:
    require_files(config)
    from finetune.reinforce.plan import plan_rows  # torch is imported only now: help and errors are quick

    return plan_rows(config, world_size)


def data_lines(config: GrpoConfig) -> Iterator[str]:
    from finetune.run.plan import describe_data

    return describe_data(config.data)


def run(config: GrpoConfig, layout: Layout) -> int:
    require_files(config)
    from finetune.reinforce.trainer import run

    return run(config, layout)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    return run_entry(COMMAND_LINE, argv, plan=plan, describe_data=data_lines, check_layout=check_layout, run=run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
