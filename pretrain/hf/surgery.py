"""Surgery: make a looped model of an unlooped one, as a start for more training ("healing").

The N layers are cut into prelude, blocks of k layers, and coda. Prelude, coda and everything outside the layers stay.

    average, first, middle, last, n   the blocks become one, their mean or one of them, looped as often as there were
                                      blocks: as deep as before, with fewer weights (Bae et al. 2024, arXiv 2410.20672)
    none                              there is one block, nothing is merged: at one loop the model is the original, and
                                      more loops make it deeper (McLeish et al. 2025, arXiv 2511.07384)

Where the blocks lie is given, or measured (`layer_choice.py`). A LoRA for each loop can hold what the blocks had for
themselves, as far as its rank reaches (`low_rank.py`): at full rank merged blocks compute what they did before. An
injection joins with the weights with which it changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.saved_model import SavedModel
from pretrain.hf.layer_choice import MOST_TOKENS, WINDOW, choose, places, table, with_losses
from pretrain.hf.low_rank import READERS, factors, fold_norms, folds
from pretrain.hf.report import Fate, describe
from pretrain.hf.weights_run import write_run
from pretrain.model.block_similarity import layer_similarities
from pretrain.model.config import LoopRegulariserSection, ModelSection
from pretrain.model.loop.config import LoopSection
from pretrain.model.weights import layer_weights, loop_design, stage_weights
from pretrain.run.trained_model import load_trained_model, tokenizer_file
from pretrain.storage import require_new

Read = Callable[[str], Tensor]
"""A weight of the unlooped model by its name, fp32."""


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """What to make."""

    num_loop_layers: int
    """k, layers of the loop block."""
    num_loops: int | None = None
    """L: blocks that are merged; with merge=none the loops that have a LoRA of their own. Default: what is left between
    prelude and coda."""
    num_layers: int | None = None
    """Instead of `num_loops`: layers of weights that the looped model has."""
    num_prelude_layers: int | None = None
    """First layers, kept. Default: where the blocks are most alike, if L is known, else 0."""
    num_coda_layers: int | None = None
    """Last layers, kept. Default: as for the prelude."""
    merge: Literal["average", "first", "middle", "last", "none"] | int = "average"
    """What the loop block is made of; a number is that of a block, from 0."""
    lora_rank: int | None = None
    """Rank of a LoRA for each loop. Default: none."""
    injection: str = "none"
    """What re-enters when a pass begins."""
    text: Path | None = None
    """A text on which places of the loop are compared. Default: by weights alone."""


class LayerCut(NamedTuple):
    """Where the layers are cut."""

    num_prelude_layers: int
    num_blocks: int
    num_coda_layers: int
    lines: list[str]
    """How the place was chosen."""


def loop_model(source: Path, run: Path, surgery: Surgery) -> list[str]:
    """Make the looped model of the run `source` as a new run directory; returns lines that describe it.

    Raises:
        ValueError: the run is already looped, its layers cannot be cut so, or LoRA or injection do not fit.
        OSError: reading or writing failed.
    """
    require_new(run)
    reader, problems = open_checkpoint(source)
    saved = SavedModel.read(reader.meta)
    unlooped, seq_len = saved.model, saved.seq_len
    if unlooped.num_loops > 1 or unlooped.num_prelude_layers or unlooped.num_coda_layers:
        raise ValueError(
            f"{source} is not an unlooped model: surgery begins with layers that all have weights of their own"
        )

    def read(name: str) -> Tensor:
        return reader.read_whole(f"weights/{name}")

    cut = _cut(source, surgery, unlooped, read)
    block = _chosen_block(surgery.merge, cut.num_blocks)
    model = _looped(unlooped, surgery, cut)
    weights, fates = _outside_the_loop(unlooped, model, seq_len, read)
    kept, whole, used = 0.0, 0.0, {fate.source for fate in fates}
    for number in range(model.num_loop_layers):
        layer = _LoopLayer(unlooped, model, number, cut, block)
        more, lines, share = layer.make(read)
        weights |= more
        fates += lines
        kept, whole = kept + share[0], whole + share[1]
        used |= layer.used
    for name, weight in stage_weights(unlooped, seq_len).items():
        if name not in used:
            reason = f"of another block than {block}, {describe(weight.shape, 'float32')}"
            fates.append(Fate("dropped", "", name, reason))
    weights |= _injection_weights(model)
    fates += [
        Fate("made", name, "the identity", describe(tuple(weights[name].shape), "float32"))
        for name in _injection_weights(model)
    ]
    tokenizer = tokenizer_file(source, saved)
    made = SavedModel(
        run=run.name, model=model, seq_len=seq_len, precision=saved.precision, max_loops=model.num_loops,
        tokenizer=str(run / f"tokenizer{tokenizer.suffix}"),
    )  # fmt: skip
    what = "mean of the blocks" if block is None else f"block {block}"
    what = what if cut.num_blocks > 1 else "all layers kept"
    shape = f"{model.num_loop_layers}⊗{model.num_loops}"
    around = f"{model.num_prelude_layers} layers before and {model.num_coda_layers} after"
    title = f"{run} <- {reader.path}: {shape} with {around}, loop block = {what}"
    totals = write_run(run, made, tokenizer.read_bytes(), weights, fates, title)
    last = f"{run}: {shape} with {around}, {what}; {totals}"
    held = (
        f"LoRA of rank {surgery.lora_rank} holds {kept / max(whole, 1e-30):.1%} of the squared difference of the blocks"
    )
    return [*(f"warning: {problem}" for problem in problems), *cut.lines, *([held] if whole else []), last]


# Where to cut


def _cut(source: Path, surgery: Surgery, unlooped: ModelSection, read: Read) -> LayerCut:
    total, size = unlooped.num_loop_layers, surgery.num_loop_layers
    before, after = surgery.num_prelude_layers, surgery.num_coda_layers
    num_blocks = _num_blocks(surgery, total)
    if surgery.text is not None and (num_blocks is None or before is not None or after is not None):
        raise ValueError("--text chooses the place of the loop: give it --num-loops, and neither prelude nor coda")
    if num_blocks is None:
        before, after = before or 0, after or 0
        between = total - before - after
        if between < size or between % size:
            raise ValueError(
                f"{total} layers less {before} before and {after} after the loop "
                f"leave {between}, which are not whole blocks of {size}"
            )
        return LayerCut(before, between // size, after, [])
    rest = total - size * num_blocks
    if rest < 0:
        blocks = f"{num_blocks} blocks of {size}" if num_blocks > 1 else f"a block of {size}"
        raise ValueError(f"{total} layers do not hold {blocks}, {size * num_blocks} layers")
    if before is None and after is None:
        return _measured(source, surgery, unlooped, num_blocks, read)
    before = rest - (after or 0) if before is None else before
    after = rest - before if after is None else after
    if before + after != rest or min(before, after) < 0:
        raise ValueError(
            f"{before} layers before the loop, {num_blocks} x {size} in it and {after} after it are not the {total} of "
            "the model: leave out --num-prelude-layers or --num-coda-layers"
        )
    return LayerCut(before, num_blocks, after, [])


def _num_blocks(surgery: Surgery, total: int) -> int | None:
    """Blocks that become one, if they do not follow from prelude and coda."""
    if surgery.merge == "none":
        if surgery.num_layers is not None:
            raise ValueError("--num-layers: with --merge none the model keeps all of its layers")
        if (surgery.num_loops is None) != (surgery.lora_rank is None):
            raise ValueError(
                "--merge none: --num-loops and --lora-rank belong together, as the loops that have a LoRA each; "
                "without them the model loops as often as training says"
            )
        return 1
    if surgery.num_layers is None:
        return surgery.num_loops
    less = total - surgery.num_layers
    if less < 0 or less % surgery.num_loop_layers:
        raise ValueError(
            f"--num-layers {surgery.num_layers}: blocks of {surgery.num_loop_layers} that become one take whole blocks "
            f"off the {total} layers, not {less} layers"
        )
    return 1 + less // surgery.num_loop_layers


def _measured(source: Path, surgery: Surgery, unlooped: ModelSection, num_blocks: int, read: Read) -> LayerCut:
    """The best place of the blocks; that of one block alone as if it were to be run twice."""
    total, size, compared = unlooped.num_loop_layers, surgery.num_loop_layers, max(num_blocks, 2)
    if size * compared > total:
        raise ValueError(
            f"{total} layers hold no two blocks of {size} to compare: place the loop with --num-prelude-layers"
        )
    found = places(layer_similarities(unlooped, size, read), total, size, compared)
    before = None
    if surgery.text is not None:
        trained = load_trained_model(source, torch.device("cpu"))
        tokens = trained.tokenizer.encode(
            surgery.text.read_text(encoding="utf-8", errors="replace")[: 16 * MOST_TOKENS]
        )[:MOST_TOKENS]
        window = min(WINDOW, trained.saved.seq_len + 1, len(tokens))
        if window < 2:
            raise ValueError(f"--text {surgery.text}: it has {len(tokens)} tokens, too few to predict one")
        rows = torch.tensor(tokens[: len(tokens) // window * window]).view(-1, window)

        def blocks_at(first: int) -> list[list[int]]:
            step = size if num_blocks > 1 else 0
            return [list(range(start, start + size)) for start in (first + each * step for each in range(compared))]

        found = [replace(place, after=total - place.first - size * num_blocks) for place in found]
        found, before = with_losses(found, trained.model, rows, blocks_at, _chosen_block(surgery.merge, num_blocks))
    best = choose(found)
    after = total - best.first - size * num_blocks
    return LayerCut(best.first, num_blocks, after, table(found, best, size, compared, before))


def _chosen_block(merge: str | int, num_blocks: int) -> int | None:
    """Number of the block that is taken; None: the mean of all."""
    named = {"average": None, "first": 0, "middle": (num_blocks - 1) // 2, "last": num_blocks - 1, "none": 0}
    block = named[merge] if isinstance(merge, str) else merge
    if block is not None and not 0 <= block < num_blocks:
        raise ValueError(f"block {block} of {num_blocks} does not exist: they are numbered from 0")
    return block


def _looped(unlooped: ModelSection, surgery: Surgery, cut: LayerCut) -> ModelSection:
    """The shape of the looped model."""
    loop: dict[str, object] = {"injection": surgery.injection}
    if surgery.lora_rank is not None:
        smallest = min(min(weight.shape) for weight in layer_weights(unlooped).values() if len(weight.shape) == 2)
        if surgery.lora_rank > smallest:
            raise ValueError(
                f"--lora-rank {surgery.lora_rank}: the smallest matrix of a layer has rank {smallest}, the most to set"
            )
        made_for = surgery.num_loops if surgery.merge == "none" else cut.num_blocks
        loop |= {"per_loop": "lora", "lora": {"rank": surgery.lora_rank}, "made_for": made_for}
    changes = {
        "num_prelude_layers": cut.num_prelude_layers, "num_loop_layers": surgery.num_loop_layers,
        "num_coda_layers": cut.num_coda_layers, "num_loops": cut.num_blocks,
        "loop_regulariser": LoopRegulariserSection(), "loop": LoopSection.model_validate(loop),
    }  # fmt: skip
    model = unlooped.model_copy(update=changes)
    if loop_design(model).injection.identity() is None:
        raise ValueError(
            f"--injection {surgery.injection} has no weights with which it changes nothing, so it cannot join a "
            "trained model; concat has"
        )
    return model


# What the weights are made of


def _outside_the_loop(
    unlooped: ModelSection, model: ModelSection, seq_len: int, read: Read
) -> tuple[dict[str, Tensor], list[Fate]]:
    """Weights that stay as they are, with their new names."""
    first = {"prelude": 0, "coda": unlooped.num_loop_layers - model.num_coda_layers}
    weights, fates = {}, []
    for name, weight in stage_weights(model, seq_len).items():
        part, _, rest = name.partition(".")
        if part in ("loop", "injection", "per_loop"):
            continue
        origin = name
        if part in first:
            number, _, path = rest.partition(".")
            origin = f"loop.{first[part] + int(number)}.{path}"
        weights[name] = read(origin)
        fates.append(Fate("mapped", name, origin, describe(weight.shape, "float32")))
    return weights, fates


class _LoopLayer:
    """Layer `number` of the loop block, made of the layers at its place in the blocks."""

    def __init__(
        self, unlooped: ModelSection, model: ModelSection, number: int, cut: LayerCut, block: int | None
    ) -> None:
        first = cut.num_prelude_layers + number
        self.layers = [first + each * model.num_loop_layers for each in range(cut.num_blocks)]
        self.unlooped, self.model, self.number, self.block = unlooped, model, number, block
        self.lora = loop_design(model).per_loop.settings if model.loop.per_loop == "lora" else None
        self.folds = self.lora is not None and folds(unlooped)
        chosen = self.layers if self.lora is not None or block is None else [self.layers[block]]
        self.used = {f"loop.{layer}.{path}" for layer in chosen for path in layer_weights(unlooped)}

    def make(self, read: Read) -> tuple[dict[str, Tensor], list[Fate], tuple[float, float]]:
        """Its weights, a line for each, and the squared norms of the differences: what LoRA holds, and all."""
        of_layers = [self._read(layer, read) for layer in self.layers]
        weights, fates = {}, []
        for path, weight in layer_weights(self.unlooped).items():
            name, sources = f"loop.{self.number}.{path}", [f"loop.{layer}.{path}" for layer in self.layers]
            if self.block is None:
                made = torch.stack([layer[path] for layer in of_layers]).mean(0)
                origin = f"mean of {', '.join(sources)}" if len(sources) > 1 else sources[0]
            else:
                made, origin = of_layers[self.block][path], sources[self.block]
            weights[name] = made
            detail = describe(weight.shape, "float32")
            if self.folds and any(path.startswith((norm, *maps)) for norm, maps in READERS.items()):
                fates.append(Fate("made", name, origin, f"{detail}, with the norm's scale in the maps that read it"))
            else:
                fates.append(Fate("mapped" if origin in sources else "made", name, origin, detail))
        if self.lora is None:
            return weights, fates, (0.0, 0.0)
        pairs, lines, share = self._pairs(of_layers, weights)
        return weights | pairs, fates + lines, share

    def _read(self, layer: int, read: Read) -> dict[str, Tensor]:
        found = {path: read(f"loop.{layer}.{path}") for path in layer_weights(self.unlooped)}
        return fold_norms(found) if self.folds else found

    def _pairs(
        self, of_layers: list[dict[str, Tensor]], shared: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[Fate], tuple[float, float]]:
        """A and B of every map in every loop."""
        weights, fates, kept, whole = {}, [], 0.0, 0.0
        design = loop_design(self.model)
        for loop in range(design.shape.num_loops):
            place = min(loop, len(self.layers) - 1)
            for path in design.shape.linears:
                stem = f"loop.{self.number}.per_loop.{loop}.{path}"
                difference = of_layers[place][f"{path}.weight"] - shared[f"loop.{self.number}.{path}.weight"]
                found = factors(difference, design.per_loop.settings, self.model.init_std, stem)
                kept, whole = kept + found.kept, whole + found.whole
                for half, factor in (("down", found.down), ("up", found.up)):
                    weights[f"{stem}.{half}.weight"] = factor
                    origin = f"loop.{self.layers[place]}.{path}.weight less that of the loop block"
                    size = describe(tuple(factor.shape), "float32")
                    fates.append(Fate("made", f"{stem}.{half}.weight", origin, size))
        return weights, fates, (kept, whole)


def _injection_weights(model: ModelSection) -> dict[str, Tensor]:
    """The weights with which the injection changes nothing."""
    made = {"identity": torch.eye, "zeros": lambda width: torch.zeros(width, width)}
    values = loop_design(model).injection.identity() or {}
    return {f"injection.{name}": made[value](model.hidden_size) for name, value in values.items()}
