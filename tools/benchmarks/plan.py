"""The planner's step time on a CPU beside the engine's: one rank with one thread, looped and not, in several sizes,
ways to recompute and precisions.

Both are times of the processor, on which others that use the machine show little: the plan measures the pieces of a
step (`pretrain/plan/measured.py`), then the engine takes whole ones.
"""

import argparse
import time
from statistics import median
from typing import Any

import torch
from benchmarks.measure import Row, Turns, add_rounds, row
from benchmarks.small_run import LR, SEPARATORS, one_rank, random_rows

from pretrain.config.run import RunConfig
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups
from pretrain.plan.machine import Gpu
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "plan", 5)


def run(args: argparse.Namespace) -> list[Row]:
    if torch.cuda.is_available():
        return []
    with one_rank() as device:
        torch.set_num_threads(1)
        precisions = ("fp32", "bf16")
        machines = {each: measured_machine(_config({}, {"precision": each}), 1) for each in precisions}
        return [_measure(name, _config(*case), machines, device, args.plan_rounds) for name, case in CASES.items()]


def _config(model: dict[str, Any], train: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate({"model": SHAPE | model, "train": TRAIN | train})


def _measure(name: str, config: RunConfig, machines: dict[str, Gpu], device: torch.device, rounds: Turns) -> Row:
    planned = estimate(config, 1, machines[config.train.precision]).cost.seconds
    engine, rows = Engine(config, make_groups(config.parallel, device), SEPARATORS), random_rows(config)
    loops, times = config.model.num_loops, list[float]()
    for turn in rounds.numbers(warm_up=2):
        started = time.process_time()
        engine.train_step(rows, loops, LR)
        if turn > 1:
            times.append(time.process_time() - started)
    return row(f"plan: {name}: step time", planned / median(times), "x", TARGET, f"measured, {median(times):.3f} s")
