"""Attention within documents against attention over the whole sequence, both causal, forward and backward: 2,048 tokens
in documents of 256, whose cost is the sum of the squares of their lengths.

One thread and times of the processor, on which others that use the machine show little; ratios within a turn.
"""

import argparse
import time
from statistics import median

import torch
from benchmarks.measure import Row, add_rounds, row

from pretrain.model.kernels.documents import Documents
from pretrain.model.layers import attend

HEADS, HEAD_DIM, SEQ_LEN, DOCUMENT = 8, 64, 2048, 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "attention", 7)


def run(args: argparse.Namespace) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    inputs = [torch.randn(1, HEADS, SEQ_LEN, HEAD_DIM, requires_grad=True) for _ in range(3)]
    documents, ratios = Documents.of((torch.arange(SEQ_LEN) // DOCUMENT * DOCUMENT)[None]), list[float]()
    for turn in args.attention_rounds.numbers(warm_up=1):
        whole, within = _seconds(inputs, None), _seconds(inputs, documents)
        if turn:
            ratios.append(whole / within)
    torch.set_num_threads(threads)
    what = f"attention: {SEQ_LEN:,} tokens in documents of {DOCUMENT}: speed"
    return [row(what, median(ratios), "x", ">= 3", "the whole sequence as one")]


def _seconds(inputs: list[torch.Tensor], documents: Documents | None) -> float:
    """Of attention and its gradients."""
    queries, keys, values = inputs
    started = time.process_time()
    mixed = attend(queries, keys, values, None, documents=documents)
    torch.autograd.grad(mixed, inputs, torch.ones_like(mixed))
    return time.process_time() - started
