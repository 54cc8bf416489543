"""Going on from a checkpoint: which one, and what must be as it was.

What may differ is a list with a reason for each entry; everything else is refused by its key, keys of a later version
included.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from pydantic import BaseModel

from pretrain.checkpoint.names import CHECKPOINTS
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.verify import newest_good
from pretrain.config.saved_model import SavedModel
from pretrain.model.config import ModelSection
from pretrain.model.weights import stage_weights
from pretrain.parallel.groups import gather_lists
from pretrain.parallel.host import share_list
from pretrain.schema.section import Section

MAY_DIFFER = {
    "run.name": "a run directory may be renamed",
    "run.root": "a run directory may be moved",
    "data.tokenizer": "its content is compared, the file may have moved",
    "train.micro_batch": "memory and speed alone",
    "train.deterministic": "the choice of kernels alone",
    "train.exit_after": "a limit on wall time",
    "train.precision": "the saved weights and moments are converted",
    "optimizer": "settings of an update, which hold from the next step on",
    "validation": "what is scored, and when",
    "checkpoint": "what is kept, and when",
    "logging": "what is shown, and when",
    "ranks": "what is noticed of ranks",
    "profile": "which steps are traced",
}
"""Keys and sections that may differ in any kind of training, and why."""
INIT_MAY_DIFFER = {
    "num_loops": "the weights fit any number of loops",
    "init_std": "no weight is drawn",
    "loop_regulariser": "a term of the loss",
}
"""Keys of the model that may differ between a run and the one that its weights come from, and why."""


class Difference(NamedTuple):
    """A key whose value is not what it was."""

    key: str
    then: Any
    now: Any


def newest_on_all_ranks(
    run_dir: Path, *, keep_verdicts: bool = False, step: int | None = None, before: int | None = None
) -> tuple[CheckpointReader | None, list[str]]:
    """The newest good checkpoint of a run, or that of one step, or the newest from before one, the same on all ranks,
    which share the work of checking it; a line for each newer one that is bad. Collective.

    Raises:
        OSError: a checkpoint cannot be read.
    """
    return newest_good(
        run_dir / CHECKPOINTS, rank=dist.get_rank(), world_size=dist.get_world_size(), gather=gather_lists,
        share=share_list, keep_verdicts=keep_verdicts, step=step, before=before,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """The checkpoints that one kind of training can go on from."""

    training: str
    """What it is called."""
    mark: str
    """Key of `meta` that its checkpoints have and others have not."""
    config: str
    """Key of `meta` that holds the configuration."""
    may_differ: Mapping[str, str]
    """Keys and sections that may change on the way, and why."""
    must_equal: tuple[str, ...] = ()
    """Keys of these sections that may not."""

    def compare(self, reader: CheckpointReader, config: Any) -> list[str]:
        """A line for each setting that differs from a checkpoint's and may.

        Raises:
            ValueError: a run of this configuration cannot go on from the checkpoint; says what to do.
        """
        if self.mark not in reader.meta:
            run_dir = reader.path.parents[1]
            raise ValueError(
                f"{run_dir} holds no state of {self.training} to resume: choose another run.name and start it with "
                f"checkpoint.init_from={run_dir}"
            )
        allowed, refused = [], []
        for found in differences(reader.meta[self.config], config):
            may = covers(self.may_differ, found.key) and not covers(self.must_equal, found.key)
            (allowed if may else refused).append(found)
        if refused:
            advice = "choose another run.name or the old value"
            raise ValueError(
                "\n".join(
                    f"{key}={now!r}, but {reader.path} was made with {then!r}: {advice}" for key, then, now in refused
                )
            )
        return [f"{key}: {then!r} in the checkpoint, {now!r} now" for key, then, now in allowed]


def compare_models(reader: CheckpointReader, now: ModelSection, seq_len: int) -> list[str]:
    """A line for each field in which a model differs from the one whose weights it starts from, and may, and for what
    else of the checkpoint is not used.

    Raises:
        ValueError: another field differs, or a weight of the checkpoint would not be used; names each.
    """
    saved = SavedModel.read(reader.meta).model
    found = list(differences(saved.model_dump(mode="json"), now))
    refused = [each for each in found if not covers(INIT_MAY_DIFFER, each.key)]
    if refused:
        raise ValueError(
            "\n".join(
                f"model.{key}={now!r}, but the weights of {reader.path} were made with {then!r}: set it to that"
                for key, then, now in refused
            )
        )
    used = {f"weights/{name}" for name in stage_weights(now, seq_len)}
    unused = [name for name in reader.tensors if name.startswith("weights/") and name not in used]
    if unused:
        raise ValueError(f"{reader.path}: the model has no place for {', '.join(unused)}")
    classifier = [name for name in reader.tensors if name.startswith("stop/")]
    notes = [f"{reader.path}: {name} of its fine-tuning is not used" for name in classifier]
    return notes + [f"model.{key}: {then!r} in {reader.path}, {now!r} now" for key, then, now in found]


def differences(saved: Mapping[str, Any], config: BaseModel, prefix: str = "") -> Iterator[Difference]:
    """The settings in which a configuration differs from one that was saved as JSON. A key that was not saved, because
    a later version added it, had what is its default now; a saved key that is gone is passed over."""
    defaults = type(config).model_construct().model_dump(mode="json", warnings=False)
    if isinstance(config, Section):
        saved = config.present(saved)
    for name, now in config.model_dump(mode="json").items():
        value, key = getattr(config, name), prefix + name
        then = saved.get(name, defaults.get(name))
        if isinstance(value, BaseModel) and isinstance(then, Mapping):
            yield from differences(then, value, f"{key}.")
        elif isinstance(value, (list, tuple)) and isinstance(then, list) and len(value) == len(then):
            for number, (item, item_then, item_now) in enumerate(zip(value, then, now, strict=True)):
                if isinstance(item, BaseModel) and isinstance(item_then, Mapping):
                    yield from differences(item_then, item, f"{key}.{number}.")
                elif item_then != item_now:
                    yield Difference(key, then, now)
                    break
        elif then != now:
            yield Difference(key, then, now)


def covers(keys: Mapping[str, str] | tuple[str, ...], key: str) -> bool:
    """Whether a key, or a section that it is in, is among the keys; "*" there stands for a place in a list."""
    parts = ["*" if part.isdecimal() else part for part in key.split(".")]
    return any(".".join(parts[: end + 1]) in keys for end in range(len(parts)))
