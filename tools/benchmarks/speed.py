"""MFU of a training step of one GPU: 24⊗1 of the 1.5B family, 2,048 tokens, bf16, as it is, compiled, and with a
document mask. On a machine without a GPU tokens a second of a small model in fp32: it shows that the benchmark works.

Contenders come one after the other, each in a process of its own with all of the memory.
"""

import argparse
from functools import partial
from statistics import median

import torch
from benchmarks.measure import Row, Turns, add_rounds, row
from benchmarks.train import LARGE, LARGE_SEQ_LEN, SMALL
from benchmarks.turns import Turn, take_turns, training_step

from pretrain.device.hardware import peak_flops
from pretrain.model.config import ModelSection
from pretrain.model.count import train_flops_per_token
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loss import loss_sums

TARGET = ">= 0.50"
DOCUMENTS = 8
"""Of a sequence with a mask, all equally long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "speed", 5)
    parser.add_argument("--speed-batch", type=int, default=8, help="sequences of a step on a GPU (default: 8)")


def run(args: argparse.Namespace) -> list[Row]:
    rounds: Turns = args.speed_rounds
    model, seq_len, batch, dtype, kinds, peak = SMALL, 256, 2, torch.float32, (False,), None
    if torch.cuda.is_available():
        model, seq_len, batch, dtype, kinds = LARGE, LARGE_SEQ_LEN, args.speed_batch, torch.bfloat16, (False, True)
        peak = peak_flops(torch.device("cuda"), dtype)
    flops, rows = batch * seq_len * train_flops_per_token(model, seq_len), []
    for compiled in kinds:
        for masked in (False, True):
            title = ", ".join(["compiled" if compiled else "eager", *(["document mask"] if masked else [])])
            contender = partial(make_step, model, seq_len, batch, dtype, compiled, masked)
            times = take_turns(title, {title: contender}, rounds, threads=None)
            if title not in times:
                continue
            seconds = median(times[title])
            rows.append(row(f"speed: {title}: tokens", batch * seq_len / seconds, "a second"))
            if peak is not None:
                against, target = f"{peak / 1e12:.4g} TFLOP/s", TARGET if compiled and not masked else ""
                rows.append(row(f"speed: {title}: MFU", flops / seconds / peak, "of peak", target, against))
    return rows


def make_step(config: ModelSection, seq_len: int, batch: int, dtype: torch.dtype, compiled: bool, masked: bool) -> Turn:
    """Contender: seconds of a training step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LoopedGPT(config, seq_len)
    initialise(model, seed=0)
    model.to(device, dtype)
    if compiled:
        model.compile_layers()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch, seq_len + 1), generator=generator).to(device)
    documents = torch.arange(seq_len, device=device).expand(batch, -1) // (seq_len // DOCUMENTS)
    segments = documents if masked else None

    def loss() -> torch.Tensor:
        states = model(tokens[:, :-1], segment_ids=segments)
        return loss_sums(model, states, tokens[:, 1:])[0] / (batch * seq_len)

    return training_step(model, loss)
