"""Export a checkpoint of a run to a folder that standard software loads.

1. Choose the form: the class of transformers that computes the unlooped (or, on request, unrolled) model, else the
   looped model with its own modelling file.
2. Write the weights, one tensor at a time, in files of a few GiB; an unrolled block is written once per loop.
3. Write configuration, tokenizer, and a report on every tensor.
4. Load the result with transformers and compare logits; only then rename the folder to its final name.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.model import ModelSection
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf import modeling_looped_gpt
from pretrain.hf.architectures import Architecture, looped_config, stock_architecture, stock_config
from pretrain.hf.check import build, largest_difference, load_published, require_equal, require_same_ids
from pretrain.hf.names import Rule, looped_rules, stock_rules
from pretrain.hf.report import Fate, describe, write_report
from pretrain.hf.tokenizer import export_tokenizer
from pretrain.model.loop.injections import injection_kind
from pretrain.run.trained_model import load_tokenizer, tokenizer_file
from pretrain.storage import is_there

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FILE_BYTES = 4 << 30
"""Most bytes of a weights file that holds more than one tensor."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    run: Path
    """Run directory."""
    out: Path
    """New folder."""
    step: int | None = None
    """Step of the checkpoint. Default: the newest good one."""
    unroll: bool = False
    """Write a looped model as a stock model whose layers repeat the shared weights."""
    num_loops: int | None = None
    """L to unroll to, or the default of the looped form. Default: the run's."""
    dtype: str = "float32"
    """Type of the written weights; float32 keeps the checkpoint's exactly."""


def export_run(settings: ExportSettings) -> list[str]:
    """Export a checkpoint; returns lines that describe the result.

    Raises:
        ValueError: the run cannot be exported in this form, or the check failed; no folder is left.
        OSError: reading or writing failed.
    """
    if is_there(settings.out):
        raise ValueError(f"{settings.out} exists: name a new folder")
    reader, problems = open_checkpoint(settings.run, settings.step)
    saved = SavedModel.read(reader.meta)
    num_loops = settings.num_loops or saved.model.num_loops
    architecture = _choose(saved.model, settings, num_loops)
    tokenizer = load_tokenizer(tokenizer_file(settings.run, saved), reader)
    unfinished = settings.out.with_name(settings.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        lines = _write(unfinished, reader, saved, architecture, num_loops, tokenizer, DTYPES[settings.dtype])
        unfinished.rename(settings.out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return [
        *(f"warning: {problem}" for problem in problems),
        f"{settings.out}: step {reader.step} of {settings.run}",
        *lines,
    ]


def _choose(model: ModelSection, settings: ExportSettings, num_loops: int) -> Architecture | None:
    """The stock architecture to write, or None for the looped model."""
    model.require_loops("--num-loops", [num_loops])
    stock = stock_architecture(model)
    if not settings.unroll:
        return stock if num_loops == 1 else None
    if num_loops > 1 and not injection_kind(model).can_unroll:
        raise ValueError(
            f"a model with input_injection={model.input_injection} cannot be unrolled into a stock one: "
            "leave out --unroll"
        )
    if stock is None:
        raise ValueError(
            "no class of transformers computes these layers (norms, positions, biases): leave out --unroll"
        )
    return stock


def _write(
    folder: Path, reader: CheckpointReader, saved: SavedModel, architecture: Architecture | None, num_loops: int,
    tokenizer: Tokenizer, dtype: torch.dtype,
) -> list[str]:  # fmt: skip
    model, seq_len = saved.model, saved.seq_len
    if architecture is None:
        name, rules = "LoopedGPTForCausalLM", looped_rules(model, seq_len)
        values = looped_config(model.model_copy(update={"num_loops": num_loops}), seq_len)
        shutil.copy(str(modeling_looped_gpt.__file__), folder)
    else:
        name, rules = architecture.name, stock_rules(architecture.model_type, model, num_loops, seq_len)
        values = stock_config(architecture, model, num_loops, seq_len)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    _write_json(folder / "config.json", values | ids | {"dtype": str(dtype).removeprefix("torch."), "use_cache": True})
    _write_json(folder / "generation_config.json", ids)
    export_tokenizer(tokenizer, folder)
    fates = _write_weights(folder, rules, reader, dtype)
    totals = write_report(folder, f"{name} of {reader.path}", fates)
    require_same_ids(tokenizer, folder)
    ours = build(model, seq_len, lambda weight: reader.read_whole(f"weights/{weight}").to(dtype))
    theirs = load_published(folder, values["model_type"])
    difference = largest_difference(ours, theirs, seq_len, tokenizer.vocab_size, num_loops=num_loops)
    depth = f"{num_loops} loops, " if model.num_loop_layers != model.effective_depth(num_loops) else ""
    return [
        f"{name}, {depth}{model.effective_depth(num_loops)} layers deep, {str(dtype).removeprefix('torch.')}; {totals}",
        require_equal(difference, name),
    ]


def _write_weights(folder: Path, rules: list[Rule], reader: CheckpointReader, dtype: torch.dtype) -> list[Fate]:
    """Write all tensors, with an index if there are several files."""
    files: list[dict[str, Tensor]] = []
    fates: list[Fate] = []
    sizes: list[int] = []
    for rule in tqdm(rules, desc="export", unit="tensor", disable=None):
        tensor = rule.join([reader.read_whole(f"weights/{name}").to(dtype) for name in rule.ours])
        fates.append(
            Fate(what="mapped", target=rule.theirs, source=" + ".join(rule.ours), detail=describe(rule.shape, dtype))
        )
        if not files or sizes[-1] + tensor.nbytes > FILE_BYTES:
            _flush(folder, files)
            files.append({})
            sizes.append(0)
        files[-1][rule.theirs] = tensor
        sizes[-1] += tensor.nbytes
    _flush(folder, files)
    _name_files(folder, files, sum(sizes))
    return fates


def _flush(folder: Path, files: list[dict[str, Tensor]]) -> None:
    """Write the last file and free its tensors, keeping their names."""
    if files:
        save_file(files[-1], _part(folder, len(files) - 1), metadata={"format": "pt"})
        files[-1] = {name: tensor.new_empty(0) for name, tensor in files[-1].items()}


def _name_files(folder: Path, files: list[dict[str, Tensor]], total_bytes: int) -> None:
    if len(files) == 1:
        _part(folder, 0).rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, tensors in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        _part(folder, number).rename(folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    _write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    )


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
