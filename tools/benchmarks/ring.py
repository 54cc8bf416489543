"""Idle share of pipeline ranks: the ring compared with its formula and with plain 1F1B of the same depth.

Idle share = 1 - (computing time / step time), averaged over the ranks; computing time = CPU time of the rank's thread +
time sleeping in layers. The rest is waiting for messages, which takes no CPU time. Formulas, for P stages, L loops and
M micro-batches:

    ring, k⊗L:                 (P-1) / (L·M + P-1)
    1F1B, k·L separate layers: (P-1) / (M + P-1)

1. Each layout runs under pretrain.launch, one thread per rank, with the training engine.
2. "real" layers compute. They need one core per rank, so layouts with more ranks than cores are skipped.
3. "timed" layers are tiny and also sleep, `LAYER_S` forward and twice as long backward, like a rank whose GPU computes.
   They run on any machine and show only the schedule and its messages.

Each figure is the median of --ring-rounds steps.
"""

import argparse
import json
import os
import sys
import time
from statistics import median

import torch
import torch.distributed as dist
from benchmarks.measure import Row, add_rounds, answer_of_ranks, row, timed
from torch import nn

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups, start_world

NUM_LAYERS, NUM_LOOPS, NUM_MICRO_BATCHES = 4, 4, 4
LAYER_S = 0.050
SHAPES = {
    "real": {"hidden_size": 512, "num_attention_heads": 8, "ffn_size": 1408},
    "timed": {"hidden_size": 16, "num_attention_heads": 2, "ffn_size": 32},
}
SEQ_LEN = {"real": 512, "timed": 8}
VOCAB_SIZE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "ring", 3, "steps")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure; raises an OSError that ends with the last line of the ranks' output if a layout fails."""
    cores = os.cpu_count() or 1
    layouts = [(stages, layers) for stages in (2, 4) for layers in SHAPES if layers == "timed" or stages <= cores]
    return [figure for stages, layers in layouts for figure in _measure(stages, layers, args.ring_rounds.count)]


def _measure(num_stages: int, layers: str, num_rounds: int) -> list[Row]:
    rows: list[Row] = []
    for name, num_loops, formula in (
        (f"ring {NUM_LAYERS}⊗{NUM_LOOPS}", NUM_LOOPS, "(P-1)/(L·M+P-1)"),
        (f"1F1B {NUM_LAYERS * NUM_LOOPS}⊗1", 1, "(P-1)/(M+P-1)"),
    ):
        words = (str(num_loops), layers, str(num_rounds))
        share = float(answer_of_ranks(num_stages, "benchmarks.ring", *words))
        expected = (num_stages - 1) / (num_loops * NUM_MICRO_BATCHES + num_stages - 1)
        title = f"idle share, {name}, PP={num_stages}, M={NUM_MICRO_BATCHES}, {layers} layers"
        rows.append(row(title, round(100 * share, 1), "%", f"{100 * expected:.1f}", formula))
    return rows


class _Sleep:
    """Sleeps after a layer's passes and adds up the time slept."""

    def __init__(self, layer: nn.Module, seconds: float) -> None:
        self.slept = 0.0
        layer.register_forward_hook(lambda *_: self._sleep(seconds))
        layer.register_full_backward_hook(lambda *_: self._sleep(2 * seconds))

    def _sleep(self, seconds: float) -> None:
        self.slept += timed(time.sleep, seconds)


def _rank(num_loops: int, layers: str, num_rounds: int) -> None:
    """Run one rank of a layout; rank 0 prints the idle share."""
    device = start_world()
    num_stages = dist.get_world_size()
    model = SHAPES[layers] | {"vocab_size": VOCAB_SIZE, "num_loop_layers": NUM_LAYERS * NUM_LOOPS // num_loops}
    train = {"seq_len": SEQ_LEN[layers], "micro_batch": 1, "global_batch": NUM_MICRO_BATCHES, "precision": "fp32"}
    config = RunConfig.model_validate({"model": model, "parallel": {"pipeline": num_stages}, "train": train})
    engine = Engine(config, make_groups(config.parallel, device), Separators(bos_id=1, eos_id=2))
    sleeps = [_Sleep(layer, LAYER_S) for layer in engine.model.loop.values()] if layers == "timed" else []
    shape, generator = (NUM_MICRO_BATCHES, 2, SEQ_LEN[layers]), torch.Generator().manual_seed(0)
    samples = torch.randint(2, VOCAB_SIZE, shape, generator=generator)
    micro_batches = engine.split_rows(samples)
    num_supervised = torch.tensor(float(NUM_MICRO_BATCHES * SEQ_LEN[layers]))
    shares = []
    for _ in range(num_rounds + 1):
        for sleep in sleeps:
            sleep.slept = 0.0
        dist.barrier()
        started, started_cpu = time.perf_counter(), time.thread_time()
        engine.ring.run(micro_batches, num_loops, num_supervised=num_supervised)
        computing = time.thread_time() - started_cpu + sum(sleep.slept for sleep in sleeps)
        dist.barrier()
        busy = torch.tensor(computing / (time.perf_counter() - started))
        dist.all_reduce(busy)
        shares.append(1 - busy.item() / num_stages)
    if dist.get_rank() == 0:
        print(json.dumps(median(shares[1:])))
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
