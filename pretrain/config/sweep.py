"""A sweep: runs of one configuration that are compared, from one file: a family of models over depth, or methods of
fine-tuning.

For every looped model k⊗L of the file the family has the two it is compared with: kL⊗1, as deep and as costly
(iso-FLOP), and k⊗1, with the same weights applied once (iso-parameter). Each is trained, then evaluated at its own loop
count, then all are plotted. Methods are trained, which ends with their test questions, then all are put in a table.
A cell is one model or method with one seed, and a run of its own.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import Field, model_validator

from pretrain.schema.section import Section


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
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Kinds of tasks, such as recall and reasoning, whose means and slopes the plot compares: task groups of each."""


class SweepConfig(Section):
    """The file of a sweep."""

    config: str
    """Configuration that all runs share."""
    overrides: tuple[str, ...] = ()
    """Overrides of it for all runs, such as train.steps=1000."""
    models: tuple[SweepModel, ...] = ()
    """Looped models of a family over depth; the configuration is one of pretraining."""
    baselines: bool = True
    """Add kL⊗1 and k⊗1 for every k⊗L."""
    methods: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Instead of models: values of method.name, or <method.name>-<label> for several runs of a method, each with
    overrides for it alone; the configuration is one of fine-tuning."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Values of run.seed; each model or method is trained with all of them."""
    ranks: int = Field(default=1, gt=0)
    """Ranks of a run, on this machine under torchrun."""
    evaluation: SweepEvaluation = SweepEvaluation()
    """What models are scored on."""

    @model_validator(mode="after")
    def _check_kind(self) -> "SweepConfig":
        if bool(self.models) == bool(self.methods):
            raise ValueError("a sweep compares models or methods: give one of the two")
        if self.methods and self.evaluation != SweepEvaluation():
            raise ValueError("evaluation: is for models; methods are scored on data.test of their configuration")
        return self


class SweepCell(NamedTuple):
    """A run of a sweep."""

    name: str
    """run.name."""
    overrides: tuple[str, ...]
    """All of its overrides, run.name and run.root left out."""
    num_loops: int | None = None
    """L that a model is trained and scored with."""


def cells(sweep: SweepConfig) -> list[SweepCell]:
    """The runs of a sweep, each once, in the order of the file."""
    found: dict[str, SweepCell] = {}
    for name, overrides, num_loops in [*_named_apart(list(_models(sweep))), *_methods(sweep)]:
        for seed in sweep.seeds:
            cell = SweepCell(f"{name}-seed{seed}", (*sweep.overrides, *overrides, f"run.seed={seed}"), num_loops)
            found.setdefault(cell.name, cell)
    return list(found.values())


def _models(sweep: SweepConfig) -> Iterator[SweepCell]:
    for model in sweep.models:
        k, loops = model.num_loop_layers, model.num_loops
        kind = "".join(f"-{text.split('.')[-1].replace('=', '')}" for text in model.overrides)
        shapes = [(k, loops), *([(k * loops, 1), (k, 1)] if sweep.baselines and loops > 1 else [])]
        for layers, count in shapes:
            shape = (f"model.num_loop_layers={layers}", f"model.num_loops={count}")
            yield SweepCell(f"{layers}x{count}{kind}", (*model.overrides, *shape), count)


def _named_apart(models: Sequence[SweepCell]) -> list[SweepCell]:
    """Where overrides of two models of one name differ, as those of two sections can, both have a hash of theirs."""
    meant: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for model in models:
        meant[model.name].add(model.overrides)
    return [
        model if len(meant[model.name]) == 1 else model._replace(name=f"{model.name}-{_short_hash(model.overrides)}")
        for model in models
    ]


def _short_hash(overrides: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:6]


def _methods(sweep: SweepConfig) -> Iterator[SweepCell]:
    for name, overrides in sweep.methods.items():
        method, _, _ = name.partition("-")
        yield SweepCell(name, (f"method.name={method}", *overrides))
