"""Fine-tune a model to reason in latent thoughts, on one process or on many.

    deepspeed finetune/coconut.py [--config configs/finetune/<name>.yaml] [--init runs/<name>] [a.b=c ...] [--dry-run]
    sbatch slurm/finetune_coconut.sh configs/finetune/<name>.yaml

Exit codes as those of pretrain.train: 0 complete, or asked to stop and resumable by the same command; 2 bad input, one
line each on standard error; 1 the work failed; 130 interrupted before there was anything to save.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.config import FinetuneConfig, check_layout
from pretrain.command.command_line import CommandLine, KeyOption
from pretrain.command.entry import run_entry
from pretrain.config.layout import Layout
from pretrain.plan.text import Row

COMMAND_LINE = CommandLine(
    schema=FinetuneConfig,
    default_config=Path("configs/finetune/prosqa_small.yaml"),
    program="deepspeed finetune/coconut.py",
    title="Fine-tune a model to reason in latent thoughts: Coconut, and the methods it is compared with.",
    examples="train.epochs=10, method.name=cot",
    plan="configuration, model, effective batch, stages and data",
    launch="Under deepspeed, pretrain.launch or srun the same command runs on all their ranks; alone, on one.",
    options=(
        KeyOption(
            option="--init",
            metavar="DIR",
            key="checkpoint.init_from",
            meaning="run whose weights training starts from; the same as checkpoint.init_from=DIR",
        ),
    ),
)


def require_files(config: FinetuneConfig) -> None:
    """Refuse a run to start from, or a tokenizer, that is not there: told before torch is imported."""
    from pretrain.checkpoint.names import require_checkpoint
    from pretrain.data.tokenizers.tokenizer import require_tokenizer_file

    if config.checkpoint.init_from is not None:
        require_checkpoint(Path(config.checkpoint.init_from))
    if config.data.tokenizer is not None:
        require_tokenizer_file(config.data.tokenizer)


def plan(config: FinetuneConfig, world_size: int) -> list[Row]:
    require_files(config)
    from finetune.run.plan import plan_rows  # torch is imported only now: help and errors are quick

    return plan_rows(config, world_size)


def data_lines(config: FinetuneConfig) -> Iterator[str]:
    from finetune.run.plan import describe_data

    return describe_data(config.data)


def run(config: FinetuneConfig, layout: Layout) -> int:
    require_files(config)
    from finetune.trainer import run

    return run(config, layout)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    return run_entry(COMMAND_LINE, argv, plan=plan, describe_data=data_lines, check_layout=check_layout, run=run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
