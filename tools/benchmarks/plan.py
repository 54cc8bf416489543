"""The planner's step time on a CPU beside the engine's: one rank with one thread, looped and not, in several sizes,
ways to recompute and precisions; and two ranks, if there are two cores, in each way to split the work.

Both are times of the processor, on which others that use the machine show little: the plan measures the pieces of a
step (`pretrain/plan/measured.py`) before and after the engine takes whole ones, and the mean of the two is compared. Of
two ranks it is the time of the busier, so what a stage waits for the other is in neither (`tools/bench.py ring` has
that); what gloo's threads take, also while they wait, is in what is measured.
"""

import argparse
import json
import os
import sys
import time
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.measure import Row, Turns, add_rounds, answer_of_ranks, row
from benchmarks.small_run import LR, SEPARATORS, one_rank, random_rows

from pretrain.config.run import RunConfig
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups, start_world
from pretrain.plan.measured import measured_machine
from pretrain.plan.search import estimate

TARGET = "0.9 to 1.1"
SHAPE = {"vocab_size": 4096, "hidden_size": 256, "num_attention_heads": 4, "ffn_size": 704}
TRAIN = {"seq_len": 256, "micro_batch": 2, "global_batch": 4, "precision": "fp32"}
LOOPED: dict[str, Any] = {"num_loop_layers": 2, "num_loops": 4}
SMALL: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4, "ffn_size": 352, **LOOPED}
ENDS: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, **LOOPED}
WAYS = ("selective", "layer", "loop", "segment")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "8⊗1, fp32": ({"num_loop_layers": 8}, {}),
    "2⊗4, fp32": (LOOPED, {}),
    "2⊗4, bf16": (LOOPED, {"precision": "bf16"}),
    **{f"2⊗4, fp32, recompute {way}": (LOOPED, {"recompute": way}) for way in WAYS},
    "2⊗4 of width 128, fp32": (SMALL, {"seq_len": 128, "micro_batch": 8, "global_batch": 32}),
    "1-2⊗4-1 at 1,024 tokens, fp32": (ENDS, {"seq_len": 1024, "micro_batch": 1, "global_batch": 1}),
}

ONE: dict[str, Any] = {"micro_batch": 1}
SPLITS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    f"{name}, {way}": (model, train, parallel)
    for name, model in (("8⊗1", {"num_loop_layers": 8}), ("2⊗4", LOOPED))
    for way, train, parallel in (
        ("data 2", {}, {}),
        ("pipeline 2", ONE, {"pipeline": 2}),
        ("tensor 2", {}, {"tensor": 2}),
        ("tensor 2, sequence", {}, {"tensor": 2, "sequence": True}),
    )
}
"""On two ranks, in fp32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "plan", 5)


def run(args: argparse.Namespace) -> list[Row]:
    """Measure; raises an OSError that ends with the last line of the ranks' output if a layout fails."""
    if torch.cuda.is_available():
        return []
    with one_rank() as device:
        rows = [_measure(name, _config(*case), device, args.plan_rounds) for name, case in CASES.items()]
    if (os.cpu_count() or 1) < 2:
        return rows
    return rows + [_measure_two(name, args.plan_rounds.count) for name in SPLITS]


def _config(model: dict[str, Any], train: dict[str, Any], parallel: dict[str, Any] | None = None) -> RunConfig:
    return RunConfig.model_validate({"model": SHAPE | model, "train": TRAIN | train, "parallel": parallel or {}})


def _planned(config: RunConfig, num_ranks: int) -> float:
    """Seconds of a step on the busiest rank, of pieces measured now."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cost = estimate(config, num_ranks, measured_machine(config, num_ranks)).cost
    torch.set_num_threads(threads)
    return cost.seconds - cost.times.idle


def _measure(name: str, config: RunConfig, device: torch.device, rounds: Turns) -> Row:
    before = _planned(config, 1)
    taken = _step_times(config, device, rounds)
    return _row(name, mean((before, _planned(config, 1))), taken)


def _measure_two(name: str, num_rounds: int) -> Row:
    config = _config(*SPLITS[name])
    before = _planned(config, 2)
    taken = float(answer_of_ranks(2, "benchmarks.plan", name, str(num_rounds)))
    return _row(name, mean((before, _planned(config, 2))), taken)


def _row(name: str, planned: float, taken: float) -> Row:
    return row(f"plan: {name}: step time", planned / taken, "x", TARGET, f"measured, {taken:.3f} s")


def _step_times(config: RunConfig, device: torch.device, rounds: Turns) -> float:
    """Seconds of the processor that this rank takes for a step, a median."""
    torch.set_num_threads(1)
    groups = make_groups(config.parallel, device)
    engine, loops = Engine(config, groups, SEPARATORS), config.model.num_loops
    rows, times = random_rows(config).chunk(groups.data.size())[groups.data.rank()], list[float]()
    for turn in rounds.numbers(warm_up=2):
        dist.barrier()
        started = time.process_time()
        engine.train_step(rows, loops, LR)
        if turn > 1:
            times.append(time.process_time() - started)
    return median(times)


def _rank(name: str, num_rounds: str) -> None:
    """Run one rank of a layout; rank 0 prints the time of the busier."""
    taken = torch.tensor(_step_times(_config(*SPLITS[name]), start_world(), Turns(num_rounds)))
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print(json.dumps(taken.item()))
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(*sys.argv[1:])
