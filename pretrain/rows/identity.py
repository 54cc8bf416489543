"""What a row of results is about: one schema for the rows of training, of evaluation and of fine-tuning.

    RunIdentity    the run: its id, its configuration, its data; every checkpoint has it in its `meta`
    ResultRow      and the model, what it was scored on, and what that cost

What a row does not say, because an older version wrote it, is None: unknown, and so equal to nothing.
"""

import hashlib
import json
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, FiniteFloat

from pretrain.config.run import RunConfig

NonNegative = Annotated[FiniteFloat, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0, le=sys.maxsize)]
PositiveInt = Annotated[int, Field(gt=0, le=sys.maxsize)]
"""Of 64 bits, as tables of numbers hold them."""

WITHOUT_EFFECT = (
    "run", "logging", "parallel", "engine", "ranks", "profile", "train.micro_batch", "train.deterministic",
    "train.exit_after", "train.recompute", "train.memory_gib", "train.compile", "train.max_bad_steps", "train.hooks",
    "data.num_workers",
    "data.prefetch_batches", "data.on_damage", "data.test", "validation.batch", "rollout.batch", "checkpoint.every",
    "checkpoint.keep_last", "checkpoint.keep_every", "checkpoint.asynchronous", "checkpoint.resume",
)  # fmt: skip
"""Keys and sections of a configuration that change no number of its run, and run.seed, which a row names alone. What a
run was scored on is in a row's `inputs`."""
IN_PRETRAINING = ("validation",)
"""The same in pretraining alone: fine-tuning chooses its best weights by validation."""
OTHER_RUNS = ("checkpoint.init_from", "train.teacher.run")
"""Settings that name another run. Where its name has this run's seed, as `runs/cot-seed{run.seed}` gives it, that
makes no other variant."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """A run as its rows and checkpoints name it."""

    run_id: str | None = None
    """Drawn when the run began, so that no other has it, whatever both are called."""
    seed: NonNegativeInt | None = None
    """run.seed."""
    settings: Mapping[str, Any] | None = None
    """What differs from the base, the defaults of this code, key by key; without what changes no number, and with
    `seed{run.seed}` for the run's seed in the name of another run."""
    variant: str | None = None
    """Hash of `settings`: runs that differ in the seed alone have the same."""
    config: str | None = None
    """Hash of the settings as they were given, and seed."""
    data: str | None = None
    """Fingerprint of what it was trained on: files, or tasks with their parameters."""
    trained_loops: tuple[PositiveInt, PositiveInt] | None = None
    """Fewest and most loops that training had a loss of."""

    def __post_init__(self) -> None:
        """Rows of older versions name the other run of each seed."""
        if self.settings is not None and self.seed is not None:
            settings = _without_seed(self.settings, self.seed)
            if settings != self.settings:
                object.__setattr__(self, "settings", settings)
                object.__setattr__(self, "variant", digest(settings))

    @classmethod
    def of(cls, config: BaseModel, *, trained_loops: tuple[int, int], data: str | None = None) -> Self:
        """A run that begins now, with a configuration of pretraining or of fine-tuning."""
        return cls(run_id=secrets.token_hex(8), data=data, trained_loops=trained_loops, **_of_settings(config))

    @classmethod
    def read(cls, meta: Mapping[str, Any]) -> Self:
        """The run of a checkpoint, from its `meta`; of a checkpoint from before runs had an identity, what its
        configuration of pretraining says."""
        if isinstance(saved := meta.get("identity"), Mapping):
            known: dict[str, Any] = {field.name: saved[field.name] for field in fields(cls) if field.name in saved}
            known["trained_loops"] = tuple(known.get("trained_loops") or ()) or None
            return cls(**known)
        if "next_sample" not in meta:
            return cls()
        config = RunConfig.read_saved(meta["config"])
        return cls(trained_loops=loops_of(config), **_of_settings(config))

    @property
    def identity(self) -> "RunIdentity":
        """The run alone, of what is more."""
        return RunIdentity(**{field.name: getattr(self, field.name) for field in fields(RunIdentity)})

    def as_meta(self) -> dict[str, Any]:
        return asdict(self)


def loops_of(config: RunConfig) -> tuple[int, int]:
    """Fewest and most loops with which pretraining answers: those that a step can draw, or, where the loss is of every
    loop, all up to the most."""
    return 1 if config.train.loop_loss.is_of_every_loop else config.min_loops, config.max_loops


