"""Cost of scoring at several depths: six loop counts in one pass compared with only the deepest.

A 2⊗L model of width 512 with a coda layer scores pairs of 192 tokens of context and 16 of continuation, as in an
evaluation, at 1, 2, 3, 4, 6 and 8 loops together and at 8 alone, in turns. The figure is the median ratio of the times.
"""

import argparse
from statistics import median

import torch
from benchmarks.measure import Row, add_rounds, row, timed
from benchmarks.small_run import one_rank

from pretrain.config.run import ParallelSection
from pretrain.eval.scorer import Pair, Scorer
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.parallel.groups import make_groups

MODEL = ModelSection(
    vocab_size=8192, hidden_size=512, num_attention_heads=8, ffn_size=1408, num_loop_layers=2, num_coda_layers=1
)
LOOPS = (1, 2, 3, 4, 6, 8)
NUM_PAIRS, CONTEXT, CONTINUATION, BATCH = 32, 192, 16, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "depths", 5)


def run(args: argparse.Namespace) -> list[Row]:
    shape, generator = (NUM_PAIRS, CONTEXT + CONTINUATION), torch.Generator().manual_seed(0)
    tokens = torch.randint(MODEL.vocab_size, shape, generator=generator).tolist()
    pairs: list[Pair] = [(ids[:CONTEXT], ids[CONTEXT:]) for ids in tokens]
    times: dict[tuple[int, ...], list[float]] = {LOOPS: [], LOOPS[-1:]: []}
    with one_rank() as device:
        model = LoopedGPT(MODEL, CONTEXT + CONTINUATION)
        initialise(model, seed=0)
        scorer = Scorer(model.to(device).eval(), make_groups(ParallelSection(), device), batch_size=BATCH)
        scorer.likelihoods(pairs[:BATCH], LOOPS)
        for turn in args.depths_rounds.numbers():
            for loops in list(times) if turn % 2 else list(times)[::-1]:
                times[loops].append(timed(scorer.likelihoods, pairs, loops))
    ratio = median(all_depths / deepest for all_depths, deepest in zip(*times.values(), strict=True))
    name = f"evaluation at {len(LOOPS)} depths in one pass: time"
    return [row(name, ratio, "x", "<= 1.5", f"{LOOPS[-1]} loops alone")]
