"""How the ranks of a world meet: at torch's store, which rank 0 or torchrun's agent holds at MASTER_ADDR:MASTER_PORT;
`pretrain/launch.py` hands rank 0 the port.

torch itself waits without a word, longer than its limit, deaf to Ctrl-C, and ends with a page of C++ frames. So a rank
first waits until the store answers, then counts itself in and waits until all ranks have, looking now and then.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pretrain.device.ranks import LISTENER

LIMIT_MINUTES = 10.0
"""How long a rank waits for the others."""
SAID_AFTER_S, SAID_EVERY_S = 20.0, 60.0
"""When it first says so, and again."""
_CONNECT_S, _PAUSES_S = 5.0, (0.02, 1.0)
"""The longest that a call waits for an answer; first and longest pause between two looks."""


def meet(rank: int, size: int) -> Any:
    """torch's store, once all ranks have come to it. Collective.

    Raises:
        ConnectionError: another rank did not come within LIMIT_MINUTES.
        dist.DistNetworkError: rank 0 cannot have the port.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = _Wait(rank, size, f"{host}:{port}")
    holds = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not holds:
        wait.until(lambda: _answers(host, port))
    limit = timedelta(minutes=LIMIT_MINUTES)
    listener = os.environ.get(LISTENER) if holds else None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, size, holds, limit, wait_for_workers=False, multi_tenant=True,
        master_listen_fd=int(listener) if listener else None,
    )  # fmt: skip
    store.add("here", 1)
    wait.until(lambda: store.add("here", 0) >= size)
    return store


class _Wait:
    """A rank that waits for the others, and says so on standard error."""

    def __init__(self, rank: int, size: int, where: str) -> None:
        self._who, self._where, began = f"rank {rank} of {size}", where, time.monotonic()
        self._say_at, self._deadline = began + SAID_AFTER_S, began + 60 * LIMIT_MINUTES

    def until(self, is_done: Callable[[], bool]) -> None:
        """Ask until it is so."""
        pause_s, longest_s = _PAUSES_S
        while not is_done():
            now = time.monotonic()
            if now > self._deadline:
                raise ConnectionError(f"the other ranks did not come to {self._where} within {LIMIT_MINUTES:g} minutes")
            if now > self._say_at:
                self._say_at = now + SAID_EVERY_S
                waits = f"{self._who} waits for the others at {self._where}, {LIMIT_MINUTES:g} minutes at most"
                with suppress(OSError):
                    print(waits, file=sys.stderr, flush=True)
            time.sleep(pause_s)
            pause_s = min(longest_s, 1.5 * pause_s)


def _answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    with suppress(OSError), socket.create_connection((host, port), timeout=_CONNECT_S):
        return True
    return False
