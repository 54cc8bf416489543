"""A rank of a pretraining run that says soon that it waits: `main(limit in seconds, arguments of the run)`."""

from collections.abc import Sequence

from pretrain import train
from pretrain.parallel import meeting


def main(argv: Sequence[str]) -> int:
    meeting.SAID_AFTER_S, meeting.LIMIT_MINUTES = 0.1, float(argv[0]) / 60
    return train.main(argv[1:])
