"""What it costs to draw answers with latent thoughts, against as many tokens of text.

The model and the questions of `coconut.py`: 8 questions of 200 tokens, 8 answers to each, drawn at temperature 1. Text
has 32 tokens; thoughts are 28, with noise, and then 4 tokens of text, so both make as many passes of one position. Two
of three of the speed of text is asked for, where others were measured at one twentieth.
"""

import argparse
from functools import partial
from statistics import median

from benchmarks.coconut import BOT, EOS, EOT, LATENT, MODEL, make_our_model, questions
from benchmarks.measure import Row, add_rounds, add_threads, row, timed
from benchmarks.turns import Turn, median_ratio, take_turns

from finetune.latent.generation import AnswerSettings
from finetune.latent.sequential import Sequential
from finetune.method.markers import Markers
from finetune.reinforce.config import RolloutSection
from finetune.reinforce.rollout import roll_out
from pretrain.device.host_memory import keep_freed_memory

QUESTIONS, GROUP, DRAWN, WORDS = 8, 8, 32, 4
"""Answers of a step, positions that each draws, and those of them that are text after thoughts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "rollouts", 5)
    add_threads(parser, "rollouts")


def run(args: argparse.Namespace) -> list[Row]:
    contenders = {"text": partial(make_rollouts, 0), "thoughts": partial(make_rollouts, DRAWN - WORDS)}
    rates = take_turns("rollouts", contenders, args.rollouts_rounds, threads=args.rollouts_threads, num_warm_up=1)
    speed, rate = median_ratio(rates["thoughts"], rates["text"]), median(rates["text"])
    against = f"as many tokens of text, {rate:.1f} answers/s"
    return [row(f"rollouts: {DRAWN - WORDS} thoughts and {WORDS} tokens: speed", speed, "x", ">= 0.67", against)]


def make_rollouts(num_thoughts: int) -> Turn:
    """Contender: answers/s."""
    keep_freed_memory()
    model = make_our_model()
    markers = Markers((BOT,), LATENT, (EOT,)) if num_thoughts else Markers()
    settings = AnswerSettings(
        max_new_tokens=DRAWN - num_thoughts, vocab_size=MODEL.vocab_size, eos_id=EOS, thinking=Sequential(),
        markers=markers, num_slots=num_thoughts,
    )  # fmt: skip
    rollout = RolloutSection(questions=QUESTIONS, group_size=GROUP, thought_noise=0.1 if num_thoughts else 0.0)
    prompts = [prompt for prompt in questions()[:QUESTIONS] for _ in range(GROUP)]
    keys = [str(number) for number in range(len(prompts))]
    return lambda: len(prompts) / timed(roll_out, model, prompts, keys, settings, rollout)
