"""Cost of latent thoughts compared with Coconut as published, and with the same tokens as plain text.

The model is a GPT-2 of width 256 with 4 layers and 512 tokens, whose weights our model gets as in an import. Rows have
200 tokens of question, `<bot>`, 6 thoughts, `<eot>` and 32 tokens of text; a training step has 16, in fp32, with AdamW
and without dropout. First both must have the same loss and write the same text. Then, each contender in its own
process, in turns:

1. a training step with 6 thoughts, compared with the published algorithm (`published_coconut.py`) and with the same
   tokens in one pass (CoT);
2. the memory of steps: peak growth of the resident set over the built model;
3. generation of 64 tokens of text each (the published limit for GSM8k): 64 examples together, compared with one at a
   time, since the published code cannot batch and keeps no cache; and ours one at a time compared with that, which is
   what the cache gives, the rest is the batch.

Our process keeps freed memory, as a fine-tuning run does (`pretrain/device/host_memory.py`), except in 2.
"""

import argparse
from functools import partial
from statistics import median

import torch
from benchmarks.measure import Row, add_rounds, add_threads, row, timed
from benchmarks.published_coconut import PublishedCoconut
from benchmarks.turns import Contender, Turn, make_memory, median_ratio, take_turns, training_step
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from finetune.latent.batch import LatentBatch
from finetune.latent.generation import AnswerSettings, generate_with_thoughts
from finetune.latent.sequential import Sequential
from finetune.method.markers import Markers
from pretrain.data.stream.labels import IGNORED
from pretrain.device.host_memory import keep_freed_memory
from pretrain.hf.names import stock_rules
from pretrain.model.config import ModelSection
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
"""Examples answered together by our model, and one by one, by it and by the published code, in a turn."""
TOLERANCE = 1e-5
"""Largest relative difference of the two losses."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "coconut", 5)
    add_threads(parser, "coconut")


def run(args: argparse.Namespace) -> list[Row]:
    """Measure; raises a ValueError if the contenders do not compute the same."""
    check_equal()

    def measure(title: str, contenders: dict[str, Contender]) -> dict[str, list[float]]:
        return take_turns(title, contenders, args.coconut_rounds, threads=args.coconut_threads, num_warm_up=1)

    ours, cot = partial(make_our_step, THOUGHTS), partial(make_our_step, 0)
    steps = measure("training step", {"ours": ours, "CoT": cot, "published": make_published_step})
    makers = {"ours": partial(_our_step, THOUGHTS), "published": make_published_step}
    memory = measure("memory", {name: partial(make_memory, make) for name, make in makers.items()})
    generators = {"ours": make_our_generation, "ours, one by one": make_our_generation_one_by_one}
    rates = measure("generation", {**generators, "published": make_published_generation})
    seconds, size, rate = (median(figures["published"]) for figures in (steps, memory, rates))
    speed, to_text = median_ratio(steps["published"], steps["ours"]), median_ratio(steps["ours"], steps["CoT"])
    share = median_ratio(memory["ours"], memory["published"])
    pace, alone = (median_ratio(rates[name], rates["published"]) for name in generators)
    published = f"as published, {rate:.2f} examples/s"
    return [
        row("coconut: training step: speed", speed, "x", ">= 4", f"as published, {seconds:.2f} s"),
        row("coconut: training step: memory", share, "x", "<= 0.5", f"as published, {size / 2**30:.2f} GiB"),
        row(f"coconut: step of {THOUGHTS} thoughts: time", to_text, "x", "<= 1.5", "the same tokens as CoT"),
        row(f"coconut: generation, {NUM_EXAMPLES} examples: speed", pace, "x", ">= 30", published),
        row("coconut: generation, one at a time: speed", alone, "x", "", published),
    ]


def check_equal() -> None:
    """Raise a ValueError unless both compute the same loss of a batch and write the same answers."""
    batch = make_batch(THOUGHTS)
    ours, theirs = _our_loss(make_our_model(), batch, THOUGHTS).item(), _published_loss(make_published(), batch).item()
    if abs(ours - theirs) > TOLERANCE * theirs:
        raise ValueError(f"the loss of this project is {ours}, that of the published algorithm {theirs}")
    prompts = questions()[:2]
    texts = _our_answers(make_our_model(), prompts)
    wanted = [_published_answer(make_published(), prompt) for prompt in prompts]
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
    supervised, first_token = (labels >= 0).flatten().nonzero().flatten(), torch.zeros(BATCH, dtype=torch.int64)
    return LatentBatch(
        tokens=words, labels=labels, supervised=supervised, first_token=first_token, is_latent=is_latent,
        first_slot=QUESTION + 1,
    )  # fmt: skip


def _our_loss(model: LoopedGPT, batch: LatentBatch, num_thoughts: int) -> Tensor:
    nll, _ = batch.text_loss(model, Sequential().states(model, batch, num_thoughts))
    return nll / len(batch.supervised)


def _published_loss(published: PublishedCoconut, batch: LatentBatch) -> Tensor:
    positions = torch.arange(SEQ_LEN).expand(BATCH, -1)
    targets = torch.cat((torch.full((BATCH, 1), IGNORED), batch.labels[:, :-1]), dim=1)  # at their tokens' positions
    return published.loss(batch.tokens, torch.ones_like(batch.tokens), positions, targets)


def make_our_step(num_thoughts: int) -> Turn:
    """Contender: seconds of our training step."""
    keep_freed_memory()
    return _our_step(num_thoughts)


def make_published_step() -> Turn:
    """Contender: seconds of a training step of the published algorithm."""
    published, batch = make_published(), make_batch(THOUGHTS)
    return training_step(published.model, lambda: _published_loss(published, batch))


def _our_step(num_thoughts: int) -> Turn:
    model, batch = make_our_model(), make_batch(num_thoughts)
    return training_step(model, lambda: _our_loss(model, batch, num_thoughts))


# Generation


def questions() -> list[list[int]]:
    """Random questions, each followed by `<bot>`."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(FIRST_WORD, MODEL.vocab_size, (NUM_EXAMPLES, QUESTION), generator=generator)
    return [[*row, BOT] for row in words.tolist()]


