"""Pretrain a looped GPT from one configuration, on one process or on many.

    python -m pretrain.train --config configs/pretrain/<name>.yaml [a.b=c ...] [--dry-run]
    python -m pretrain.launch --ranks 2 -m pretrain.train --config configs/pretrain/<name>.yaml
    sbatch slurm/pretrain_looped.sh configs/pretrain/<name>.yaml

Exit code 0: the run is complete, or it was asked to stop and can be resumed by the same command (`state` in the run
directory says which). 2: bad input, one line each on standard error. 1: the work failed; 4: because a rank hung. 130:
interrupted before there was anything to save.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.command.command_line import CommandLine
from pretrain.command.entry import run_entry
from pretrain.config.layout import Layout, check_layout, reads_data
from pretrain.config.run import RunConfig
from pretrain.device.ranks import world_from_environment
from pretrain.plan.policy import choose_recompute, expected_room
from pretrain.plan.text import Row, plan_rows
from pretrain.schema.plugin import is_plugin

COMMAND_LINE = CommandLine(
    schema=RunConfig,
    default_config=Path("configs/pretrain/quickstart.yaml"),
    program="python -m pretrain.train",
    title="Pretrain a looped GPT.",
    examples="train.steps=100, 'validation.num_loops=[1, 2]'",
    plan="configuration, parameters, FLOPs, memory per rank, pipeline bubble and data",
    launch="Under pretrain.launch, torchrun or srun the same command runs on all their ranks.",
)


def plan(config: RunConfig, world_size: int) -> list[Row]:
    # numpy and a tokenizer's library, which help and errors do without
    from pretrain.data.stream.task_source import require_tasks

    require_tasks(config)
    if of_users := [hook.name for hook in config.train.hooks if is_plugin(hook.name)]:
        from pretrain.watch.registry import hook_class

        for name in of_users:
            hook_class(name)
    teacher, missing = None, []
    if config.train.teacher.run is not None:
        from pretrain.run.other_runs import saved_teacher  # torch, which reads checkpoints

        try:
            teacher = saved_teacher(config)
        except ValueError as error:  # where data are described too, that is refused after the plan
            missing = [("", f"without the teacher, which is not counted: {error}")]
    choice = choose_recompute(config, world_size, teacher, expected_room(config, world_size))
    chosen = [("recompute", choice.text)] if choice.text else []
    return [*plan_rows(choice.plan), *chosen, *missing]


def describe_data(config: RunConfig) -> Iterator[str]:
    from pretrain.data.extent import describe

    problems: list[str] = []
    try:
        yield from describe(config)
    except ValueError as error:
        problems.append(str(error))
    if config.checkpoint.init_from is not None or config.train.teacher.run is not None:
        from pretrain.run import other_runs  # torch, which reads checkpoints

        try:
            yield from other_runs.describe(config)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def require_files(config: RunConfig) -> None:
    """Refuse a tokenizer or shards that are not there: told before torch is imported, which takes seconds, by the ranks
    that will read them."""
    from pretrain.data.manifest import Manifest
    from pretrain.data.tokenizers.tokenizer import require_tokenizer_file

    require_tokenizer_file(config.data.tokenizer)
    for source in config.data.sources:
        if source.path is not None:
            Manifest.open(source.path)


def run(config: RunConfig, layout: Layout) -> int:
    if reads_data(config, layout.world_size, world_from_environment().rank):
        require_files(config)
    from pretrain.trainer import run  # torch is imported only now: help, plans and errors are quick

    return run(config, layout)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    return run_entry(COMMAND_LINE, argv, plan=plan, describe_data=describe_data, check_layout=check_layout, run=run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
