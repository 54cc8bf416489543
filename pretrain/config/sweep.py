"""A sweep: runs of one configuration that are compared, from one file: a family of models over depth, methods of
fine-tuning, policies that are rewarded, or a grid of settings.

For every looped model k⊗L of the file the family has the two it is compared with: kL⊗1, as deep and as costly (iso-
FLOP), and k⊗1, with the same weights applied once (iso-parameter). Each is trained, then evaluated at its own loop
count, then all are plotted. Methods and policies are trained, which ends with their test questions, then all are put in
a table. A grid multiplies models or methods by values of settings; alone it varies the configuration itself. A cell is
one model or method with one set of values and one seed, and a run of its own.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
    """Kinds of tasks, such as recall and reasoning, whose means and slopes the plot compares: task groups of each, or
    single tasks (p_hop, p_hop_2 and so on where a run is trained on several difficulties)."""


ALONG = "along.svg"
"""Figure of a grid along one setting."""


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
    policies: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Instead of models: names of runs of reinforcement learning, each with overrides for it alone, such as the run
    that it starts from; the configuration is one of finetune/grpo.py."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Values of settings, such as {optimizer.lr: [0.001, 0.003]}: every model or method is trained with every
    combination of them."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Values of run.seed; each model or method is trained with all of them."""
    ranks: int = Field(default=1, gt=0)
    """Ranks of a run, on this machine (`pretrain.launch`)."""
    evaluation: SweepEvaluation = SweepEvaluation()
    """What models are scored on."""

    @property
    def kind(self) -> Literal["models", "methods", "policies"]:
        """What its runs are; a grid alone is of models."""
        return "methods" if self.methods else "policies" if self.policies else "models"

    @property
    def plot_options(self) -> list[str]:
        """What tools/scaling_plot.py is told beside the rows of a sweep over models."""
        return [f"--group={kind}={','.join(tasks)}" for kind, tasks in self.evaluation.groups.items()]

    def compare_options(self, out: Path) -> list[str]:
        """What tools/compare.py is told beside the runs of a grid: to draw them along the one setting that has several
        values, if these are numbers, into a folder."""
        varied = [key for key in self.grid if key != "run.seed"]
        along = [f"--along={','.join(varied)}"] if varied else []
        is_drawn = len(varied) == 1 and all(_is_number(value) for value in self.grid[varied[0]])
        return along + ([f"--figure={out / ALONG}"] if is_drawn else [])

    @model_validator(mode="after")
    def _check_kind(self) -> "SweepConfig":
        given = [bool(each) for each in (self.models, self.methods, self.policies)]
        if sum(given) > 1 or not (any(given) or self.grid):
            raise ValueError("a sweep compares models, methods or policies: give one of them, or a grid of settings")
        if self.kind != "models" and self.evaluation != SweepEvaluation():
            raise ValueError("evaluation: is for models; the others are scored on data.test of their configuration")
        for key, values in self.grid.items():
            if not values or len(set(map(_spelt, values))) < len(values):
                raise ValueError(f"grid.{key}: needs values, each once")
        if "run.seed" in self.grid and "seeds" in self.model_fields_set:
            raise ValueError("grid.run.seed: seeds are given too; give one of the two")
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
    axes = {key: values for key, values in sweep.grid.items() if key != "run.seed"}
    points = [dict(zip(axes, map(_spelt, values), strict=True)) for values in product(*axes.values())]
    alone = [] if sweep.models or sweep.kind != "models" else [SweepCell("", ())]
    policies = [SweepCell(name, overrides) for name, overrides in sweep.policies.items()]
    for name, overrides, num_loops in [*alone, *_named_apart(list(_models(sweep))), *_methods(sweep), *policies]:
        for point in points:
            labels = [_label(key, value, axes) for key, value in point.items()]
            settings = (*sweep.overrides, *overrides, *(f"{key}={value}" for key, value in point.items()))
            for seed in sweep.grid.get("run.seed", sweep.seeds):
                full = "-".join(filter(None, [name, *labels, f"seed{seed}"]))
                found.setdefault(full, SweepCell(full, (*settings, f"run.seed={seed}"), num_loops))
    return list(found.values())


def _spelt(value: Any) -> str:
    """A value as an override has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _label(key: str, value: str, axes: Iterable[str] = ()) -> str:
    """A value in the name of a run: after the last part of its key, or all of it where two of the grid end alike."""
    last = key.rpartition(".")[2]
    is_clear = sum(other.rpartition(".")[2] == last for other in axes) <= 1
    return re.sub(r"[^A-Za-z0-9._+-]+", "", (last if is_clear else key) + value)


def _models(sweep: SweepConfig) -> Iterator[SweepCell]:
    for model in sweep.models:
        k, loops = model.num_loop_layers, model.num_loops
        settings = [text.partition("=") for text in model.overrides]
        kind = "".join(f"-{_label(key, value)}" for key, _, value in settings)
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


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
