"""Speed of a training step: relative to the machine's peak and to transformers' Llama, and looped against unlooped.

1. The model of the targets (8 layers of width 512, vocabulary 8192, untied head, 4 sequences of 512 tokens, fused
   AdamW): FLOP/s by `pretrain/model/count.py` over the peak matrix product of the same dtype, and step time relative to
   a Llama of the same shape, both eager and with torch.compile.
2. 2⊗4 relative to 8⊗1: tokens/s, and bytes of weights and optimizer. The vocabulary is small and tied, so that layers
   dominate the memory.
3. On a GPU, the 1.5B shape in bf16 with sequences of 2048: MFU, at the largest micro-batch that fits.

On a CPU our process keeps freed memory, as a training run does (`pretrain/device/host_memory.py`); Llama's does not,
and a second one's does, which parts what the allocator gives from what the model gives.
"""

import argparse
import sys
from functools import partial
from statistics import median

import torch
from benchmarks.measure import Row, Turns, add_rounds, add_threads, row
from benchmarks.turns import Turn, median_ratio, take_turns, training_step

from pretrain.device.hardware import measure_flops, peak_flops, precision_warning
from pretrain.device.host_memory import keep_freed_memory
from pretrain.model.config import ModelSection
from pretrain.model.count import train_flops_per_token
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loss import loss_sums

