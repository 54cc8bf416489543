"""Start the ranks of a command on this machine, pass signals on to them, and end as they end.

    python -m pretrain.launch --ranks 2 -m pretrain.train --config configs/pretrain/<name>.yaml
    python -m pretrain.launch --ranks 2 finetune/coconut.py --config configs/finetune/<name>.yaml
    python -m pretrain.launch --ranks 8 --nodes 2 --node-rank 0 --rendezvous host0:29500 -m pretrain.train ...

For the commands of this project, whose ranks meet by `pretrain/parallel/meeting.py`; what they get from the
environment is what torchrun sets. On one machine the port is held from here on until rank 0 has it, so no other process
can take it in between. On several machines the same command runs on each; under Slurm srun starts the ranks (`slurm/`).

Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP go to every rank once; a trainer saves and ends with 0, and so does this. A second
Ctrl-C ends the ranks without a save. If a rank fails the others are ended. If this process is killed, a process that
it leaves behind has the ranks save and end.

Exit code: 0 if all ranks ended so, else that of the rank that failed first, 128 + N where signal N ended it.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pretrain.command.console import BAD_INPUT, FAILED, INTERRUPTED, print_error, print_line
from pretrain.command.options import OptionParser, at_least, positive
from pretrain.device.ranks import LISTENER, MOST_RANKS, World, rank_environment
from pretrain.run.signals import STOP_SIGNALS

GRACE_S = 15.0
"""How long ranks that are to end may take before they are killed."""
STARTING_S = 2.0
"""So long after its start a rank gets SIGTERM for SIGINT, of which Python's own start would make a traceback."""
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class _RankEnded:
    rank: int
    code: int
    """As of `subprocess`: below zero that of a signal."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is to be started: `ranks` processes of this machine, which is number `node_rank` of `nodes`."""

    command: Sequence[str]
    ranks: int
    nodes: int = 1
    node_rank: int = 0
    host: str = _LOOPBACK
    port: int = 0
    """Where rank 0 listens; 0 is a free one."""


def parse(arguments: Sequence[str]) -> Launch:
    """Options of the launcher, and behind them the command, with its own.

    Raises:
        ValueError: they do not fit each other.
    """
    parser = OptionParser(
        prog="python -m pretrain.launch", description="Start the ranks of a command on this machine.",
        usage="%(prog)s --ranks N [--nodes N --node-rank N --rendezvous HOST:PORT] (-m MODULE | SCRIPT) [ARGUMENT ...]",
    )  # fmt: skip
    parser.add_argument("--ranks", type=positive, required=True, metavar="N", help="processes on this machine")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines; default: 1")
    parser.add_argument("--node-rank", type=at_least(0), metavar="N", help="number of this machine, from 0")
    parser.add_argument("--rendezvous", metavar="HOST:PORT", help="a free port of machine 0; for several machines")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="a module, and its arguments"
    )
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="a Python file, and its arguments")
    options = parser.parse_args(arguments)
    command = ["-m", *options.module] if options.module else options.script
    if not command:
        raise ValueError("nothing to start: add -m pretrain.train or a script, with its arguments")
    if not options.module and not Path(command[0]).is_file():
        raise ValueError(f"{command[0]}: no such script; a module is started with -m, and options come before it")
    if options.ranks * options.nodes > MOST_RANKS:
        raise ValueError(f"--ranks {options.ranks} --nodes {options.nodes}: more than {MOST_RANKS} ranks")
    launch = Launch(command=command, ranks=options.ranks)
    if options.nodes == 1:
        if options.rendezvous or options.node_rank:
            raise ValueError("--node-rank and --rendezvous are for several machines: add --nodes N")
        return launch
    if options.node_rank is None or options.rendezvous is None:
        raise ValueError(f"--nodes {options.nodes} needs --node-rank N and --rendezvous HOST:PORT")
    if options.node_rank >= options.nodes:
        raise ValueError(f"--node-rank {options.node_rank} is not below --nodes {options.nodes}")
    host, _, port = options.rendezvous.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"--rendezvous {options.rendezvous[:40]}: needs HOST:PORT, such as node0:29500")
    return Launch(
        command=command, ranks=options.ranks, nodes=options.nodes, node_rank=options.node_rank, host=host,
        port=int(port),
    )  # fmt: skip


