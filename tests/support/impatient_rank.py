"""A rank of a pretraining run that says soon that it waits for others, and soon gives up those that wait for it in a
hook: `main(limit in seconds, arguments of the run)`."""

from collections.abc import Sequence

from pretrain import train
from pretrain.parallel import meeting
from pretrain.watch import hooks


def main(argv: Sequence[str]) -> int:
    meeting.SAID_AFTER_S, meeting.LIMIT_MINUTES = 0.1, float(argv[0]) / 60
    hooks.PATIENCE_S, hooks.PATIENCE_CALLS = 0.5, 0
    return train.main(argv[1:])
