"""Find the fastest layouts of a run on a number of GPUs, before there are any.

    python -m pretrain.plan --config configs/pretrain/<name>.yaml --gpus 64 --gpu h100 [--nodes 8] [a.b=c ...]

Tries tensor, pipeline and data parallelism, micro-batch and recomputation, and prints the ten fastest that fit: memory
of the fullest rank, FLOPs, bytes over NVLink and network, how many of them are hidden behind computation, idle share,
step time, MFU, days, GPU hours, what limits each, and the command that submits it. With several numbers (--gpus
8,64,1024) a Markdown table: the best layout of each, beside an unlooped model of the same depth in the same layout.
With --gpu cpu the ranks are of this machine, where the pieces of a step are measured first, for a minute or so.

The model is stated and checked in `slurm/README.md`. Exit code 0; 2: bad input, or nothing fits.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from tqdm import tqdm

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser, counts, positive
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.plan.machine import CPU, GPUS, USABLE, Gpu, find_gpu
from pretrain.plan.search import Estimate, Savings, cuts, estimates, fastest, savings, smallest
from pretrain.plan.table import best_lines, table_lines
from pretrain.plan.text import GIB
from pretrain.schema.section import first_problem, require_divides

NUM_SHOWN = 10
MOST_GPUS = 100_000


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends with exit code 2 where it is malformed."""
    parser = OptionParser(
        prog="python -m pretrain.plan", description="Find the fastest layouts of a run on a number of GPUs.",
        epilog="Keys: python -m pretrain.train --help.",
    )  # fmt: skip
    option = parser.add_argument
    option("--config", type=Path, required=True, metavar="FILE", help="of the run")
    option("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a value of the file")
    several = "GPUs of the run; several numbers, 8,64,1024, give a table of the best of each"
    option("--gpus", type=counts(1), required=True, metavar="N", help=several)
    names = ", ".join([*GPUS, CPU])
    option("--gpu", default="h100", metavar="NAME", help=f"one of {names}, this machine; default: h100")
    option("--nodes", type=positive, metavar="N", help="machines that --gpus are in; default: nodes of eight")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    return run_command(partial(_plan, parse(argv)))


def _plan(options: argparse.Namespace) -> None:
    config = read_config(options.config, RunConfig, options.overrides)
    if options.gpu != CPU:
        find_gpu(options.gpu)  # a name that is none, before what a card can do
        if (precision := config.train.precision) != "bf16":
            raise ValueError(
                f"train.precision={precision}: the planner knows GPUs in bf16 alone: add train.precision=bf16, or "
                f"--gpu {CPU} for this machine"
            )
    if max(options.gpus) > MOST_GPUS:
        raise ValueError(f"--gpus {max(options.gpus)}: at most {MOST_GPUS:,}")
    teacher = None
    if config.train.teacher.run is not None:
        from pretrain.run.other_runs import saved_teacher  # torch, which reads checkpoints

        teacher = saved_teacher(config)
    if len(options.gpus) == 1:
        (gpus,) = options.gpus
        gpu = _in_nodes(_find(options.gpu, config, gpus), gpus, options.nodes)
        tried = _estimates(config, gpus, gpu, teacher)
        found = fastest(tried, gpu)[:NUM_SHOWN]
        if not found:
            raise ValueError(
                f"--gpus {gpus}: {_too_large(tried, gpu)}: more GPUs, a larger card or a shorter train.seq_len"
            )
        for line in best_lines(found, options.config, options.overrides, gpu, len(tried)):
            print(line)
        return
    if options.gpu == CPU:
        raise ValueError(f"--gpu {CPU} goes with one number of --gpus, the ranks of this machine")
    if options.nodes is not None:
        raise ValueError("--nodes goes with one number of --gpus: a table is of nodes of eight")
    if config.model.num_loops == 1:
        raise ValueError("model.num_loops=1: the table of several --gpus is of what loops save; give one number")
    for line in table_lines([(gpus, _saved(config, gpus, find_gpu(options.gpu), teacher)) for gpus in options.gpus]):
        print(line)


def _find(name: str, config: RunConfig, ranks: int) -> Gpu:
    """A card by its name, or this machine."""
    if name != CPU:
        return find_gpu(name)
    from pretrain.plan.measured import measured_machine  # torch, which is what is measured

    return measured_machine(config, ranks)


def _in_nodes(gpu: Gpu, gpus: int, nodes: int | None) -> Gpu:
    """The card, as many in a node as there are."""
    if nodes is None:
        nodes = -(-gpus // gpu.per_node)
    require_divides("--gpus", gpus, "--nodes", nodes)
    return replace(gpu, per_node=gpus // nodes)


def _estimates(config: RunConfig, gpus: int, gpu: Gpu, teacher: SavedModel | None) -> list[Estimate]:
    """All layouts that can be, with progress on a terminal where that takes long."""
    refused, found = "", []
    for cut in tqdm(list(cuts(config, gpus, gpu)), desc="layouts", unit="", disable=None, delay=1, leave=False):
        try:
            found += estimates(config, cut, gpus, gpu, teacher)
        except ValueError as error:
            refused = refused or (first_problem(error) if isinstance(error, ValidationError) else str(error))
    if not found:
        raise ValueError(f"--gpus {gpus}: no layout can be: {refused}")
    return found


def _saved(config: RunConfig, gpus: int, gpu: Gpu, teacher: SavedModel | None) -> Savings | str:
    """The best on so many GPUs beside an unlooped model, or why there is none."""
    gpu = _in_nodes(gpu, gpus, None)
    tried = _estimates(config, gpus, gpu, teacher)
    found = fastest(tried, gpu)
    return savings(found[0], gpu) if found else _too_large(tried, gpu)


def _too_large(tried: list[Estimate], gpu: Gpu) -> str:
    least, room = smallest(tried), USABLE * gpu.memory / GIB
    return f"no layout fits, the smallest needs {least.memory / GIB:,.1f} GiB on a rank of {room:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
