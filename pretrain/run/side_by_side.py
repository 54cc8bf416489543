"""Commands run side by side on this machine, each with its output in a file of its own.

Where one fails no other is begun, and those that run go on to their end: what they did is not lost. Ctrl-C, SIGTERM and
SIGHUP are passed on as one SIGTERM, at which a training run saves; a second one ends the commands at once.
"""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pretrain.run.progress import Progress

POLL_S = 0.2
DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class NamedCommand:
    """A command, what it is called and where its output goes."""

    name: str
    words: Sequence[str]
    log: Path


@dataclass
class _Running:
    command: NamedCommand
    slot: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    began: float = field(default_factory=time.monotonic)


def run_side_by_side(commands: Sequence[NamedCommand], what: str, jobs: int) -> None:
    """Run commands, at most `jobs` at a time; standard error says which begin and end, and shows the time left.

    Raises:
        OSError: some ended with another exit code than 0: their names, and the last line that each wrote.
        KeyboardInterrupt: this was interrupted or terminated; all commands have ended.
    """
    waiting, running, failed = list(reversed(commands)), list[_Running](), list[str]()
    bar = Progress(len(commands), unit=what, began=time.monotonic())
    try:
        with _terminable():
            while running or (waiting and not failed):
                while waiting and len(running) < jobs and not failed:
                    slot = min(set(range(jobs)) - {each.slot for each in running})
                    running.append(_start(waiting.pop(), slot, jobs))
                    bar.message(f"{what} {running[-1].command.name} began, output in {running[-1].command.log}")
                time.sleep(POLL_S)
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    failed += _ended(each)
                    minutes = (time.monotonic() - each.began) / 60
                    done = len(commands) - len(waiting) - len(running)
                    bar.update(done, f"{each.command.name} ended after {minutes:.1f} min")
    finally:
        bar.close()
        _end(running)
    if failed:
        raise OSError(f"{'; '.join(failed)}; the same command continues from here")


def environment(slot: int, jobs: int) -> dict[str, str]:
    """What the command in place `slot` of `jobs` gets: its share of the cores, and of the GPUs that are named."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    found = {"OMP_NUM_THREADS": str(threads), **os.environ}
    devices = [device for device in found.get(DEVICES, "").split(",") if device]
    if len(devices) >= jobs > 1:
        found[DEVICES] = ",".join(devices[slot::jobs])
    return found


def _start(command: NamedCommand, slot: int, jobs: int) -> _Running:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    output = command.log.open("ab")
    output.write(f"$ {shlex.join(command.words)}\n".encode())
    output.flush()
    process = subprocess.Popen(
        command.words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(slot, jobs),
        start_new_session=True,  # the terminal's Ctrl-C would be a second signal
    )  # fmt: skip
    return _Running(command, slot, process, output)


def _ended(command: _Running) -> list[str]:
    """What is to be said of a command that has ended, if it failed."""
    command.output.close()
    if not command.process.returncode:
        return []
    lines = command.command.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [f"{command.command.name} ended with exit code {command.process.returncode}: {lines[-1].strip()}"]


def _end(running: Sequence[_Running]) -> None:
    """Let commands save and end; at a further interrupt, end them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for each in running:
            if each.process.poll() is None:
                os.killpg(each.process.pid, number)
        try:
            for each in running:
                each.process.wait()
        except KeyboardInterrupt:
            continue
        break
    for each in running:
        each.output.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP are an interrupt here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as behind nohup
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
