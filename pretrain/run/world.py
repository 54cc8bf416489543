"""The world of a run: its ranks met, its process groups made, stop signals heard; and left again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch.distributed as dist

from pretrain.config.profile import ProfileSection
from pretrain.config.ranks import RanksSection
from pretrain.config.run import CommonCheckpointSection, CommonTrainSection, ParallelSection
from pretrain.device.host_memory import keep_freed_memory
from pretrain.parallel.contact import contact
from pretrain.parallel.groups import Groups, make_groups, start_world
from pretrain.run.signals import StopSignal
from pretrain.run.trackers.tracker import LoggedConfig, require_tracker_packages


class SessionConfig(LoggedConfig, Protocol):
    """What a session needs of a configuration, of pretraining or of fine-tuning."""

    @property
    def parallel(self) -> ParallelSection: ...

    @property
    def train(self) -> CommonTrainSection: ...

    @property
    def checkpoint(self) -> CommonCheckpointSection: ...

    @property
    def ranks(self) -> RanksSection: ...

    @property
    def profile(self) -> ProfileSection: ...


@contextmanager
def join_world(config: SessionConfig) -> Iterator[tuple[Groups, StopSignal]]:
    """Join the ranks of this world, listening for stop signals. Every rank calls it.

    Raises:
        ConnectionError: another rank has ended, or cannot be met.
        KeyboardInterrupt: the same, after a Ctrl-C, which the other ranks got too.
        ImportError: the configuration asks for a package that is not installed.
    """
    require_tracker_packages(config.logging)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with StopSignal() as signals:
        try:
            with contact(config.run.directory):
                device = start_world()
                if device.type == "cpu":
                    keep_freed_memory()
                yield make_groups(config.parallel, device), signals
        except ConnectionError:
            if signals.requested == "SIGINT":
                raise KeyboardInterrupt from None
            raise
        # Not after an error: the other ranks notice that this one is gone, and should do so after it has said why.
        dist.destroy_process_group()
