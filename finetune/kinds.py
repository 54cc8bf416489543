"""The kinds of runs, for tools that handle all of them: pretraining, fine-tuning, reinforcement learning. No torch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import finetune.coconut
import finetune.config
import finetune.grpo
import finetune.reinforce.config
import pretrain.config.layout
import pretrain.train
from finetune.config import FinetuneConfig
from finetune.reinforce.config import GrpoConfig
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepConfig


class Kind(NamedTuple):
    """What a kind of runs has."""

    schema: Any
    """Of its configuration."""
    entry: str
    """Its entry point: a module, or a script of this project."""
    check_layout: Callable[[Any, int], object]
    """Refuses a number of ranks that a configuration does not fit."""
    describe_data: Callable[[Any], Iterable[str]]
    """As for its dry run."""
    rows: str
    """File of its evaluation rows."""
    results: str
    """Folder of its configurations, where the results of a sweep are published."""


MODELS = Kind(
    RunConfig, "pretrain.train", pretrain.config.layout.check_layout, pretrain.train.describe_data, "depth.jsonl",
    "configs/sweeps",
)  # fmt: skip
METHODS = Kind(
    FinetuneConfig, "finetune/coconut.py", finetune.config.check_layout, finetune.coconut.data_lines, "coconut.jsonl",
    "configs/finetune",
)  # fmt: skip
POLICIES = Kind(
    GrpoConfig, "finetune/grpo.py", finetune.reinforce.config.check_layout, finetune.grpo.data_lines, "coconut.jsonl",
    "configs/finetune",
)  # fmt: skip


def kind_of(sweep: SweepConfig) -> Kind:
    """Of the runs of a sweep."""
    table: dict[Literal["models", "methods", "policies"], Kind] = {
        "models": MODELS, "methods": METHODS, "policies": POLICIES,
    }  # fmt: skip
    return table[sweep.kind]


def kind_of_saved(values: Mapping[str, Any]) -> Kind:
    """Of the run whose configuration has these sections."""
    return POLICIES if "rollout" in values else METHODS if "curriculum" in values else MODELS
