"""Overhead of the parallel engine on one rank, compared with a bare torch loop of the same model.

The bare loop does only what a step requires: forward and backward of each micro-batch, clipping, fused AdamW, and fp32
master weights for bf16. Both train the same model on the same micro-batches, in turns that alternate which one is
first. The overhead is the median over turns of engine time / bare time, minus 1.
"""

import argparse
import time
from statistics import median

import torch
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
    parser.add_argument("--engine-rounds", type=int, default=9, help="turns, of which the median is taken (default: 9)")


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    with one_rank() as device:
        return [
            row for precision in ("fp32", "bf16") for row in _measure(small_run(precision), device, args.engine_rounds)
        ]


def _measure(config: RunConfig, device: torch.device, num_rounds: int) -> list[dict[str, object]]:
    engine = Engine(config, make_groups(config.parallel, device), SEPARATORS)
    bare = _BareLoop(config, device)
    rows = random_rows(config)
    losses = engine.train_step(rows, 1, LR).loss, bare.train_step(rows, LR)  # warm-up, and check that both are the same
    assert abs(losses[0] - losses[1]) < 1e-2 * losses[1], (
        f"engine and bare loop do not train the same model: losses {losses}"
    )
    times: dict[str, list[float]] = {"engine": [], "bare": []}
    for turn in range(num_rounds):
        for name in ("engine", "bare") if turn % 2 else ("bare", "engine"):
            started = time.perf_counter()
            if name == "engine":
                engine.train_step(rows, 1, LR)
            else:
                bare.train_step(rows, LR)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    overhead = median(mine / theirs for mine, theirs in zip(times["engine"], times["bare"], strict=True)) - 1
    precision = config.train.precision
    return [
        {
            "name": f"engine overhead, {precision}",
            "value": round(100 * overhead, 2),
            "unit": "% of a step",
            "target": f"<= {TARGET_PCT:g}",
            "against": "bare torch loop, same model and micro-batches",
        },
        {
            "name": f"engine step, {precision}",
            "value": round(median(times["engine"]), 4),
            "unit": "s",
            "target": None,
            "against": None,
        },
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
        masters = (
            [nn.Parameter(weight.detach().float()) for weight in self.weights]
            if self.has_masters
            else list(self.model.parameters())
        )
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
