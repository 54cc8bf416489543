"""`pretrain.train` on two ranks as one command; the ranks are children, so that one that ends is gone for the other."""

import os
import socket
import sys
from collections.abc import Sequence

from pretrain import train


def main(argv: Sequence[str]) -> int:
    """Run the ranks; returns the larger exit code."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [_start(str(rank), argv) for rank in range(2)]
    return max(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks)


def _start(rank: str, argv: Sequence[str]) -> int:
    child = os.fork()
    if not child:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        code = train.main(argv)
        sys.stderr.flush()
        os._exit(code)
    return child
