"""The ranks of a command as processes of their own, each with its own session and output, as a launcher starts them.

A rank is forked from the server of `multiprocessing`, which has everything imported, or started afresh with
`python -m`, which takes seconds.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
MODULES = (
    "tests.distributed.cases", "tests.distributed.training", "tests.distributed.finetuning", "pretrain.eval.in_loop",
    "pretrain.train", "torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer",
)  # fmt: skip
"""What a forked rank need not import: there is one server, and the first fork says what it imports."""


class Rank:
    """One process, and what it says.

    Args:
        module: has a `main` that takes the arguments.
        arguments: of the command.
        environment: what the launcher sets.
        output: file of standard output and error together.
        afresh: a new interpreter, not a fork.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], output: Path, *, afresh: bool
    ) -> None:
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        if afresh:
            with output.open("wb") as file:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments], cwd=ROOT, env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                )  # fmt: skip
            self.pid = self._process.pid
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(MODULES))
            arguments_of_rank = (module, list(arguments), dict(environment), str(output))
            self._fork = context.Process(target=_run, args=arguments_of_rank, daemon=True)
            self._fork.start()
            assert self._fork.pid is not None
            self.pid = self._fork.pid

    @property
    def code(self) -> int | None:
        """The exit code, that of a signal below zero; None while the process lives."""
        return self._fork.exitcode if self._process is None else self._process.poll()

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still lives."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None if the process still lives after so long."""
        deadline = time.monotonic() + timeout_s
        while self.code is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.code


def start_ranks(
    num_ranks: int, module: str, arguments: Sequence[str], folder: Path, *, afresh: bool = False
) -> list[Rank]:
    """Start a command on ranks of this machine, with gloo; `folder` takes their output."""
    folder.mkdir(parents=True, exist_ok=True)
    world = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(num_ranks)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Rank(module, arguments, {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}, folder / f"rank-{rank}.txt",
             afresh=afresh)
        for rank in range(num_ranks)
    ]  # fmt: skip


def session_of(pid: int) -> list[int]:
    """Living processes of the session that a rank had."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == pid and state not in "ZX":
            found.append(int(path.parent.name))
    return sorted(found)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(module: str, arguments: list[str], environment: dict[str, str], output: str) -> NoReturn:
    """Be a rank, and end as an interpreter would."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    try:
        code = importlib.import_module(module).main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
