"""What drawn loop counts and truncated back-propagation save in training: a 2⊗8 model of width 256 whose every loop
reads the prelude, on one rank with one thread, fp32.

1. Every sequence of a batch of 16 draws its own count, eight in the mean up to 32, and leaves the batch after it;
   against the same draws with all sequences run to the batch's largest count, and with all run to the batch's mean,
   which is what such a batch costs if leaving it costs nothing.
2. Gradients through the last two of eight loops against gradients through all: time, and peak growth of the resident
   set over the built model, as the memory of steps.

Times are of the processor, medians of ratios within a round, each round with draws of its own.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from benchmarks.measure import Row, add_rounds, row
from benchmarks.small_run import LR, SEPARATORS, random_rows
from benchmarks.turns import Turn, make_memory, median_ratio, take_turns

from pretrain.config.run import RunConfig
from pretrain.device.host_memory import keep_freed_memory
from pretrain.optim.loop_count import step_loops
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups, start_world

BATCH, LOOPS, BACKPROP = 16, 8, 2
MODEL = {
    "vocab_size": 512, "hidden_size": 256, "num_attention_heads": 4, "ffn_size": 704, "num_prelude_layers": 1,
    "num_loop_layers": 2, "num_loops": LOOPS, "tied_head": True, "loop": {"injection": "concat"},
}  # fmt: skip
SAMPLING = {"distribution": "poisson_lognormal", "maximum": 4 * LOOPS, "per": "sequence"}
TRAIN = {"seq_len": 128, "micro_batch": BATCH, "global_batch": BATCH, "loop_sampling": SAMPLING}
CONFIG = RunConfig.model_validate({"model": MODEL, "train": TRAIN})
Counts = Sequence[int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "loops", 7)


def run(args: argparse.Namespace) -> list[Row]:
    rounds = args.loops_rounds
    drawn = [draws(1 + turn) for turn in range(rounds.count)]  # 0 is the warm-up
    wanted = median(BATCH * max(counts) / sum(counts) for counts in drawn)
    makers = {
        "own": partial(make_step, draws),
        "largest": partial(make_step, largest),
        "mean": partial(make_step, mean),
    }
    counts = take_turns("counts of its own", makers, rounds, threads=1, num_warm_up=1)
    steps = {"all": partial(make_step, fixed), "last": partial(make_step, fixed, BACKPROP)}
    seconds = take_turns("gradients of the last loops", steps, rounds, threads=1, num_warm_up=1)
    growths = {name: partial(make_memory, partial(step, keeps=False)) for name, step in steps.items()}
    memory = take_turns("memory", growths, rounds, threads=1, num_warm_up=1)
    against = f"all to the largest; the loops alone: {wanted:.2f}x"
    through = f"through all {LOOPS}"
    return [
        row("loops: counts of its own: speed", median_ratio(counts["largest"], counts["own"]), "x", "", against),
        row("loops: counts of its own: time", median_ratio(counts["own"], counts["mean"]), "x", "", "all to the mean"),
        row(f"loops: last {BACKPROP}: time", median_ratio(seconds["last"], seconds["all"]), "x", "", through),
        row(f"loops: last {BACKPROP}: memory", median_ratio(memory["last"], memory["all"]), "x", "", through),
    ]


def draws(turn: int) -> Counts:
    """Loop counts of the sequences of a turn's batch."""
    return step_loops(CONFIG.model, CONFIG.train, 0, turn, turn * BATCH).counts


def largest(turn: int) -> Counts:
    return [max(draws(turn))] * BATCH


def mean(turn: int) -> Counts:
    return [round(sum(draws(turn)) / BATCH)] * BATCH


def fixed(_: int) -> Counts:
    return [LOOPS] * BATCH


def make_step(counts_of: Callable[[int], Counts], backprop_loops: int | None = None, *, keeps: bool = True) -> Turn:
    """Contender: seconds of the processor of our training step."""
    if keeps:
        keep_freed_memory()
    engine, rows = Engine(CONFIG, make_groups(CONFIG.parallel, start_world()), SEPARATORS), random_rows(CONFIG)
    turns = itertools.count()

    def turn() -> float:
        counts, started = counts_of(next(turns)), time.process_time()
        engine.train_step(rows, counts, LR, backprop_loops=backprop_loops)
        return time.process_time() - started

    return turn
