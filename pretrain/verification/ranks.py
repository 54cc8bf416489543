"""Ranks on this machine: processes that run one function together, on CPUs, and that can be killed.

They are forked from a server that has imported torch, megatron-core and the trainer, so the imports, seconds of them,
are paid once for all worlds. The process that asks needs no torch. What ranks print goes into a file each.
"""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Self

from pretrain.data.prepare.units import without_interrupts
from pretrain.device.ranks import World, rank_environment

TIMEOUT_S = 300.0
"""Longest wait for the ranks of one world."""
IMPORTED_ONCE = ("pretrain.verification.work", "pretrain.eval.in_loop")
"""What cannot be imported, as the second without the evaluation harness, is left out."""


class RanksFailed(Exception):  # noqa: N818
    """The ranks did not end well; the message says which, and how."""


class Ranks:
    """A world of processes at work; a context manager that ends them.

    Args:
        work: name of a function, `package.module:function`, that each rank calls.
        args: its arguments, picklable.
        world_size: number of ranks; they find each other through the environment, as under torchrun.
        logs: folder for what each rank prints.
    """

    def __init__(self, work: str, *args: Any, world_size: int, logs: Path) -> None:
        self._ranks: list[tuple[BaseProcess, Connection]] = []
        self._logs = logs
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED_ONCE))
        with without_interrupts():  # Ctrl-C would end the server's imports with a traceback
            ensure_running()
        port = _free_port()
        logs.mkdir(parents=True, exist_ok=True)
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (work, args, rank, world_size, port, self._log(rank), theirs)
            process = context.Process(target=_be_rank, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def results(self) -> list[Any]:
        """What the function returned, by rank.

        Raises:
            RanksFailed: it raised on a rank, a rank died, or there was no answer in time.
        """
        deadline = time.monotonic() + TIMEOUT_S
        results: dict[int, Any] = {}
        while waited := {self._ranks[rank][1]: rank for rank in range(len(self._ranks)) if rank not in results}:
            ready = wait(list(waited), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RanksFailed(f"no answer from {_named(list(waited.values()))} in {TIMEOUT_S:g} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = waited[connection]
                try:
                    is_well, value = connection.recv()
                except EOFError:
                    is_well, value = False, self._last_words(rank)
                if not is_well:
                    raise RanksFailed(f"rank {rank} of {len(self._ranks)}: {value}")
                results[rank] = value
        for process, _ in self._ranks:
            process.join(TIMEOUT_S)
        return [results[rank] for rank in range(len(self._ranks))]

    @property
    def are_at_work(self) -> bool:
        return all(process.is_alive() for process, _ in self._ranks)

    def kill(self) -> list[int | None]:
        """SIGKILL to those that are still there; their exit codes, -9 of a process that it ended."""
        for process, _ in self._ranks:
            process.kill()
        for process, connection in self._ranks:
            process.join()
            connection.close()
        return [process.exitcode for process, _ in self._ranks]

    def _log(self, rank: int) -> Path:
        return self._logs / f"rank-{rank}.log"

    def _last_words(self, rank: int) -> str:
        process, _ = self._ranks[rank]
        process.join(TIMEOUT_S)
        lines = self._log(rank).read_text(errors="replace").strip().splitlines()
        return f"ended with exit code {process.exitcode}" + (f": {lines[-1]}" if lines else "")


def run_on_ranks(work: str, *args: Any, world_size: int, logs: Path) -> list[Any]:
    """Run a function on the ranks of a world of its own; what it returned, by rank. Arguments and errors: `Ranks`."""
    with Ranks(work, *args, world_size=world_size, logs=logs) as ranks:
        return ranks.results()


def _be_rank(work: str, args: Sequence[Any], rank: int, size: int, port: int, log: Path, answer: Connection) -> None:
    """A rank's life. It says what went wrong before it leaves, so that the first to fail is the one that is heard."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= rank_environment(World(rank, size, rank), "127.0.0.1", port)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch

    torch.set_num_threads(1)
    try:
        result = resolve_name(work)(*args)
    except Exception as error:
        traceback.print_exc()
        answer.send((False, f"{type(error).__name__}: {error}".splitlines()[0]))
        os._exit(1)  # what else there is waits for ranks that are gone
    answer.send((True, result))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
