"""The seam through which every call to the storage passes: `faultfs.c`, and a process that runs commands behind it.

A `Storage` counts the calls of a command below one folder, and lets the n-th of them fail. A `CommandServer` has
everything imported and forks a child for each command, so that a command costs its own work alone.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("faultfs.c")
COMPILER = shutil.which("cc") or shutil.which("gcc")
MAX_CALLS, NAME_BYTES, PID_BYTES = 65536, 256, 4
TIME_LIMIT_S = 60.0
_HEAD = struct.Struct(f"qqq{NAME_BYTES}s")
"""`struct state` of faultfs.c before its names: count, armed, error, root."""


class Storage:
    """The calls to the storage below one folder, of all processes that have the library loaded.

    Args:
        folder: for the library and what its processes share.
        root: calls on paths below it are counted and can fail.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        assert COMPILER is not None
        self.root, library, shared = root, folder / "faultfs.so", folder / "faultfs.state"
        subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        with shared.open("wb") as file:
            file.truncate(_HEAD.size + MAX_CALLS * (NAME_BYTES + PID_BYTES))
        with shared.open("r+b") as file:
            self._state = mmap(file.fileno(), 0)
        self.environment = {"LD_PRELOAD": str(library), "FAULTFS_STATE": str(shared)}

    def watch(self, *, failing: int = 0, error: int = 0) -> None:
        """Count calls from now on; the one of number `failing` (from 1) fails with `error`."""
        self._state[: _HEAD.size] = _HEAD.pack(0, failing, error, os.fsencode(self.root))

    def stop(self) -> list[str]:
        """Count no more; what the calls were, in order: "open runs/tiny/state"."""
        return [name for _, name in self._end()]

    def stop_by_process(self) -> list[list[str]]:
        """The same, apart for each process, in the order in which these began to call."""
        found: dict[int, list[str]] = {}
        for process, name in self._end():
            found.setdefault(process, []).append(name)
        return list(found.values())

    def _end(self) -> list[tuple[int, str]]:
        count = min(_HEAD.unpack_from(self._state)[0], MAX_CALLS - 1)
        self._state[: _HEAD.size] = _HEAD.pack(0, 0, 0, b"")
        found = []
        for number in range(1, count + 1):
            name, process = _HEAD.size + number * NAME_BYTES, _HEAD.size + MAX_CALLS * NAME_BYTES + number * PID_BYTES
            called = self._state[name : name + NAME_BYTES].partition(b"\0")[0].decode()
            found.append((int.from_bytes(self._state[process : process + PID_BYTES], sys.byteorder), called))
        return found


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int | None
    """Exit code; None if it had to be killed."""
    output: str
    """Standard output."""
    errors: str
    """Standard error."""
    seconds: float
    """Of processor time."""

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.output + self.errors


class CommandServer:
    """A process that runs commands, each in a child of its own. A context manager that ends it.

    Args:
        folder: for what commands print.
        modules: imported once, those with the `main` of a command among them.
        environment: of all commands.
    """

    def __init__(self, folder: Path, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self._files = {name: str(folder / f"{name}.txt") for name in ("output", "errors")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", *modules], cwd=ROOT,
            env={**os.environ, **fixed, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()  # all is imported

    def run(
        self, module: str, arguments: Sequence[str | Path], *, environment: Mapping[str, str] | None = None,
        limit_s: float = TIME_LIMIT_S, folder: Path = ROOT, search: Path = ROOT, forks: bool = False,
    ) -> Ended:  # fmt: skip
        """Run the `main` of a module with command-line arguments, and with more variables of the environment, from a
        folder, where another is the first that modules are looked for in; with `forks`, what it starts as
        `python ...` is a fork of it (`tests/support/forks.py`)."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"module": module, "arguments": list(map(str, arguments)), "environment": dict(environment or {})}
        request |= {"folder": str(folder), "search": str(search), "forks": forks}
        print(json.dumps({**request, **self._files, "limit_s": limit_s}), file=self._process.stdin, flush=True)
        code, seconds = json.loads(self._process.stdout.readline())
        said = {name: Path(file).read_text(errors="replace") for name, file in self._files.items()}
        return Ended(code=code, seconds=seconds, **said)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
