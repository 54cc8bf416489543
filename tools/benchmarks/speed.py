"""MFU of a training step of one GPU: 24⊗1 of the 1.5B family, 2,048 tokens, bf16, as it is, compiled, and with a
document mask. On a machine without a GPU a small model in fp32, of the peak that is measured: it shows that the
benchmark works.

Contenders come one after the other, each in a process of its own with all of the memory.
"""

import argparse
from functools import partial
from statistics import median

import torch
from benchmarks.measure import Row, Turns, add_rounds, row
from benchmarks.train import LARGE, LARGE_SEQ_LEN, SMALL
from benchmarks.turns import Turn, take_turns, training_step

from pretrain.device.hardware import measure_flops, peak_flops
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
    if torch.cuda.is_available():
        peak, name = peak_flops(torch.device("cuda"), torch.bfloat16), torch.cuda.get_device_name()
        if peak is None:
            raise ValueError(f"the peak of {name} is not known: pretrain/device/gpus.py")
        model, seq_len, batch, dtype, kinds = LARGE, LARGE_SEQ_LEN, args.speed_batch, torch.bfloat16, (False, True)
    else:
        model, seq_len, batch, dtype, kinds = SMALL, 256, 2, torch.float32, (False,)
        peak, name = measure_flops(torch.device("cpu"), dtype), "this machine, measured"
    flops, rows = batch * seq_len * train_flops_per_token(model, seq_len), []
    for compiled in kinds:
        for masked in (False, True):
            title = ", ".join(["compiled" if compiled else "eager", *(["document mask"] if masked else [])])
            contender = partial(make_step, model, seq_len, batch, dtype, compiled, masked)
            times = take_turns(title, {title: contender}, rounds, threads=None)
            if title in times:
                seconds = median(times[title])
                against = f"{peak / 1e12:.3g} TFLOP/s of {name}; {batch * seq_len / seconds:,.0f} tokens/s"
                target = TARGET if compiled and not masked else ""
                rows.append(row(f"speed: {title}: MFU", flops / seconds / peak, "of peak", target, against))
    return rows


def make_step(config: ModelSection, seq_len: int, batch: int, dtype: torch.dtype, compiled: bool, masked: bool) -> Turn:
    """Contender: seconds of a training step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LoopedGPT(config, seq_len)
    initialise(model, seed=0)
    model.to(device, dtype)
    if compiled:
        for layer in model.loop.values():
            layer.compile()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch, seq_len + 1), generator=generator).to(device)
    documents = torch.arange(seq_len, device=device).expand(batch, -1) // (seq_len // DOCUMENTS)
    segments = documents if masked else None

    def loss() -> torch.Tensor:
        states = model(tokens[:, :-1], segment_ids=segments)
        return loss_sums(model, states, tokens[:, 1:])[0] / (batch * seq_len)

    return training_step(model, loss)