def _our_answers(model: LoopedGPT, prompts: list[list[int]]) -> list[list[int]]:
    settings = AnswerSettings(
        max_new_tokens=NEW_TOKENS, vocab_size=MODEL.vocab_size, eos_id=EOS, thinking=Sequential(),
        markers=Markers((BOT,), LATENT, (EOT,)), num_slots=THOUGHTS,
    )  # fmt: skip
    return [answer.text for answer in generate_with_thoughts(model, prompts, settings)]


def _published_answer(published: PublishedCoconut, prompt: list[int]) -> list[int]:
    return published.generate([*prompt, *[LATENT] * THOUGHTS, EOT], NEW_TOKENS)


def make_our_generation() -> Turn:
    """Contender: examples/s of our model in one batch."""
    keep_freed_memory()
    model = make_our_model()
    return lambda: NUM_EXAMPLES / timed(_our_answers, model, questions())


def make_our_generation_one_by_one() -> Turn:
    """Contender: examples/s of our model, one example at a time."""
    keep_freed_memory()
    model = make_our_model()

    def answer(prompts: list[list[int]]) -> None:
        for prompt in prompts:
            _our_answers(model, [prompt])

    return lambda: NUM_ONE_BY_ONE / timed(answer, questions()[:NUM_ONE_BY_ONE])


def make_published_generation() -> Turn:
    """Contender: examples/s of the published code, one example at a time."""
    published = make_published()

    def answer(prompts: list[list[int]]) -> None:
        for prompt in prompts:
            _published_answer(published, prompt)

    return lambda: NUM_ONE_BY_ONE / timed(answer, questions()[:NUM_ONE_BY_ONE])