SEQ_LEN, BATCH = 512, 4
SMALL = ModelSection(vocab_size=8192, hidden_size=512, num_attention_heads=8, ffn_size=1408, num_loop_layers=8)
UNLOOPED = SMALL.model_copy(update={"vocab_size": 512, "tied_head": True})
LOOPED = UNLOOPED.model_copy(update={"num_loop_layers": 2, "num_loops": 4})
LARGE = ModelSection(vocab_size=65536, hidden_size=2048, num_attention_heads=32, ffn_size=5120, num_loop_layers=24)
LARGE_SEQ_LEN, LARGE_BATCHES = 2048, (16, 8, 4, 2, 1)
UTILISATION_TARGETS = {torch.float32: ">= 0.80", torch.bfloat16: ">= 0.62"}
KEEPING = "llama, freed memory kept"
LLAMA_TARGETS = {torch.float32: ">= 1.15", torch.bfloat16: "> 1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "train", 15)
    add_threads(parser, "train")


def run(args: argparse.Namespace) -> list[Row]:
    rounds, threads = args.train_rounds, args.train_threads
    rows: list[Row] = []
    for dtype in UTILISATION_TARGETS:
        slow = precision_warning(_device(), dtype)
        if slow is None:
            rows += _measure_small(dtype, rounds, threads)
        else:
            print(f"left out: {slow}", file=sys.stderr)
    rows += _measure_loops(rounds, threads)
    if torch.cuda.is_available():
        rows += _measure_large(rounds)
    return rows


def _measure_small(dtype: torch.dtype, rounds: Turns, threads: int) -> list[Row]:
    name = str(dtype).removeprefix("torch.")
    times = take_turns(
        f"training step in {name}",
        {
            "peak": partial(make_peak, dtype),
            "looped": partial(make_looped, SMALL, SEQ_LEN, BATCH, dtype, False),
            "looped, compiled": partial(make_looped, SMALL, SEQ_LEN, BATCH, dtype, True),
            "llama": partial(make_llama, SMALL, dtype, False),
            "llama, compiled": partial(make_llama, SMALL, dtype, True),
            **({} if torch.cuda.is_available() else {KEEPING: partial(make_llama, SMALL, dtype, False, keeps=True)}),
        },
        rounds,
        threads=threads,
    )
    peaks = times.pop("peak")
    flops = BATCH * SEQ_LEN * train_flops_per_token(SMALL, SEQ_LEN)
    against = f"peak matrix product in {name}, {median(peaks) / 1e9:.0f} GFLOP/s"
    rows = []
    for contender, seconds in times.items():
        value = median(flops / (time * peak) for time, peak in zip(seconds, peaks, strict=True))
        target = UTILISATION_TARGETS[dtype] if contender == "looped" else ""
        rows.append(row(f"train: {contender}, {name}: FLOP/s", value, "of peak", target, against))
    for ours in ("looped", "looped, compiled"):
        for theirs in ("llama", "llama, compiled", KEEPING):
            if ours in times and theirs in times:
                target = (LLAMA_TARGETS[dtype] if theirs == "llama" else "> 1") if ours == "looped" else ""
                ratio = median_ratio(times[theirs], times[ours])
                rows.append(row(f"train: {ours}, {name}: speed", ratio, "x", target, theirs))
    return rows


def _measure_loops(rounds: Turns, threads: int) -> list[Row]:
    models = {"looped": LOOPED, "unlooped": UNLOOPED}
    contenders = {name: partial(make_looped, m, SEQ_LEN, BATCH, torch.float32, False) for name, m in models.items()}
    times = take_turns("2⊗4 and 8⊗1", contenders, rounds, threads=threads)
    memory = training_bytes(LOOPED) / training_bytes(UNLOOPED)
    return [
        row("train: 2⊗4: tokens/s", median_ratio(times["unlooped"], times["looped"]), "x", ">= 0.97", "8⊗1"),
        row("train: 2⊗4: weights and optimizer", memory, "x", f"<= {1 / LOOPED.num_loops + 0.05:.2f}", "8⊗1"),
    ]


def _measure_large(rounds: Turns) -> list[Row]:
    peak = peak_flops(torch.device("cuda"), torch.bfloat16)
    if peak is None:
        print(f"left out: the peak of {torch.cuda.get_device_name()} is not known", file=sys.stderr)
        return []
    for batch in LARGE_BATCHES:
        contender = partial(make_looped, LARGE, LARGE_SEQ_LEN, batch, torch.bfloat16, True)
        times = take_turns(f"1.5B, micro-batch {batch}", {"looped": contender}, rounds, threads=None)
        if "looped" in times:
            flops = batch * LARGE_SEQ_LEN * train_flops_per_token(LARGE, LARGE_SEQ_LEN)
            against = f"{peak / 1e12:.0f} TFLOP/s of {torch.cuda.get_device_name()}"
            name = f"train: 24⊗1 of 1.5B, seq {LARGE_SEQ_LEN}, micro-batch {batch}, bf16, compiled: MFU"
            return [row(name, flops / median(times["looped"]) / peak, "of peak", ">= 0.50", against)]
    return []


def make_peak(dtype: torch.dtype) -> Turn:
    """Contender: FLOP/s of large matrix products, measured anew in each turn: the first comes while others start."""
    return lambda: measure_flops(_device(), dtype)


def make_looped(config: ModelSection, seq_len: int, batch: int, dtype: torch.dtype, compiled: bool) -> Turn:
    """Contender: seconds of our training step."""
    if not torch.cuda.is_available():
        keep_freed_memory()
    model = LoopedGPT(config, seq_len)
    initialise(model, seed=0)
    model.to(_device(), dtype)
    if compiled:
        model.compile_layers()

    tokens = _tokens(config, batch, seq_len + 1)
    return training_step(model, lambda: loss_sums(model, model(tokens[:, :-1]), tokens[:, 1:])[0] / (batch * seq_len))


def make_llama(config: ModelSection, dtype: torch.dtype, compiled: bool, *, keeps: bool = False) -> Turn:
    """Contender: seconds of a training step of a Llama of the same shape, whose process keeps freed memory or not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if keeps:
        keep_freed_memory()
    shape = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.ffn_size,
        num_hidden_layers=config.num_loop_layers, num_attention_heads=config.num_attention_heads,
        max_position_embeddings=SEQ_LEN, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)  # attention is scaled_dot_product_attention by default
    torch.nn.Module.to(model, _device(), dtype)
    if compiled:
        model.compile()
    tokens = _tokens(config, BATCH, SEQ_LEN)
    return training_step(model, lambda: model(input_ids=tokens, labels=tokens).loss)


def training_bytes(config: ModelSection) -> int:
    """Bytes of weights and optimizer state after a training step."""
    model = LoopedGPT(config, SEQ_LEN)
    initialise(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = _tokens(config, 1, 16)
    loss_sums(model, model(tokens), tokens)[0].backward()
    optimizer.step()
    state = [tensor for tensors in optimizer.state.values() for tensor in tensors.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *state))


def _tokens(config: ModelSection, batch: int, seq_len: int) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, seq_len), generator=torch.Generator().manual_seed(0)).to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
