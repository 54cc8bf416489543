"""Cost of scoring at several depths: six loop counts in one pass compared with only the deepest.

A 2⊗L model of width 512 with a coda layer scores pairs of 192 tokens of context and 16 of continuation, as in an
evaluation, at 1, 2, 3, 4, 6 and 8 loops together and at 8 alone, in turns. The figure is the median ratio of the times.
"""

import argparse
import time
from statistics import median

import torch
from benchmarks.small_run import one_rank

from pretrain.config.model import ModelSection
from pretrain.config.run import ParallelSection
from pretrain.eval.scorer import Pair, Scorer
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.parallel.groups import make_groups

MODEL = ModelSection(
    vocab_size=8192, hidden_size=512, num_attention_heads=8, ffn_size=1408, num_loop_layers=2, num_coda_layers=1
)
LOOPS = (1, 2, 3, 4, 6, 8)
NUM_PAIRS, CONTEXT, CONTINUATION, BATCH = 32, 192, 16, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depths-rounds", type=int, default=5, help="turns, of which the median is taken (default: 5)")


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    tokens = torch.randint(
        MODEL.vocab_size, (NUM_PAIRS, CONTEXT + CONTINUATION), generator=torch.Generator().manual_seed(0)
    ).tolist()
    pairs: list[Pair] = [(row[:CONTEXT], row[CONTEXT:]) for row in tokens]
    times: dict[tuple[int, ...], list[float]] = {LOOPS: [], LOOPS[-1:]: []}
    with one_rank() as device:
        model = LoopedGPT(MODEL, CONTEXT + CONTINUATION)
        initialise(model, seed=0)
        scorer = Scorer(model.to(device).eval(), make_groups(ParallelSection(), device), batch_size=BATCH)
        scorer.likelihoods(pairs[:BATCH], LOOPS)
        for turn in range(args.depths_rounds):
            for loops in list(times) if turn % 2 else list(times)[::-1]:
                started = time.perf_counter()
                scorer.likelihoods(pairs, loops)
                times[loops].append(time.perf_counter() - started)
    ratio = median(all_depths / deepest for all_depths, deepest in zip(*times.values(), strict=True))
    name = f"evaluation at {len(LOOPS)} depths in one pass: time"
    return [{"name": name, "value": ratio, "unit": "x", "target": "<= 1.5", "against": f"{LOOPS[-1]} loops alone"}]
