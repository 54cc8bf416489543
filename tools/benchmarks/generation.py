"""Tokens/s of generation against transformers' `generate`, on the same weights, drawn by chance, of SmolLM2-135M's
shape, in fp32; and of rows in different loops that share their steps.

1. One prompt, and 16 of equal length, continued by as many tokens each.
2. 48 prompts that want 4 to 32 new tokens each, 16 at a time: here a row begins when another ends, there a batch waits
   for its longest row.
3. A looped model, 4⊗8 of width 512 with the few symbols of a reasoning task: 96 rows that want 1 to 8 loops each, 16
   at a time, against the same rows at 8 loops. Were a step to cost what its rows ask for, the speed would be that of
   the mean, 8 / 4.5.

Figures are medians of ratios within a round. Tokens are compared before anything is measured, in fp64 at a tiny shape.
"""

import argparse
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from benchmarks.measure import Row, add_rounds, row, timed
from benchmarks.turns import Contender, Turn, median_ratio, take_turns

from pretrain.generation.engine import Wish
from pretrain.generation.generate import fulfil
from pretrain.generation.sampling import Generation
from pretrain.hf.names import stock_rules
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PROMPT, NEW, BATCH, SEQ_LEN = 32, 24, 16, 256
MODEL = ModelSection(
    vocab_size=49152, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, ffn_size=1536, num_loop_layers=30,
    num_loops=1, tied_head=True,
)  # fmt: skip
TINY = MODEL.model_copy(update={"vocab_size": 128, "hidden_size": 36, "ffn_size": 48, "num_loop_layers": 2})
LOOPED = ModelSection(
    vocab_size=512, hidden_size=512, num_attention_heads=8, ffn_size=1408, num_loop_layers=4, num_loops=8,
    loop={"injection": "add"},  # type: ignore[arg-type]
)  # fmt: skip
WANTED = tuple(4 + 4 * (number * 5 % 8) for number in range(48))
"""New tokens of each of the prompts of the second figure."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "generation", 5)
    parser.add_argument("--generation-threads", type=int, default=1, help="CPU threads of every contender (default: 1)")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure; raises a ValueError if the contenders do not say the same."""
    check_equal()

    def measure(title: str, contenders: dict[str, Contender]) -> dict[str, list[float]]:
        return take_turns(title, contenders, args.generation_rounds, threads=args.generation_threads, num_warm_up=1)

    rows: list[Row] = []
    for title, wanted, target in (
        ("1 prompt", (NEW,), ">= 1.5"),
        (f"{BATCH} prompts", (NEW,) * BATCH, ">= 4"),
        (f"{len(WANTED)} prompts of unlike wishes, {BATCH} at a time", WANTED, ">= 4"),
    ):
        times = measure(title, {"ours": partial(make_ours, wanted), "theirs": partial(make_theirs, wanted)})
        theirs = f"transformers: {sum(wanted) / median(times['theirs']):.4g} tokens/s"
        rows.append(row(f"generation, {title}: tokens", sum(wanted) / median(times["ours"]), "a second"))
        ratio = median_ratio(times["theirs"], times["ours"])
        rows.append(row(f"generation, {title}: speed", ratio, "x", target, theirs))
    depths = measure("depths", {"all": partial(make_looped, False), "own": partial(make_looped, True)})
    ratio = median_ratio(depths["all"], depths["own"])
    rows.append(row("generation, rows of 1 to 8 loops: speed", ratio, "x", ">= 1.4", "all at 8 loops; at most 1.78"))
    return rows


def check_equal() -> None:
    """Raise a ValueError unless both say the same tokens."""
    prompts = _prompts(TINY, 3)
    ours, theirs = _ours(TINY).double(), _theirs(TINY).double()
    mine = [each.tokens for each in fulfil(ours, _wishes(TINY, prompts, (8, 8, 8)))]
    if mine != _continue(theirs, prompts, 8):
        raise ValueError("generation: ours and transformers' differ")


def make_ours(wanted: tuple[int, ...]) -> Turn:
    """Contender: seconds of all prompts."""
    model, prompts = _ours(MODEL), _prompts(MODEL, len(wanted))
    return lambda: timed(partial(fulfil, model, _wishes(MODEL, prompts, wanted), batch=BATCH))


def make_theirs(wanted: tuple[int, ...]) -> Turn:
    model, prompts = _theirs(MODEL), _prompts(MODEL, len(wanted))

    def turn() -> None:
        for start in range(0, len(wanted), BATCH):
            _continue(model, prompts[start : start + BATCH], max(wanted[start : start + BATCH]))

    return lambda: timed(turn)


def make_looped(own: bool) -> Turn:
    """Contender: rows that take 1 to 8 loops, or all 8 of them."""
    model, prompts = LoopedGPT(LOOPED, SEQ_LEN).eval(), _prompts(LOOPED, 6 * BATCH)
    initialise(model, seed=0)
    wishes = [
        Wish(prompt=prompt, settings=_settings(LOOPED, NEW, 1 + number % 8 if own else 8))
        for number, prompt in enumerate(prompts)
    ]
    return lambda: timed(partial(fulfil, model, wishes, batch=BATCH))


def _settings(config: ModelSection, num_new: int, num_loops: int | None = None) -> Generation:
    return Generation(max_new_tokens=num_new, vocab_size=config.vocab_size, num_loops=num_loops)


def _wishes(config: ModelSection, prompts: list[list[int]], wanted: tuple[int, ...]) -> list[Wish]:
    rows = zip(prompts, wanted, strict=True)
    return [Wish(prompt=prompt, settings=_settings(config, num_new)) for prompt, num_new in rows]


def _prompts(config: ModelSection, count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (count, PROMPT), generator=generator).tolist()


def _ours(config: ModelSection) -> LoopedGPT:
    model = LoopedGPT(config, SEQ_LEN).eval()
    initialise(model, seed=0)
    return model


def _theirs(config: ModelSection) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_loop_layers, num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.kv_heads, max_position_embeddings=SEQ_LEN, tie_word_embeddings=True,
        rms_norm_eps=config.norm_epsilon,
    )  # fmt: skip
    model, weights = LlamaForCausalLM(shape).eval(), dict(_ours(config).named_parameters())
    with torch.no_grad():
        for rule in stock_rules("llama", config, 1, SEQ_LEN):
            if rule.theirs != "lm_head.weight":  # tied
                model.get_parameter(rule.theirs).copy_(rule.join([weights[name] for name in rule.ours]))
    return model


def _continue(model: Any, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    tokens = torch.tensor(prompts)
    found = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_new, min_new_tokens=num_new, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return found[:, PROMPT:].tolist()
