"""Export of a model, unrolled, as one GGUF file, which llama.cpp and what is built on it load.

1. Refuse what no architecture there computes: a plain stack of Llama's, Qwen 2's or Qwen 3's layers is held; a gate
   for exits is dropped, as all tokens run all loops; any other loop design is refused. So is a tokenizer that cannot
   go along.
2. Write settings and tokenizer, then one tensor at a time; a shared layer is written once for each loop.
3. Read the file back as an import does, and compare logits and ids.

Vectors (norms, biases) are float32 whatever the type of the matrices, as llama.cpp's own conversion has them.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.published import import_tokenizer
from pretrain.data.tokenizers.sentencepiece import SPACE_MARK, SentencePieceTokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf.architectures import Architecture, stock_architecture
from pretrain.hf.check import TEXTS, WrongConversion, build, largest_difference, load_published, require_equal
from pretrain.hf.config_file import read_config
from pretrain.hf.gguf_folder import write_folder
from pretrain.hf.gguf_names import ARCHITECTURES, gguf_name, turned_heads
from pretrain.hf.gguf_tokenizer import NoTokenizer
from pretrain.hf.gguf_tokenizer_export import tokenizer_settings
from pretrain.hf.names import Rule, stock_rules
from pretrain.hf.report import Fate, describe, write_report
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.weights import loop_design, stage_weights

FILE = "model.gguf"
_FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
"""llama.cpp's numbers for a file whose matrices are of a type."""


def require_gguf(model: ModelSection, num_loops: int) -> tuple[ModelSection, Architecture]:
    """The model without what a GGUF file drops, and the class of transformers that is its architecture there.

    Raises:
        ValueError: no architecture of GGUF computes it, or none that is written here.
    """
    model.require_loops("--num-loops", [num_loops])
    without_exits = model.loop.model_copy(update={"exit": type(model.loop)().exit})
    kept = model.model_copy(update={"loop": without_exits})
    if not loop_design(kept).is_plain(kept.num_passes(num_loops)):
        chosen = kept.loop.model_dump(exclude_defaults=True)
        what = ", ".join(f"model.loop.{key}={value}" for key, value in chosen.items())
        raise ValueError(f"a model with {what} cannot be unrolled into the plain layers that a GGUF file holds")
    stock = stock_architecture(kept)
    if stock is None or stock.model_type not in ARCHITECTURES:
        what = "no stock model has such layers" if stock is None else f"these are layers of {stock.name}"
        raise ValueError(f"{what}: a GGUF file is written of {', '.join(ARCHITECTURES.values())}")
    return kept, stock


def write_gguf(
    folder: Path, reader: CheckpointReader, saved: SavedModel, num_loops: int, tokenizer: Tokenizer, dtype: torch.dtype
) -> list[str]:
    """Write the file and a report into an empty folder; returns lines that describe them.

    Raises:
        ValueError: the model or its tokenizer cannot be held, or the check failed.
        OSError: reading or writing failed.
    """
    model, stock = require_gguf(saved.model, num_loops)
    try:
        tokens = tokenizer_settings(tokenizer, model.vocab_size)
    except NoTokenizer as error:
        raise ValueError(f"the tokenizer {error}: it cannot go into a GGUF file") from None
    rules = _rules(stock.model_type, model, num_loops, saved.seq_len)
    settings = _settings(stock.model_type, model, num_loops, saved.seq_len)
    settings |= {"general.name": saved.run, "general.file_type": _FILE_TYPES[dtype]}
    settings |= {f"tokenizer.{key}": value for key, value in tokens.items()}
    path = folder / FILE

    def weight(name: str) -> Tensor:
        found = reader.read_whole(f"weights/{name}")
        return found.to(dtype) if found.dim() > 1 else found.float()

    def whole(rule: Rule) -> Tensor:
        return rule.join([weight(name) for name in rule.ours])

    _write_file(path, stock.model_type, settings, rules, dtype, whole)
    said = _said(saved.model, num_loops, rules, dtype)
    fates = [
        Fate("mapped", rule.theirs, " + ".join(rule.ours), describe(rule.shape, _type_of(rule, dtype)))
        for rule in rules
    ]
    held = {ours for rule in rules for ours in rule.ours}
    lost = [name for name in stage_weights(saved.model, saved.seq_len) if name not in held]
    fates += [Fate("dropped", "", name, "no part of a plain model") for name in lost]
    totals = write_report(folder, f"GGUF of {reader.path}", fates, said)
    ours = build(model, saved.seq_len, weight)
    difference = _compare(path, ours, tokenizer, saved.seq_len, num_loops)
    return [f"{FILE}, {stock.model_type}, {str(dtype).removeprefix('torch.')}; {totals}", *said, difference]


