"""`pretrain.train` on two ranks as one command; the ranks are children, so that one that ends is gone for the other.

Like torchrun and srun it ends the other rank if one failed before they met: until then the other cannot know.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

from pretrain import train

GRACE_S = 20.0
"""Given to a rank to end by itself after the other has failed."""
KILLED = "a rank did not notice that the other had ended"
"""Said on standard error when the time is over."""


def main(argv: Sequence[str]) -> int:
    """Run the ranks; returns the larger exit code."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [_start(str(rank), argv) for rank in range(2)]
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
