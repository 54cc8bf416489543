"""A pool of ranks that lives as long as the test session, so that imports are paid once.

The ranks are forked from a server process that has imported the modules and nothing else, so imports are paid once for
all of them.

A case is a function of an importable module plus arguments; it runs on ranks 0 to n - 1 of the pool, in a world of n
made for it alone.
1. Every rank joins a fresh gloo world (a rendezvous file of its own), runs the function, sends back what it returned,
   and leaves the world when all have sent: the others may still be connecting to it.
2. An exception comes back as text with its rank, which leaves at once. That breaks the connections of ranks that wait
   for it, so they fail too.
3. A rank that does not answer in time has hung: the error names the case, its arguments and the line that each rank
   stands on. After a failure the ranks are ended, and the next case starts new ones.
"""

import faulthandler
import importlib
import multiprocessing
import os
import tempfile
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

START_TIMEOUT_S = 240.0
GRACE_S = 5.0


class RankError(Exception):
    """A case failed on some ranks, or hung."""


class RankPool:
    """Ranks that wait for cases; started by the first one.

    Args:
        num_ranks: processes; a case may use fewer.
        modules: names of modules that no case should pay the import of.
    """

    def __init__(self, num_ranks: int, modules: Sequence[str] = ()) -> None:
        self._num_ranks, self._modules = num_ranks, tuple(modules)
        self._ranks: list[tuple[BaseProcess, Connection]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")

    def run(self, case: Callable[..., Any], *args: Any, world_size: int, timeout_s: float = 60.0) -> list[Any]:
        """Run a case on `world_size` ranks.

        Args:
            case: function of an importable module; it finds its world in `torch.distributed`.
            args: its arguments, picklable.
            world_size: ranks that run it.
            timeout_s: seconds after which a rank that has not answered counts as hung.

        Returns:
            What it returned, by rank.

        Raises:
            RankError: it raised on a rank, a rank died, or it hung.
        """
        assert 0 < world_size <= self._num_ranks
        if not self._ranks:
            self._start()
        name = f"{case.__module__}.{case.__qualname__}{args!r} on {world_size} ranks"
        rendezvous = str(Path(self._folder.name, uuid.uuid4().hex))
        for _, connection in self._ranks[:world_size]:
            connection.send((case, args, world_size, rendezvous, timeout_s))
        answers, failures = self._collect(range(world_size), timeout_s + GRACE_S)
        silent = sorted(set(range(world_size)) - set(answers) - set(failures))
        if not failures and not silent:
            return [answers[rank] for rank in range(world_size)]
        places = [f"rank {rank} hung:\n{self._trace(rank).read_text()}" for rank in silent]
        self.close()
        if silent and not failures:
            raise RankError("\n".join([f"{name}: no answer in {timeout_s:g} s from ranks {silent}", *places]))
        ordered = sorted(failures.items(), key=lambda failure: failure[1])
        raise RankError(
            "\n".join([f"{name} failed", *(f"rank {rank}: {text}" for rank, (_, text) in ordered), *places])
        )

    def close(self) -> None:
        """End the ranks; the next case starts new ones."""
        for process, connection in self._ranks:
            connection.close()
            process.kill()
            process.join()
        self._ranks = []

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        if self._modules:
            context.set_forkserver_preload(list(self._modules))
        for rank in range(self._num_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, theirs, self._modules, str(self._trace(rank))), daemon=True
            )
            process.start()
            theirs.close()
            self._ranks.append((process, ours))
        answers, failures = self._collect(range(self._num_ranks), START_TIMEOUT_S)
        if len(answers) < self._num_ranks:
            self.close()
            raise RankError(f"ranks did not start: {failures or 'no answer'}")

    def _collect(self, ranks: Sequence[int], timeout_s: float) -> tuple[dict[int, Any], dict[int, tuple[float, str]]]:
        """Answers, and times and texts of failures, of the ranks that answer in time."""
        deadline = time.monotonic() + timeout_s
        answers: dict[int, Any] = {}
        failures: dict[int, tuple[float, str]] = {}
        while open_ranks := {
            self._ranks[rank][1]: rank for rank in ranks if rank not in answers and rank not in failures
        }:
            ready = wait(list(open_ranks), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = open_ranks[connection]
                try:
                    succeeded, value = connection.recv()
                except EOFError:
                    succeeded, value = False, (time.monotonic(), "the process died")
                (answers if succeeded else failures)[rank] = value
        return answers, failures

    def _trace(self, rank: int) -> Path:
        return Path(self._folder.name, f"rank-{rank}.trace")


def _serve(rank: int, connection: Connection, modules: Sequence[str], trace: str) -> None:
    """A rank's life: import, say so, then run cases until the pool closes the connection."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same test everywhere
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for module in modules:
        importlib.import_module(module)
    connection.send((True, None))
    with Path(trace).open("w+") as file:
        while True:
            try:
                case, args, world_size, rendezvous, timeout_s = connection.recv()
            except EOFError:
                return
            file.truncate(0)
            faulthandler.dump_traceback_later(timeout_s, file=file)
            _answer(connection, case, args, rank, world_size, rendezvous)
            faulthandler.cancel_dump_traceback_later()


def _answer(
    connection: Connection, case: Callable[..., Any], args: Sequence[Any], rank: int, world_size: int, rendezvous: str
) -> None:
    """Join, run, send, wait for the others, leave. A failure is sent before leaving, which makes the others fail: the
    first to fail is the one to look at."""
    store = dist.FileStore(rendezvous, world_size)
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=10))
        connection.send((True, case(*args)))
    except Exception:
        connection.send((False, (time.monotonic(), traceback.format_exc())))
    else:
        # Where one fails, nobody is told: the pool ends the ranks.
        if store.add("answered", 1) == world_size:
            store.set("all answered", "")
        store.wait(["all answered"])
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
