"""Idle share of pipeline ranks: the ring compared with its formula and with plain 1F1B of the same depth.

Idle share = 1 - (computing time / step time), averaged over the ranks; computing time = CPU time of the rank's thread +
time sleeping in layers. The rest is waiting for messages, which takes no CPU time. Formulas, for P stages, L loops and
M micro-batches:

    ring, k⊗L:                 (P-1) / (L·M + P-1)
    1F1B, k·L separate layers: (P-1) / (M + P-1)

1. Each layout runs under torchrun, one thread per rank, with the training engine.
2. "real" layers compute. They need one core per rank, so layouts with more ranks than cores are skipped.
3. "timed" layers are tiny and also sleep, `LAYER_S` forward and twice as long backward, like a rank whose GPU computes.
   They run on any machine and show only the schedule and its messages.

Each figure is the median of --ring-rounds steps.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
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
TIMEOUT_S = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ring-rounds", type=int, default=3, help="steps, of which the median is taken (default: 3)")


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure; raises an OSError that ends with the last line of the ranks' output if a layout fails."""
    rows: list[dict[str, object]] = []
    for num_stages in (2, 4):
        for layers in SHAPES:
            if layers == "real" and num_stages > (os.cpu_count() or 1):
                continue
            rows += _rows(num_stages, layers, args.ring_rounds)
    return rows


def _rows(num_stages: int, layers: str, num_rounds: int) -> list[dict[str, object]]:
    ring, plain = (_launch(num_stages, num_loops, layers, num_rounds) for num_loops in (NUM_LOOPS, 1))
    rows: list[dict[str, object]] = []
    for name, share, passes in (
        (f"ring {NUM_LAYERS}⊗{NUM_LOOPS}", ring, NUM_LOOPS),
        (f"1F1B {NUM_LAYERS * NUM_LOOPS}⊗1", plain, 1),
    ):
        formula = (num_stages - 1) / (passes * NUM_MICRO_BATCHES + num_stages - 1)
        rows.append(
            {
                "name": f"idle share, {name}, PP={num_stages}, M={NUM_MICRO_BATCHES}, {layers} layers",
                "value": round(100 * share, 1),
                "unit": "%",
                "target": f"{100 * formula:.1f}",
                "against": "(P-1)/(L·M+P-1)" if passes > 1 else "(P-1)/(M+P-1)",
            }
        )
    return rows


def _launch(num_stages: int, num_loops: int, layers: str, num_rounds: int) -> float:
    """Idle share of a layout, measured in new processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={num_stages}",
        __file__,
    ]
    command += [str(num_loops), layers, str(num_rounds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{num_stages} ranks of the ring benchmark gave no answer in {TIMEOUT_S} s") from error
    if ended.returncode:
        raise OSError(f"{num_stages} ranks of the ring benchmark failed: {ended.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(ended.stdout.strip().splitlines()[-1]))


class _Sleep:
    """Hooks that sleep after a layer's passes and add up the time slept."""

    def __init__(self, layer: nn.Module, seconds: float) -> None:
        self.seconds, self.slept = seconds, 0.0
        layer.register_forward_hook(self._forward)
        layer.register_full_backward_hook(self._backward)

    def _forward(self, *_: Any) -> None:
        self._sleep(self.seconds)

    def _backward(self, *_: Any) -> None:
        self._sleep(2 * self.seconds)

    def _sleep(self, seconds: float) -> None:
        started = time.perf_counter()
        time.sleep(seconds)
        self.slept += time.perf_counter() - started


def _rank(num_loops: int, layers: str, num_rounds: int) -> None:
    """Run one rank of a layout; rank 0 prints the idle share."""
    device = start_world()
    num_stages = dist.get_world_size()
    config = RunConfig.model_validate(
        {
            "model": {
                **SHAPES[layers],
                "vocab_size": VOCAB_SIZE,
                "num_loop_layers": NUM_LAYERS * NUM_LOOPS // num_loops,
            },
            "parallel": {"pipeline": num_stages},
            "train": {
                "seq_len": SEQ_LEN[layers],
                "micro_batch": 1,
                "global_batch": NUM_MICRO_BATCHES,
                "precision": "fp32",
            },
        }
    )
    engine = Engine(config, make_groups(config.parallel, device), Separators(bos_id=1, eos_id=2))
    sleeps = [_Sleep(layer, LAYER_S) for layer in engine.model.loop.values()] if layers == "timed" else []
    tokens = torch.randint(
        2, VOCAB_SIZE, (NUM_MICRO_BATCHES, SEQ_LEN[layers] + 1), generator=torch.Generator().manual_seed(0)
    )
    micro_batches = engine.micro_batches(tokens)
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
