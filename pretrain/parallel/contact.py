"""What the end of another rank looks like from here, in one place: an error of a collective, or of the meeting before.

Gloo, NCCL and torch's store report a lost peer as a RuntimeError among others, known by its words alone. Here it
becomes a ConnectionError of one line; where the call stood is kept in a file. Any other RuntimeError is a bug and
passes.
"""

import contextlib
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from pretrain.device.ranks import world_from_environment

LOGS = "logs"
"""Folder of a run directory for what ranks need not say aloud."""
_LOST = re.compile(
    r"(?i)connection (was likely )?(closed|reset)|broken pipe|socket closed|caused pair closure|timed out waiting \d+ms"
    r"|remote process exit|communicator was aborted"
)
"""Of gloo's pairs, torch's store, NCCL (ncclRemoteError), in this order."""
_PORT_IN_USE = re.compile(r"EADDRINUSE|address already in use")


@contextmanager
def contact(run_dir: Path) -> Iterator[None]:
    """Work that needs the other ranks; `run_dir` takes the traceback, if it is there.

    Raises:
        ConnectionError: another rank has ended, or cannot be met.
        KeyboardInterrupt: the same, after a Ctrl-C, which the other ranks got too.
    """
    try:
        yield
    except RuntimeError as error:
        what = describe_loss(error)
        if what is None:
            raise
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        where = _keep_traceback(error, run_dir)
        raise ConnectionError(f"{what} (traceback: {where})" if where else what) from error


def describe_loss(error: RuntimeError) -> str | None:
    """One line for an error that means another rank is gone or cannot be met; None for any other."""
    text = str(error)
    if _LOST.search(text):
        return "lost contact with another rank; see its message"
    if not isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return None
    if _PORT_IN_USE.search(text):
        return f"MASTER_PORT={os.environ.get('MASTER_PORT')} is in use on this machine: choose another one"
    return f"cannot meet the other ranks: {text.partition(chr(10))[0]}"


def _keep_traceback(error: RuntimeError, run_dir: Path) -> Path | None:
    """Write down where the call stood; returns the file."""
    path = run_dir / LOGS / f"rank-{world_from_environment().rank}.txt"
    with contextlib.suppress(OSError):  # the storage may be what ended the other rank
        if run_dir.is_dir():
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            return path
    return None
