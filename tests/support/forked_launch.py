"""The launcher, whose ranks are forks of it that have all imported, and so hear signals from their start."""

from collections.abc import Sequence

from pretrain import launch
from tests.support.forks import fork_commands


def main(arguments: Sequence[str]) -> int:
    launch.STARTING_S = 0.0
    fork_commands()
    return launch.main(arguments)
