"""Export a checkpoint of a run to a folder that standard software loads.

1. Choose the form: the class of transformers that computes the unlooped (or, on request, unrolled) model, else the
   looped model with its own modelling file; or the form of a published looped model, on request.
2. Write the weights, one tensor at a time, in files of a few GiB; an unrolled block is written once per loop.
3. Write configuration, tokenizer, and a report on every tensor.
4. Load the result with transformers, or with our own import where it has no class, and compare logits; only then
   rename the folder to its final name.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf.architectures import (
    LOOPED,
    Architecture,
    looped_config,
    read_shape,
    stock_architecture,
    stock_config,
)
from pretrain.hf.check import build, largest_difference, load_published, require_equal, require_same_ids
from pretrain.hf.gguf_export import require_gguf, write_gguf
from pretrain.hf.importing import read_weights
from pretrain.hf.loop_formats.format import LoopFormat
from pretrain.hf.loop_formats.table import FORMATS
from pretrain.hf.names import Rule, looped_rules, stock_rules
from pretrain.hf.published_weights import PublishedWeights
from pretrain.hf.report import Fate, describe, write_report
from pretrain.hf.tokenizer import export_tokenizer
from pretrain.hf.travelling import write_modeling
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.weights import loop_design, stage_weights
from pretrain.run.trained_model import load_tokenizer, tokenizer_file
from pretrain.storage import require_new

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GGUF = "gguf"
FILE_BYTES = 4 << 30
"""Most bytes of a weights file that holds more than one tensor."""


def export_run(
    run: Path, out: Path, *, step: int | None = None, unroll: bool = False, published: str | None = None,
    num_loops: int | None = None, dtype: str = "float32",
) -> list[str]:  # fmt: skip
    """Export a checkpoint; returns lines that describe the result.

    Args:
        run: run directory.
        out: new folder.
        step: step of the checkpoint. Default: the newest good one.
        unroll: write a looped model as a stock model whose layers repeat the shared weights.
        published: write it in the form of this published looped model (FORMATS), or "gguf": unrolled, one GGUF file.
        num_loops: L to unroll to, or the default of the looped form. Default: the run's.
        dtype: type of the written weights (DTYPES); float32 keeps the checkpoint's exactly.

    Raises:
        ValueError: the run cannot be exported in this form, or the check failed; no folder is left.
        OSError: reading or writing failed.
    """
    require_new(out, "folder")
    reader, problems = open_checkpoint(run, step)
    saved = SavedModel.read(reader.meta)
    num_loops = num_loops or saved.model.num_loops
    form: Architecture | LoopFormat | None = None
    if published == GGUF:
        require_gguf(saved.model, num_loops)
    elif published is None:
        form = _choose(saved.model, num_loops, unroll)
    else:
        form = FORMATS[published]
        saved.model.require_loops("--num-loops", [num_loops])
        form.require_holds(saved.model.at_loops(num_loops))
    tokenizer = load_tokenizer(tokenizer_file(run, saved), reader)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        if published == GGUF:
            lines = write_gguf(unfinished, reader, saved, num_loops, tokenizer, DTYPES[dtype])
        else:
            lines = _write(unfinished, reader, saved, form, num_loops, tokenizer, DTYPES[dtype])
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return [*(f"warning: {problem}" for problem in problems), f"{out}: step {reader.step} of {run}", *lines]


def _choose(model: ModelSection, num_loops: int, unroll: bool) -> Architecture | None:
    """The stock architecture to write, or None for the looped model."""
    model.require_loops("--num-loops", [num_loops])
    is_plain = loop_design(model).is_plain(model.num_passes(num_loops))
    if model.num_blocks > 1 and not is_plain:
        raise ValueError(
            f"a block-regularised model with {_loop_design(model)} has no form to be written in: "
            "a stock model has no such thing, a looped one has one block"
        )
    stock = stock_architecture(model)
    if not unroll and not (num_loops == 1 and is_plain):
        for kind, name in model.loop.plugins.items():
            raise ValueError(f"model.loop.{kind}={name} is of a file of your own, which does not travel with an export")
        return None
    if not unroll:
        return stock
    if not is_plain:
        raise ValueError(f"a model with {_loop_design(model)} cannot be unrolled into a stock one: leave out --unroll")
    if stock is None:
        raise ValueError(
            "no class of transformers computes these layers (norms, positions, biases): leave out --unroll"
        )
    return stock


def _loop_design(model: ModelSection) -> str:
    """What its configuration says of the loop."""
    return ", ".join(f"model.loop.{key}={value}" for key, value in model.loop.model_dump(exclude_defaults=True).items())


def _write(
    folder: Path, reader: CheckpointReader, saved: SavedModel, form: Architecture | LoopFormat | None, num_loops: int,
    tokenizer: Tokenizer, dtype: torch.dtype,
) -> list[str]:  # fmt: skip
    model, seq_len = saved.model, saved.seq_len
    constants, said = {}, []
    if form is None:
        name, rules = LOOPED, looped_rules(model, seq_len)
        values = looped_config(model.at_loops(num_loops), seq_len)
        write_modeling(folder)
    elif isinstance(form, LoopFormat):
        name, rules, said = form.class_name, form.rules(model, seq_len), form.lost(model)
        values = {"architectures": [name], "model_type": form.model_type}
        values |= form.config(form.kept(model.at_loops(num_loops)), seq_len)
        constants = form.constants(model, seq_len)
    else:
        name, rules = form.name, stock_rules(form.model_type, model, num_loops, seq_len)
        values = stock_config(form, model, num_loops, seq_len)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    usage = tokenizer.usage
    more = {"dtype": str(dtype).removeprefix("torch."), "use_cache": True}
    _write_json(folder / "config.json", values | (usage.model_ids or ids) | more)
    _write_json(folder / "generation_config.json", usage.generation or ids)
    export_tokenizer(tokenizer, folder)
    fates = _write_weights(folder, rules, reader, dtype, constants)
    held = {ours for rule in rules for ours in rule.ours}
    lost = [weight for weight in stage_weights(model, seq_len) if weight not in held]
    fates += [Fate("dropped", "", weight, f"{name} has no place for it") for weight in lost]
    totals = write_report(folder, f"{name} of {reader.path}", fates, said)
    require_same_ids(tokenizer, folder, values["model_type"])
    ours = build(model, seq_len, lambda weight: reader.read_whole(f"weights/{weight}").to(dtype))
    theirs = _read_back(folder) if isinstance(form, LoopFormat) else load_published(folder, values["model_type"])
    difference = largest_difference(ours, theirs, seq_len, tokenizer.vocab_size, num_loops=num_loops)
    depth = f"{num_loops} loops, " if model.num_loop_layers != model.effective_depth(num_loops) else ""
    return [
        f"{name}, {depth}{model.effective_depth(num_loops)} layers deep, {str(dtype).removeprefix('torch.')}; {totals}",
        *said,
        require_equal(difference, name),
    ]


def _read_back(folder: Path) -> LoopedGPT:
    """The model that an import makes of a folder, in fp32."""
    kind, model, seq_len = read_shape(folder)
    weights, _, _ = read_weights(PublishedWeights(folder), kind, model, seq_len)
    return build(model, seq_len, weights.__getitem__)


def _write_weights(
    folder: Path, rules: list[Rule], reader: CheckpointReader, dtype: torch.dtype, constants: Mapping[str, Tensor]
) -> list[Fate]:
    """Write all tensors, with an index if there are several files; constants as they are, in the last of them."""
    files: list[list[Rule]] = []
    room = 0
    for rule in rules:
        size = math.prod(rule.shape) * dtype.itemsize
        if not files or size > room:
            files.append([])
            room = FILE_BYTES
        files[-1].append(rule)
        room -= size
    fates: list[Fate] = []
    weight_map: dict[str, str] = {}
    total_bytes = 0
    with tqdm(total=len(rules), desc="export", unit="tensor", disable=None) as progress:
        for number, held in enumerate(files, start=1):
            name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            tensors = {}
            for rule in held:
                tensors[rule.theirs] = rule.join([reader.read_whole(f"weights/{ours}").to(dtype) for ours in rule.ours])
                fates.append(Fate("mapped", rule.theirs, " + ".join(rule.ours), describe(rule.shape, dtype)))
                progress.update()
            if number == len(files):
                tensors |= constants
                fates += [
                    Fate("made", key, "a constant of the computation", describe(tuple(each.shape), each.dtype))
                    for key, each in constants.items()
                ]
            save_file(tensors, folder / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, name)
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    return fates


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
