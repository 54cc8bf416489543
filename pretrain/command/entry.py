"""The main function of an entry point that every rank runs, alone, under torchrun, deepspeed or srun."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat

from pretrain.command.command_line import CommandLine, Config
from pretrain.command.console import (
    BAD_INPUT,
    INTERRUPTED,
    RunFailed,
    exit_code,
    interruptible,
    print_error,
    print_line,
    printing,
)
from pretrain.config.layout import Layout
from pretrain.device.ranks import planned_world_size, world_from_environment
from pretrain.plan.text import Row, line_of, render

ALONE_AFTER_S = 10.0
"""A rank that still lives so long after it found bad input is alone with it: launchers end all ranks with the first."""


def require_one_process(what: str) -> None:
    """Raise a ValueError if a launcher started several ranks for `what`, which one process does. Rank 0 says so, and
    its end ends the others."""
    world = world_from_environment()
    if world.size > 1:
        time.sleep(ALONE_AFTER_S if world.rank else 0)
        raise ValueError(
            f"{what} works in one process, and {world.size} were started: start it alone, without pretrain.launch, "
            "torchrun or srun"
        )


def run_entry(
    command_line: CommandLine[Config],
    argv: Sequence[str],
    *,
    plan: Callable[[Config, int], Iterable[Row]],
    describe_data: Callable[[Config], Iterable[str]],
    check_layout: Callable[[Config, int], Layout],
    run: Callable[[Config, Layout], int],
) -> int:
    """Do what a command line asks for: print the plan, or work on the ranks of this world.

    Args:
        command_line: how to read the arguments.
        argv: the arguments, without the program's name.
        plan: rows of the dry run for a number of ranks.
        describe_data: what the dry run says of the data; a ValueError says, after that, what is missing.
        check_layout: how a configuration lies on a number of ranks.
        run: the work; returns the exit code.

    Returns:
        The exit code, as `run_command`. Bad input that every rank finds is told by rank 0, whose end ends the others;
        what only another rank finds, such as a file that its machine does not see, by that rank a moment later.
    """
    rank, who = 0, ""
    try:
        try:
            world = world_from_environment()
            rank, who = world.rank, f"rank {world.rank}: " if world.size > 1 else ""
            command = command_line.parse(argv)
            config = command.config
            if command.dry_run:
                rows = plan(config, command.world_size or planned_world_size(config.ranks_per_replica))
                with printing():
                    print(render(config, [*rows, ("run directory", str(config.run.directory))]), end="")
                if not command.without_data:
                    with printing():
                        for name, text in zip(chain(["data"], repeat("")), describe_data(config), strict=False):
                            print(line_of(name, text), flush=True)
                return 0
            layout = check_layout(config, world.size)
            if rank == 0:
                ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
                print_line(f"{config.run.directory}: {ranks}, loading")
            with interruptible():
                return run(config, layout)
        except (ValueError, OSError, ImportError, MemoryError, RunFailed) as error:
            code = exit_code(error)
            is_bad_input = code == BAD_INPUT
            time.sleep(ALONE_AFTER_S if rank and is_bad_input else 0)
            print_error(error, "" if rank == 0 and is_bad_input else who)
            return code
    except KeyboardInterrupt:
        print(f"{who}interrupted", file=sys.stderr)
        return INTERRUPTED
