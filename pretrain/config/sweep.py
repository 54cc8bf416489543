"""A sweep: a family of models over depth, from one file. Each is trained, then evaluated at its own loop count, then
all are plotted.

For every looped model k⊗L of the file the family has the two it is compared with: kL⊗1, as deep and as costly
(iso-FLOP), and k⊗1, with the same weights applied once (iso-parameter). A cell is one of them with one seed, and a run
of its own.
"""

from typing import NamedTuple

from pydantic import Field

from pretrain.config.section import Section


class SweepModel(Section):
    num_loop_layers: int = Field(gt=0)
    """k."""
    num_loops: int = Field(default=1, gt=0)
    """L."""
    overrides: tuple[str, ...] = ()
    """More overrides for this model and its baselines, such as model.loop_regulariser.weight=10."""


class SweepEvaluation(Section):
    tasks: tuple[str, ...] = ()
    """Tasks and groups of tools/eval_depth.py. Default: what the runs are trained on."""
    num_examples: int | None = Field(default=None, gt=0)
    """Of each task. Default: all."""
    data_dir: str | None = None
    """Folder of evaluation data. Default: the network."""


class SweepConfig(Section):
    """The file of a sweep."""

    config: str
    """Configuration that all runs share."""
    overrides: tuple[str, ...] = ()
    """Overrides of it for all runs, such as train.steps=1000."""
    models: tuple[SweepModel, ...] = Field(min_length=1)
    """Looped models of the family."""
    baselines: bool = True
    """Add kL⊗1 and k⊗1 for every k⊗L."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Values of run.seed; each model is trained with all of them."""
    ranks: int = Field(default=1, gt=0)
    """Ranks of a run, on this machine under torchrun."""
    evaluation: SweepEvaluation = SweepEvaluation()
    """What the runs are scored on."""


class Cell(NamedTuple):
    """One run of a sweep."""

    name: str
    """run.name."""
    overrides: tuple[str, ...]
    """All of its overrides, run.name and run.root left out."""
    num_loops: int
    """L that it is trained and scored with."""


def cells(sweep: SweepConfig) -> list[Cell]:
    """The runs of a sweep, each once, in the order of the file."""
    found: dict[str, Cell] = {}
    for model in sweep.models:
        k, loops = model.num_loop_layers, model.num_loops
        shapes = [(k, loops), *([(k * loops, 1), (k, 1)] if sweep.baselines and loops > 1 else [])]
        for layers, count in shapes:
            for seed in sweep.seeds:
                shape = (f"model.num_loop_layers={layers}", f"model.num_loops={count}", f"run.seed={seed}")
                kind = (
                    ""
                    if not model.overrides
                    else "-" + "-".join(text.split(".")[-1].replace("=", "") for text in model.overrides)
                )
                name = f"{layers}x{count}{kind}-seed{seed}"
                found.setdefault(name, Cell(name, (*sweep.overrides, *model.overrides, *shape), count))
    return list(found.values())