def settings_of(config: BaseModel) -> dict[str, Any]:
    """`RunIdentity.settings` of a configuration."""
    return _of_settings(config)["settings"]


def variant_of(config: BaseModel) -> str:
    """`RunIdentity.variant` of a configuration: what rows of its runs must have."""
    return str(_of_settings(config)["variant"])


def config_of(config: BaseModel) -> str:
    """`RunIdentity.config` of a configuration."""
    return str(_of_settings(config)["config"])


def digest(value: Any) -> str:
    """Short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _of_settings(config: Any) -> dict[str, Any]:
    given, seed = _given(config), config.run.seed
    settings = _without_seed(given, seed)
    return {
        "seed": seed, "settings": settings, "variant": digest(settings), "config": digest([given, seed]),
    }  # fmt: skip


def _given(config: BaseModel) -> dict[str, Any]:
    hidden = WITHOUT_EFFECT + (IN_PRETRAINING if isinstance(config, RunConfig) else ())
    found = _flat(config.model_dump(mode="json", exclude_defaults=True))
    return {key: value for key, value in found if not any(f"{key}.".startswith(f"{name}.") for name in hidden)}


def _without_seed(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The settings with the seed's place for the seed, in names of other runs."""
    own = re.compile(rf"\bseed{seed}\b|(?<=[-_])seed{seed}\b")
    return {
        key: own.sub("seed{run.seed}", value) if key in OTHER_RUNS and isinstance(value, str) else value
        for key, value in settings.items()
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@dataclass(frozen=True, kw_only=True)
class ResultRow(RunIdentity):
    """A row of results."""

    run: str
    """Name of the run; others may have the same."""
    step: NonNegativeInt
    """Steps done when the model was scored."""
    num_prelude_layers: NonNegativeInt | None = None
    num_loop_layers: NonNegativeInt | None = None
    """k."""
    num_coda_layers: NonNegativeInt | None = None
    num_loops: PositiveInt
    """L: loops that the model was run with."""
    tokens_seen: NonNegativeInt | None = None
    """Tokens that the run trained on until then; null where nobody counted them, as for imported weights."""
    train_flops: NonNegative | None = None
    """FLOPs of the run's training until then; null where nobody counted them."""
    num_examples: PositiveInt
    """N: examples scored."""
    stderr: NonNegative | None
    """Standard error of the number over examples, where known."""
    shortcut: FiniteFloat | None = None
    """What the best of the task's shortcut rules would have instead, where it has rules."""
    chance: FiniteFloat | None = None
    """What a guess would have instead, where the task is a generator's."""
    inputs: str | None = None
    """What the number was made from, as "name=value" between spaces: hashes of the task's examples and shots, the
    tokenizer and the checkpoint, the version of the harness, and whether texts began with bos."""

    @property
    def shape(self) -> str:
        """The model as k⊗L, with prelude and coda where there are any; empty if unknown."""
        if self.num_loop_layers is None:
            return ""
        ends = self.num_prelude_layers or 0, self.num_coda_layers or 0
        middle = f"{self.num_loop_layers}⊗{self.num_loops}"
        return f"{ends[0]}+{middle}+{ends[1]}" if any(ends) else middle

    @property
    def is_trained_depth(self) -> bool:
        """Whether training ran the model with as many loops; unknown counts as yes."""
        return self.trained_loops is None or self.trained_loops[0] <= self.num_loops <= self.trained_loops[1]


def parse_inputs(inputs: str | None) -> dict[str, str]:
    """`ResultRow.inputs` by name."""
    return dict(part.split("=", 1) for part in (inputs or "").split(" ") if "=" in part)


def differing_inputs(row: RunIdentity, inputs: str | None, other: RunIdentity, wanted: str | None) -> list[str]:
    """The names in which a row was made from something else than what is wanted of another; the checkpoint may be
    missing where both are of one run, which a row of its training does not name."""
    found, asked = parse_inputs(inputs), parse_inputs(wanted)
    if row.run_id is not None and row.run_id == other.run_id and "checkpoint" in found.keys() ^ asked.keys():
        found, asked = ({k: v for k, v in each.items() if k != "checkpoint"} for each in (found, asked))
    names = [name for name in {**asked, **found} if found.get(name) != asked.get(name)]
    return names + [name for name in ("run_id", "config", "data") if getattr(row, name) != getattr(other, name)]
