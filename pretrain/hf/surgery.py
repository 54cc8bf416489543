"""Surgery: make a looped model k⊗L from an unlooped one of prelude + k·L + coda layers, as a start for more training.

The first layers become the prelude, the last the coda; the layers between are cut into L blocks of k layers. Each
tensor of the loop block is the mean of those of the blocks, or that of one block. Everything outside the layers is
kept. Bae et al. 2024 (arXiv 2410.20672) compare such initialisations, as "average" and, with single layers, "stepwise".
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.model import LoopRegulariserSection, ModelSection
from pretrain.config.saved_model import SavedModel
from pretrain.hf.report import Fate, describe
from pretrain.hf.weights_run import write_run
from pretrain.model.weights import stage_weights
from pretrain.run.trained_model import tokenizer_file
from pretrain.storage import is_there


@dataclass(frozen=True, kw_only=True)
class SurgerySettings:
    source: Path
    """Run directory of the unlooped model."""
    run: Path
    """New run directory."""
    num_loop_layers: int
    """k: layers of the loop block."""
    num_prelude_layers: int = 0
    num_coda_layers: int = 0
    block: int | None = None
    """Index of the block to use, from 0. Default: the mean of all blocks."""


def loop_model(settings: SurgerySettings) -> list[str]:
    """Make the looped model; returns lines that describe it.

    Raises:
        ValueError: the run is already looped, or its layers cannot be cut into such blocks.
        OSError: reading or writing failed.
    """
    if is_there(settings.run):
        raise ValueError(f"{settings.run} exists: name a new run directory")
    reader, problems = open_checkpoint(settings.source)
    saved = SavedModel.read(reader.meta)
    model, seq_len = _looped_shape(saved.model, settings), saved.seq_len
    weights, fates = {}, []
    for name, weight in stage_weights(model, seq_len).items():
        sources = _sources(name, saved.model, settings, model.num_loops)
        weights[name] = _combine(reader, sources)
        source = sources[0] if len(sources) == 1 else f"mean of {', '.join(sources)}"
        fates.append(
            Fate(
                what="mapped" if len(sources) == 1 else "made",
                target=name,
                source=source,
                detail=describe(weight.shape, "float32"),
            )
        )
    if settings.block is not None:
        used = {fate.source for fate in fates}
        for name, weight in stage_weights(saved.model, seq_len).items():
            if name not in used:
                reason = f"of another block than {settings.block}, {describe(weight.shape, 'float32')}"
                fates.append(Fate(what="dropped", target="", source=name, detail=reason))
    tokenizer = tokenizer_file(settings.source, saved)
    made = SavedModel(
        run=settings.run.name, model=model, seq_len=seq_len, precision=saved.precision, max_loops=model.num_loops,
        tokenizer=str(settings.run / f"tokenizer{tokenizer.suffix}"),
    )  # fmt: skip
    what = "mean of the blocks" if settings.block is None else f"block {settings.block}"
    shape = f"{model.num_loop_layers}⊗{model.num_loops}"
    around = f"{model.num_prelude_layers} layers before and {model.num_coda_layers} after"
    title = f"{settings.run} <- {reader.path}: {shape} with {around}, loop block = {what}"
    totals = write_run(settings.run, made, tokenizer.read_bytes(), weights, fates, title)
    return [*(f"warning: {problem}" for problem in problems), f"{settings.run}: {shape}, {what}; {totals}"]


def _looped_shape(model: ModelSection, settings: SurgerySettings) -> ModelSection:
    if model.num_loops > 1 or model.num_prelude_layers or model.num_coda_layers:
        raise ValueError(
            f"{settings.source} is not an unlooped model: surgery begins with layers that all have weights of their own"
        )
    between = model.num_loop_layers - settings.num_prelude_layers - settings.num_coda_layers
    if between < settings.num_loop_layers or between % settings.num_loop_layers:
        raise ValueError(
            f"{model.num_loop_layers} layers less {settings.num_prelude_layers} before and "
            f"{settings.num_coda_layers} after the loop leave {between}, "
            f"which are not whole blocks of {settings.num_loop_layers}"
        )
    num_loops = between // settings.num_loop_layers
    if settings.block is not None and not 0 <= settings.block < num_loops:
        raise ValueError(f"block {settings.block} of {num_loops} does not exist: they are numbered from 0")
    changes = {
        "num_prelude_layers": settings.num_prelude_layers, "num_loop_layers": settings.num_loop_layers,
        "num_coda_layers": settings.num_coda_layers, "num_loops": num_loops,
        "loop_regulariser": LoopRegulariserSection(),
    }  # fmt: skip
    return model.model_copy(update=changes)


def _sources(name: str, unlooped: ModelSection, settings: SurgerySettings, num_loops: int) -> list[str]:
    """Names of the unlooped model's tensors that a tensor of the looped model is made of."""
    part, _, rest = name.partition(".")
    if part not in ("prelude", "loop", "coda"):
        return [name]
    number, _, kind = rest.partition(".")
    if part == "prelude":
        layers = [int(number)]
    elif part == "coda":
        layers = [unlooped.num_loop_layers - settings.num_coda_layers + int(number)]
    else:
        blocks = range(num_loops) if settings.block is None else [settings.block]
        layers = [settings.num_prelude_layers + block * settings.num_loop_layers + int(number) for block in blocks]
    return [f"loop.{layer}.{kind}" for layer in layers]


def _combine(reader: CheckpointReader, names: list[str]) -> Tensor:
    return torch.stack([reader.read_whole(f"weights/{name}") for name in names]).mean(0)