class Launcher:
    """The ranks of this machine. A context manager: none of them, nor what they started, is left after it."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._events: queue.SimpleQueue[_RankEnded | signal.Signals] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._alive: set[int] = set()

    def __enter__(self) -> Self:
        self._keeper = _Keeper()
        heard = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not _is_ignored(number)]
        self._previous = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._keeper.dismiss()

    def run(self) -> int:
        """Start the ranks and wait for them; returns the exit code.

        Raises:
            OSError: a process cannot be started.
        """
        self._start()
        failed: _RankEnded | None = None
        received: list[signal.Signals] = []
        kill_at = float("inf")
        while self._alive:
            try:
                event = self._events.get(timeout=min(threading.TIMEOUT_MAX, max(0.0, kill_at - time.monotonic())))
            except queue.Empty:
                self._kill()
                kill_at = float("inf")
                continue
            if isinstance(event, signal.Signals):
                received.append(event)
                self._send(event)
                if received.count(signal.SIGINT) > 1:  # a rank within a collective does not hear the second one
                    kill_at = min(kill_at, time.monotonic() + GRACE_S)
                continue
            self._alive.remove(event.rank)
            _kill_group(self._processes[event.rank].pid)  # what it started and did not end
            if event.code and failed is None:
                failed = event
                self._send(signal.SIGTERM)
                kill_at = min(kill_at, time.monotonic() + GRACE_S)
        return 0 if failed is None else self._report(failed, received)

    def _start(self) -> None:
        launch, self._started = self._launch, time.monotonic()
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // launch.ranks)), **os.environ}
        if launch.nodes == 1 and Path("/sys/class/net/lo").exists():
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # not the network, which may be down or filtered
        environment.pop(LISTENER, None)
        with socket.socket() as listener:
            port = launch.port
            if not port:
                listener.bind((_LOOPBACK, 0))
                port = listener.getsockname()[1]
            for local in range(launch.ranks):
                world = World(launch.node_rank * launch.ranks + local, launch.nodes * launch.ranks, local)
                more = rank_environment(world, launch.host, port) | {"LOCAL_WORLD_SIZE": str(launch.ranks)}
                handed: list[int] = []
                if world.rank == 0 and not launch.port:
                    handed = [listener.fileno()]
                    more[LISTENER] = str(listener.fileno())
                process = subprocess.Popen(
                    [sys.executable, *launch.command], env=environment | more, stdin=subprocess.DEVNULL,
                    pass_fds=handed,
                    start_new_session=True,  # the terminal's Ctrl-C would be a second one
                )  # fmt: skip
                self._keeper.keep(process.pid)
                self._processes.append(process)
                self._alive.add(local)
                threading.Thread(target=self._wait, args=(local, process), daemon=True).start()

    def _wait(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self._events.put(_RankEnded(rank, process.wait()))

    def _receive(self, number: int, _: object) -> None:
        self._events.put(signal.Signals(number))

    def _send(self, number: signal.Signals) -> None:
        if number == signal.SIGINT and time.monotonic() - self._started < STARTING_S:
            number = signal.SIGTERM
        for rank in self._alive:
            self._processes[rank].send_signal(number)

    def _kill(self) -> None:
        for rank in self._alive:
            _kill_group(self._processes[rank].pid)

    def _report(self, failed: _RankEnded, received: Sequence[signal.Signals]) -> int:
        """Name the rank that failed first, unless its own line says all there is to know; returns the exit code."""
        rank = self._launch.node_rank * self._launch.ranks + failed.rank
        if failed.code > 0:
            if failed.code not in (BAD_INPUT, INTERRUPTED):
                print_line(f"error: rank {rank} ended with exit code {failed.code}")
            return failed.code
        number = signal.Signals(-failed.code)
        if received and number in (*received, signal.SIGTERM):
            print_line(f"ended by {received[0].name}, before there was anything to save")
            return 128 + received[0]
        print_line(f"error: rank {rank} was ended by {number.name}")
        return 128 + number


class _Keeper:
    """A process that outlives this one if this one is killed, which it knows from the end of a pipe, and ends the
    ranks then."""

    def __init__(self) -> None:
        reading, self._pipe = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                os.close(self._pipe)
                _outlive(reading)
            finally:
                os._exit(0)
        os.close(reading)

    def keep(self, pid: int) -> None:
        """End this process too; 0 says that all have ended."""
        with suppress(BrokenPipeError):  # nobody keeps them then
            os.write(self._pipe, b"%d\n" % pid)

    def dismiss(self) -> None:
        self.keep(0)
        os.close(self._pipe)
        os.waitpid(self._pid, 0)


def _outlive(reading: int) -> None:
    """Wait for the launcher's end. If it did not say that all is well, ranks are to save and end, or are killed."""
    os.setsid()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(reading) as pipe:
        pids = [int(line) for line in pipe]
    if 0 in pids:
        return
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and any(map(_is_there, pids)):
        time.sleep(0.1)
    for pid in pids:
        _kill_group(pid)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_group(pid: int) -> None:
    """End a rank and what it started."""
    with suppress(ProcessLookupError, PermissionError):  # macOS has the latter for a group of zombies
        os.killpg(pid, signal.SIGKILL)


def _is_ignored(number: signal.Signals) -> bool:
    """As nohup leaves SIGHUP."""
    return signal.getsignal(number) == signal.SIG_IGN


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        with Launcher(parse(arguments)) as launcher:
            return launcher.run()
    except ValueError as error:
        print_error(error)
        return BAD_INPUT
    except OSError as error:  # no more processes, or no port
        print_error(error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
