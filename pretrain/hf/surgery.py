"""Surgery: make a looped model k⊗L from an unlooped one of prelude + k·L + coda layers, as a start for more training.

The first layers become the prelude, the last the coda; the layers between are cut into L blocks of k layers. Each
tensor of the loop block is the mean of those of the blocks, or that of one block. Everything outside the layers is
kept. Bae et al. 2024 (arXiv 2410.20672) compare such initialisations, as "average" and, with single layers, "stepwise".
"""

from pathlib import Path

import torch

from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.saved_model import SavedModel
from pretrain.hf.report import Fate, describe
from pretrain.hf.weights_run import write_run
from pretrain.model.config import LoopRegulariserSection, ModelSection
from pretrain.model.weights import stage_weights
from pretrain.run.trained_model import tokenizer_file
from pretrain.storage import is_there


def loop_model(
    source: Path, run: Path, *, num_loop_layers: int, num_prelude_layers: int = 0, num_coda_layers: int = 0,
    block: int | None = None,
) -> list[str]:  # fmt: skip
    """Make the looped model; returns lines that describe it.

    Args:
        source: run directory of the unlooped model.
        run: new run directory.
        num_loop_layers: k, layers of the loop block.
        num_prelude_layers: first layers, kept as the prelude.
        num_coda_layers: last layers, kept as the coda.
        block: index of the block to use, from 0. Default: the mean of all blocks.

    Raises:
        ValueError: the run is already looped, or its layers cannot be cut into such blocks.
        OSError: reading or writing failed.
    """
    if is_there(run):
        raise ValueError(f"{run} exists: name a new run directory")
    reader, problems = open_checkpoint(source)
    saved = SavedModel.read(reader.meta)
    unlooped, seq_len = saved.model, saved.seq_len
    if unlooped.num_loops > 1 or unlooped.num_prelude_layers or unlooped.num_coda_layers:
        raise ValueError(
            f"{source} is not an unlooped model: surgery begins with layers that all have weights of their own"
        )
    num_loops = _num_blocks(unlooped.num_loop_layers, num_loop_layers, num_prelude_layers, num_coda_layers)
    if block is not None and not 0 <= block < num_loops:
        raise ValueError(f"block {block} of {num_loops} does not exist: they are numbered from 0")
    changes = {
        "num_prelude_layers": num_prelude_layers, "num_loop_layers": num_loop_layers,
        "num_coda_layers": num_coda_layers, "num_loops": num_loops, "loop_regulariser": LoopRegulariserSection(),
    }  # fmt: skip
    model = unlooped.model_copy(update=changes)
    weights, fates, used = {}, [], set()
    for name, weight in stage_weights(model, seq_len).items():
        sources = _sources(name, unlooped, model, block)
        used.update(sources)
        weights[name] = torch.stack([reader.read_whole(f"weights/{part}") for part in sources]).mean(0)
        what, origin = ("mapped", sources[0]) if len(sources) == 1 else ("made", f"mean of {', '.join(sources)}")
        fates.append(Fate(what, name, origin, describe(weight.shape, "float32")))
    for name, weight in stage_weights(unlooped, seq_len).items():
        if name not in used:
            reason = f"of another block than {block}, {describe(weight.shape, 'float32')}"
            fates.append(Fate("dropped", "", name, reason))
    tokenizer = tokenizer_file(source, saved)
    made = SavedModel(
        run=run.name, model=model, seq_len=seq_len, precision=saved.precision, max_loops=model.num_loops,
        tokenizer=str(run / f"tokenizer{tokenizer.suffix}"),
    )  # fmt: skip
    what = "mean of the blocks" if block is None else f"block {block}"
    shape = f"{model.num_loop_layers}⊗{model.num_loops}"
    around = f"{model.num_prelude_layers} layers before and {model.num_coda_layers} after"
    title = f"{run} <- {reader.path}: {shape} with {around}, loop block = {what}"
    totals = write_run(run, made, tokenizer.read_bytes(), weights, fates, title)
    return [*(f"warning: {problem}" for problem in problems), f"{run}: {shape}, {what}; {totals}"]


def _num_blocks(num_layers: int, num_loop_layers: int, num_prelude_layers: int, num_coda_layers: int) -> int:
    between = num_layers - num_prelude_layers - num_coda_layers
    if between < num_loop_layers or between % num_loop_layers:
        raise ValueError(
            f"{num_layers} layers less {num_prelude_layers} before and {num_coda_layers} after the loop "
            f"leave {between}, which are not whole blocks of {num_loop_layers}"
        )
    return between // num_loop_layers


def _sources(name: str, unlooped: ModelSection, looped: ModelSection, block: int | None) -> list[str]:
    """Names of the unlooped model's tensors that a tensor of the looped model is made of."""
    first_layers = {
        "prelude": 0, "loop": looped.num_prelude_layers, "coda": unlooped.num_loop_layers - looped.num_coda_layers
    }  # fmt: skip
    part, _, rest = name.partition(".")
    if part not in first_layers:
        return [name]
    number, _, kind = rest.partition(".")
    blocks = [0]
    if part == "loop":
        blocks = range(looped.num_loops) if block is None else [block]
    layers = [first_layers[part] + each * looped.num_loop_layers + int(number) for each in blocks]
    return [f"loop.{layer}.{kind}" for layer in layers]
