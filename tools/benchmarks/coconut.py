"""Cost of latent thoughts compared with Coconut as published, and with the same tokens as plain text.

The model is a GPT-2 of width 256 with 4 layers and 512 tokens, whose weights our model gets as in an import. Rows have
200 tokens of question, `<bot>`, 6 thoughts, `<eot>` and 32 tokens of text; a training step has 16, in fp32, with AdamW
and without dropout. First both must have the same loss and write the same text. Then, each contender in its own
process, in turns:

1. a training step with 6 thoughts, compared with the published algorithm (`published_coconut.py`) and with the same
   tokens in one pass (CoT);
2. the memory of steps: peak growth of the resident set over the built model;
3. generation of 64 tokens of text each (the published limit for GSM8k): 64 examples together, compared with one at a
   time, since the published code cannot batch.

Our process keeps freed memory, as a fine-tuning run does (`pretrain/device/host_memory.py`), except in 2.
"""

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from benchmarks.published_coconut import PublishedCoconut
from benchmarks.turns import Contender, Turn, median_ratio, take_turns
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from finetune.latent.batch import LatentBatch
from finetune.latent.generation import AnswerSettings, generate_with_thoughts
from finetune.latent.sequential import Sequential
from finetune.method.markers import Markers
from pretrain.config.model import ModelSection
from pretrain.data.stream.labels import IGNORED
from pretrain.device.host_memory import keep_freed_memory
from pretrain.hf.names import stock_rules
from pretrain.model.gpt import LoopedGPT

EOS, BOT, EOT, LATENT, FIRST_WORD = 0, 1, 2, 3, 4
QUESTION, THOUGHTS, TEXT, BATCH = 200, 6, 32, 16
SEQ_LEN = QUESTION + 1 + THOUGHTS + 1 + TEXT
NEW_TOKENS = 64
NUM_POSITIONS = QUESTION + 1 + THOUGHTS + 1 + NEW_TOKENS
MODEL = ModelSection(
    vocab_size=512, hidden_size=256, num_attention_heads=8, ffn_size=1024, num_loop_layers=4,
    norm="layer", positions="learned", activation="gelu", bias="all", tied_head=True,
)  # fmt: skip
NUM_EXAMPLES, NUM_ONE_BY_ONE = 64, 4
"""Examples answered together by our model, and one by one by the published code in a turn."""
TOLERANCE = 1e-5
"""Largest relative difference of the two losses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coconut-rounds", type=int, default=5, help="turns, of which the median is taken (default: 5)"
    )
    parser.add_argument("--coconut-threads", type=int, default=2, help="CPU threads of every contender (default: 2)")


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure; raises a ValueError if the contenders do not compute the same."""
    rounds, threads = args.coconut_rounds, args.coconut_threads
    check_equal()

    def measure(
        title: str, makers: dict[str, tuple[Callable[..., Turn], tuple[object, ...]]]
    ) -> dict[str, list[float]]:
        contenders = {name: Contender(make=make, arguments=(*rest, threads)) for name, (make, rest) in makers.items()}
        return take_turns(title, contenders, rounds, num_warm_up=1)

    steps = measure(
        "training step",
        {"ours": (make_our_step, (THOUGHTS,)), "CoT": (make_our_step, (0,)), "published": (make_published_step, ())},
    )
    memory = measure("memory", {"ours": (make_memory, ("ours",)), "published": (make_memory, ("published",))})
    rates = measure("generation", {"ours": (make_our_generation, ()), "published": (make_published_generation, ())})
    seconds, size, rate = (median(figures["published"]) for figures in (steps, memory, rates))
    pace = f"as published, {rate:.2f} examples/s"
    return [
        _row(
            "training step: speed",
            median_ratio(steps["published"], steps["ours"]),
            ">= 4",
            f"as published, {seconds:.2f} s",
        ),
        _row(
            "training step: memory",
            median_ratio(memory["ours"], memory["published"]),
            "<= 0.5",
            f"as published, {size / 2**30:.2f} GiB",
        ),
        _row(
            f"step of {THOUGHTS} thoughts: time",
            median_ratio(steps["ours"], steps["CoT"]),
            "<= 1.5",
            "the same tokens as CoT",
        ),
        _row(
            f"generation, {NUM_EXAMPLES} examples: speed",
            median_ratio(rates["ours"], rates["published"]),
            ">= 30",
            pace,
        ),
    ]


def _row(name: str, value: float, target: str, against: str) -> dict[str, object]:
    return {"name": f"coconut: {name}", "value": value, "unit": "x", "target": target, "against": against}


def check_equal() -> None:
    """Raise a ValueError unless both compute the same loss of a batch and write the same answers."""
    batch = make_batch(THOUGHTS)
    ours, theirs = _our_loss(make_our_model(), batch, THOUGHTS).item(), _published_loss(make_published(), batch).item()
    if abs(ours - theirs) > TOLERANCE * theirs:
        raise ValueError(f"the loss of this project is {ours}, that of the published algorithm {theirs}")
    prompts = _prompts()[:2]
    texts, wanted = (
        _our_answers(make_our_model(), prompts),
        [_published_answer(make_published(), prompt) for prompt in prompts],
    )
    if texts != wanted:
        raise ValueError(f"this project writes {texts}, the published algorithm {wanted}")


# The two models, with the same weights


