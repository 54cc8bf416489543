"""What looking at the loops costs a run: the hook `loop_diagnostics` at its own interval, as a share of step time.

The 8-layer run of `small_run.py` as 2⊗4, fp32. A call of the hook, with its own settings on full sequences of random
tokens, and a step of training in turns; the figure is the median over turns of call / (interval · step).
"""

import argparse
from statistics import median

import torch
from benchmarks.measure import Row, add_rounds, row, timed
from benchmarks.small_run import LR, SEPARATORS, one_rank, random_rows, small_run

from pretrain.config.layout import check_layout
from pretrain.config.run import RunConfig
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups
from pretrain.watch.hook import WatchedRun
from pretrain.watch.loop_diagnostics import LoopDiagnostics, LoopDiagnosticsParameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "diagnostics", 5)


def run(args: argparse.Namespace) -> list[Row]:
    sections = small_run("fp32").model_dump()
    sections["model"] |= {"num_loop_layers": 2, "num_loops": 4}
    sections["data"] |= {"tokenizer": "symbols:0123456789+=", "sources": [{"task": "addition"}]}  # replaced below
    config = RunConfig.model_validate(sections)
    with one_rank() as device:
        engine = Engine(config, make_groups(config.parallel, device), SEPARATORS)
        watched = WatchedRun(config=config, layout=check_layout(config, 1), engine=engine, step=0)
        hook = LoopDiagnostics(LoopDiagnosticsParameters(), watched)
        rows = random_rows(config)
        copies = -(-hook.parameters.num_sequences // len(rows))
        hook.batches = rows.repeat(copies, 1, 1)[: hook.parameters.num_sequences].split(len(rows))
        result = engine.train_step(rows, config.model.num_loops, LR)
        with torch.no_grad():
            hook.on_step(engine.model, result)
        shares, calls = [], []
        for _ in args.diagnostics_rounds.numbers():
            step = timed(engine.train_step, rows, config.model.num_loops, LR)
            with torch.no_grad():
                calls.append(timed(hook.on_step, engine.model, result) / step)
            shares.append(100 * calls[-1] / hook.every)
    return [
        row("loop_diagnostics: one call", median(calls), "steps"),
        row(f"loop_diagnostics: every {hook.every} steps, share of step time", median(shares), "%", "<= 2"),
    ]
