"""Going on from a checkpoint: which one, and what must be as it was."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import BaseModel

from pretrain.checkpoint.names import CHECKPOINTS
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.verify import newest_good
from pretrain.parallel.groups import gather_lists


def newest_on_all_ranks(run_dir: Path, *, keep_verdicts: bool = False) -> tuple[CheckpointReader | None, list[str]]:
    """The newest good checkpoint of a run, the same on all ranks, which share the work of checking it; a line for each
    newer one that is bad. Collective.

    Raises:
        OSError: a checkpoint cannot be read.
    """
    return newest_good(
        run_dir / CHECKPOINTS, rank=dist.get_rank(), world_size=dist.get_world_size(), gather=gather_lists,
        keep_verdicts=keep_verdicts,
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
    must_equal: tuple[str, ...]
    """What may not change on the way: sections, and keys as `section.key`."""

    def require_same(self, reader: CheckpointReader, config: Any) -> None:
        """Raise a ValueError that says what to do unless a run of this configuration can go on from a checkpoint."""
        if self.mark not in reader.meta:
            run_dir = reader.path.parents[1]
            raise ValueError(
                f"{run_dir} holds no state of {self.training} to resume: choose another run.name and start it with "
                f"checkpoint.init_from={run_dir}"
            )
        for section, key, now, then in self._values(config, reader.meta[self.config]):
            if now != then:
                raise ValueError(
                    f"{section}.{key}={now!r}, but {reader.path} was made with {then!r}: "
                    "choose another run.name or the old value"
                )

    def _values(self, config: BaseModel, saved: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
        """Section, key, value now and value then of everything that must be equal. A key that the checkpoint does not
        know had what is its default now."""
        values = config.model_dump(mode="json")
        for name in self.must_equal:
            section, _, key = name.partition(".")
            then = type(getattr(config, section))().model_dump(mode="json") | saved[section]
            for each in [key] if key else values[section]:
                yield section, each, values[section][each], then[each]
