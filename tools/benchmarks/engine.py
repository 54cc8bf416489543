"""Overhead of the parallel engine on one rank, compared with a bare torch loop of the same model.

The bare loop does only what a step requires: forward and backward of each micro-batch, clipping, fused AdamW, and fp32
master weights for bf16. Both train the same model on the same micro-batches, in turns that alternate which one is
first. The overhead is the median over turns of engine time / bare time, minus 1.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from benchmarks.measure import Row, Turns, add_rounds, row, timed
from benchmarks.small_run import LR, SEPARATORS, one_rank, random_rows, small_run
from torch import Tensor, nn

from pretrain.config.run import RunConfig
from pretrain.data.stream.batch import make_inputs
from pretrain.data.stream.labels import IGNORED
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loss import loss_sums
from pretrain.optim.make import make_optimizer, parameter_groups, set_lr
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups

TARGET_PCT = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "engine", 9)


def run(args: argparse.Namespace) -> list[Row]:
    with one_rank() as device:
        configs = [small_run(precision) for precision in ("fp32", "bf16")]
        return [figure for config in configs for figure in _measure(config, device, args.engine_rounds)]


def _measure(config: RunConfig, device: torch.device, rounds: Turns) -> list[Row]:
    engine = Engine(config, make_groups(config.parallel, device), SEPARATORS)
    bare = _BareLoop(config, device)
    rows = random_rows(config)
    ours, theirs = engine.train_step(rows, 1, LR).loss, bare.train_step(rows, LR)  # warm-up
    assert abs(ours - theirs) < 1e-2 * theirs, f"engine and bare loop do not train the same model: {ours}, {theirs}"
    steps: dict[str, Callable[[], object]] = {
        "engine": lambda: engine.train_step(rows, 1, LR), "bare": lambda: bare.train_step(rows, LR)
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in steps}

    def take_step(name: str) -> None:
        steps[name]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for turn in rounds.numbers():
        for name in ("engine", "bare") if turn % 2 else ("bare", "engine"):
            times[name].append(timed(take_step, name))
    overhead = median(mine / theirs for mine, theirs in zip(times["engine"], times["bare"], strict=True)) - 1
    precision, reference = config.train.precision, "bare torch loop, same model and micro-batches"
    share, seconds = round(100 * overhead, 2), round(median(times["engine"]), 4)
    return [
        row(f"engine overhead, {precision}", share, "% of a step", f"<= {TARGET_PCT:g}", reference),
        row(f"engine step, {precision}", seconds, "s"),
    ]


class _BareLoop:
    """A plain training loop for one device."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config = config
        self.model = LoopedGPT(config.model, config.train.seq_len)
        initialise(self.model, config.run.seed)
        self.model.to(device, DTYPES[config.train.precision])
        self.weights: list[Tensor] = list(self.model.parameters())
        names = [name for name, _ in self.model.named_parameters()]
        self.has_masters = config.train.precision == "bf16"
        masters = list(self.model.parameters())
        if self.has_masters:
            masters = [nn.Parameter(weight.detach().float()) for weight in masters]
        self.masters: list[Tensor] = [*masters]
        groups = parameter_groups(zip(names, masters, strict=True), self.model.weights, config.optimizer)
        self.optimizer = make_optimizer(groups, config.optimizer)
        self.device = device

    def train_step(self, rows: Tensor, lr: float) -> float:
        """Update once; returns the mean loss per supervised token."""
        parts = rows.to(self.device).split(self.config.train.micro_batch)
        micro_batches = [make_inputs(part, SEPARATORS.bos_id, False) for part in parts]
        num_supervised = sum(int((inputs.labels != IGNORED).sum()) for inputs in micro_batches)
        nll = torch.zeros((), device=self.device)
        for weight in self.weights:
            weight.grad = None
        for inputs in micro_batches:
            total, part = loss_sums(self.model, self.model(inputs.tokens), inputs.labels)
            (total / num_supervised).backward()
            nll += part
        if self.has_masters:
            for master, weight in zip(self.masters, self.weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
        nn.utils.clip_grad_norm_(self.masters, self.config.optimizer.clip_grad_norm)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        if self.has_masters:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)  # type: ignore[attr-defined]
        return nll.item() / num_supervised