def make_published() -> PublishedCoconut:
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=MODEL.vocab_size, n_positions=NUM_POSITIONS, n_embd=MODEL.hidden_size, n_layer=MODEL.num_loop_layers,
        n_head=MODEL.num_attention_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=BOT,
        eos_token_id=EOS,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape)
    with torch.no_grad():
        model.transformer.wte.weight[[EOS, EOT]] = 0.0  # never the likeliest, so that every text has full length
    return PublishedCoconut(model, LATENT, EOS)


def make_our_model() -> LoopedGPT:
    weights, model = make_published().model.state_dict(), LoopedGPT(MODEL, NUM_POSITIONS)
    with torch.no_grad():
        for rule in stock_rules("gpt2", MODEL, 1, NUM_POSITIONS):
            for name, part in zip(rule.ours, rule.split(weights[rule.theirs]), strict=True):
                model.get_parameter(name).copy_(part)
    return model


# Training


def make_batch(num_thoughts: int) -> LatentBatch:
    """Rows of random words; without thoughts, supervised words take their positions."""
    words = torch.randint(FIRST_WORD, MODEL.vocab_size, (BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    words[:, QUESTION], words[:, QUESTION + 1 + THOUGHTS] = BOT, EOT
    is_latent = torch.zeros(BATCH, SEQ_LEN, dtype=torch.bool)
    is_latent[:, QUESTION + 1 : QUESTION + 1 + num_thoughts] = True
    words[is_latent] = LATENT
    labels = torch.full_like(words, IGNORED)
    first = QUESTION + 1 + THOUGHTS if num_thoughts else QUESTION
    labels[:, first:-1] = words[:, first + 1 :]
    return LatentBatch(
        tokens=words,
        labels=labels,
        supervised=(labels >= 0).flatten().nonzero().flatten(),
        first_token=torch.zeros(BATCH, dtype=torch.int64),
        is_latent=is_latent,
        first_slot=QUESTION + 1,
    )


def _our_loss(model: LoopedGPT, batch: LatentBatch, num_thoughts: int) -> Tensor:
    nll, _ = batch.text_loss(model, Sequential().states(model, batch, num_thoughts))
    return nll / len(batch.supervised)


def _published_loss(published: PublishedCoconut, batch: LatentBatch) -> Tensor:
    positions = torch.arange(SEQ_LEN).expand(BATCH, -1)
    targets = torch.cat((torch.full((BATCH, 1), IGNORED), batch.labels[:, :-1]), dim=1)  # at their tokens' positions
    return published.loss(batch.tokens, torch.ones_like(batch.tokens), positions, targets)


def make_our_step(num_thoughts: int, threads: int) -> Turn:
    """Contender: seconds of our training step."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    return _our_step(num_thoughts)


def make_published_step(threads: int) -> Turn:
    """Contender: seconds of a training step of the published algorithm."""
    torch.set_num_threads(threads)
    return _published_step()


def make_memory(which: str, threads: int) -> Turn:
    """Contender: bytes of peak growth of this process's resident set over the built model."""
    torch.set_num_threads(threads)
    step = _our_step(THOUGHTS) if which == "ours" else _published_step()
    built = _resident("VmRSS")

    def turn() -> float:
        step()
        return _resident("VmHWM") - built

    return turn


def _resident(entry: str) -> int:
    """Bytes of this process's resident set: current (VmRSS) or peak (VmHWM). Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(rf"{entry}:\s+(\d+) kB", status)[0]) * 1024


def _our_step(num_thoughts: int) -> Turn:
    model, batch = make_our_model(), make_batch(num_thoughts)
    return _training_step(model, lambda: _our_loss(model, batch, num_thoughts))


def _published_step() -> Turn:
    published, batch = make_published(), make_batch(THOUGHTS)
    return _training_step(published.model, lambda: _published_loss(published, batch))


def _training_step(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Turn:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        start = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


# Generation


def _prompts() -> list[list[int]]:
    """Random questions, each followed by `<bot>`."""
    words = torch.randint(
        FIRST_WORD, MODEL.vocab_size, (NUM_EXAMPLES, QUESTION), generator=torch.Generator().manual_seed(1)
    )
    return [[*row, BOT] for row in words.tolist()]


def _our_answers(model: LoopedGPT, prompts: list[list[int]]) -> list[list[int]]:
    settings = AnswerSettings(
        max_new_tokens=NEW_TOKENS,
        vocab_size=MODEL.vocab_size,
        eos_id=EOS,
        thinking=Sequential(),
        markers=Markers((BOT,), LATENT, (EOT,)),
        num_slots=THOUGHTS,
    )
    return [answer.text for answer in generate_with_thoughts(model, prompts, settings)]


def _published_answer(published: PublishedCoconut, prompt: list[int]) -> list[int]:
    return published.generate([*prompt, *[LATENT] * THOUGHTS, EOT], NEW_TOKENS)


def make_our_generation(threads: int) -> Turn:
    """Contender: examples/s of our model in one batch."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    model = make_our_model()

    def turn() -> float:
        start = time.perf_counter()
        _our_answers(model, _prompts())
        return NUM_EXAMPLES / (time.perf_counter() - start)

    return turn


def make_published_generation(threads: int) -> Turn:
    """Contender: examples/s of the published code, one example at a time."""
    torch.set_num_threads(threads)
    published = make_published()

    def turn() -> float:
        start = time.perf_counter()
        for prompt in _prompts()[:NUM_ONE_BY_ONE]:
            _published_answer(published, prompt)
        return NUM_ONE_BY_ONE / (time.perf_counter() - start)

    return turn