def _rules(architecture: str, model: ModelSection, num_loops: int, seq_len: int) -> list[Rule]:
    """The rules of all tensors, by their names in the file."""
    rules = []
    for rule in stock_rules(architecture, model, num_loops, seq_len):
        name = gguf_name(rule.theirs)
        turned = turned_heads(architecture, name, model.num_attention_heads, model.kv_heads)
        rules.append(replace(rule, theirs=name, paired=(turned,) if turned else ()))
    return rules


def _settings(architecture: str, model: ModelSection, num_loops: int, seq_len: int) -> dict[str, Any]:
    shape = {
        "block_count": model.effective_depth(num_loops), "context_length": seq_len, "vocab_size": model.vocab_size,
        "embedding_length": model.hidden_size, "feed_forward_length": model.ffn_size,
        "attention.head_count": model.num_attention_heads, "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.head_dim, "attention.value_length": model.head_dim,
        "attention.layer_norm_rms_epsilon": float(model.norm_epsilon), "rope.freq_base": float(model.rope_theta),
        "rope.dimension_count": model.head_dim,
    }  # fmt: skip
    return {f"{architecture}.{key}": value for key, value in shape.items()}


def _write_file(
    path: Path, architecture: str, settings: dict[str, Any], rules: list[Rule], dtype: torch.dtype,
    tensor: Callable[[Rule], Tensor],
) -> None:  # fmt: skip
    """`tensor` gives that of a rule; one of them is in memory at a time."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    kinds = {
        bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING,
    }  # fmt: skip
    types = {
        torch.float32: GGMLQuantizationType.F32, torch.float16: GGMLQuantizationType.F16,
        torch.bfloat16: GGMLQuantizationType.BF16,
    }  # fmt: skip
    writer = GGUFWriter(path, architecture)
    try:
        for key, value in settings.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            else:
                writer.add_key_value(key, value, kinds[type(value)])
        for rule in rules:
            kind = _type_of(rule, dtype)
            size = math.prod(rule.shape) * kind.itemsize
            writer.add_tensor_info(rule.theirs, rule.shape, np.dtype(np.float32), size, types[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for rule in tqdm(rules, desc="export", unit="tensor", disable=None):
            writer.write_tensor_data(tensor(rule).contiguous().view(torch.uint8).numpy())
    finally:
        writer.close()


def _type_of(rule: Rule, dtype: torch.dtype) -> torch.dtype:
    return dtype if len(rule.shape) > 1 else torch.float32


def _said(whole: ModelSection, num_loops: int, rules: list[Rule], dtype: torch.dtype) -> list[str]:
    """Sizes, and what is dropped, for people."""
    sizes = {rule.ours: math.prod(rule.shape) * _type_of(rule, dtype).itemsize for rule in rules}
    once, all_loops = sum(sizes.values()), sum(sizes[rule.ours] for rule in rules)
    depth = f"{whole.effective_depth(num_loops)} layers"
    lines = [f"weights of {depth}: {all_loops:,} bytes"]
    if len(rules) > len(sizes):
        copies = f"{num_loops} copies of {whole.num_loop_layers} shared layers"
        lines = [f"unrolled: {copies}, {depth} in all: {all_loops:,} bytes of weights, for {once:,} that they share"]
        lines.append(f"the number of loops is {num_loops} there: for another, export again")
    if whole.loop.exit != "none":
        lines.append(f"model.loop.exit={whole.loop.exit} is dropped: tokens have no exit there, all run all loops")
    return lines


def _compare(path: Path, ours: LoopedGPT, tokenizer: Tokenizer, seq_len: int, num_loops: int) -> str:
    """Read the file as an import does; a line on how far logits are apart. Raises a WrongConversion if too far."""
    with TemporaryDirectory(prefix=".gguf-", dir=path.parent) as name:
        folder = Path(name)
        write_folder(path, folder, None)
        again = Tokenizer.from_bytes(import_tokenizer(folder, new_tokens=False))
        for text in TEXTS:
            if isinstance(tokenizer, SentencePieceTokenizer):
                text = text.replace(SPACE_MARK, "")  # a space to llama.cpp, bytes here
            if again.encode(text) != tokenizer.encode(text):
                raise WrongConversion(f"the tokenizer in the file gives other ids for {text!r}: nothing was kept")
        theirs = load_published(folder, read_config(folder)["model_type"])
        difference = largest_difference(ours, theirs, seq_len, tokenizer.vocab_size, num_loops=num_loops)
    return require_equal(difference, str(path.name))
