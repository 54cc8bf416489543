"""`pretrain.train` on several ranks as one command; these are children, so that one that ends is gone for the others.

Like torchrun and srun it ends the other ranks if one failed before they met: until then the others cannot know.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

from pretrain import train

GRACE_S = 20.0
"""Given to a rank to end by itself after another has failed."""
KILLED = "a rank did not notice that another had ended"
"""Said on standard error when the time is over."""


def main(argv: Sequence[str]) -> int:
    """Run as many ranks as the first argument says, with the others; returns the largest exit code."""
    num_ranks, *arguments = argv
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": num_ranks}
    ranks = [_start(str(rank), arguments) for rank in range(int(num_ranks))]
    codes: dict[int, int] = {}
    limit = float("inf")
    while len(codes) < len(ranks):
        for rank in set(ranks) - set(codes):
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
                limit = time.monotonic() + GRACE_S if codes[rank] > 0 else limit
            elif time.monotonic() > limit:
                os.kill(rank, signal.SIGKILL)
                sys.stderr.write(f"{KILLED}\n")
                limit = float("inf")
        time.sleep(0.01)
    return max(codes.values())


def _start(rank: str, argv: Sequence[str]) -> int:
    child = os.fork()
    if not child:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        code = train.main(argv)
        sys.stderr.flush()
        os._exit(code)
    return child
