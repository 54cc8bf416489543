"""One live owner of a run directory: a file `owner` with a beat, which works on every file system, with or without
locks.

The owner writes its name and a counter every few seconds, in place. Whoever comes later looks whether the counter
moves: if it does, the directory is taken; if it does not for `DEAD_AFTER_S`, or if the process is known to be gone (one
of this machine, or an earlier start of the same batch job), it is taken over. Clocks of machines are never compared.
Two that take over at once write into one file, and the one that finds the other's name there a moment later gives way.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pretrain.storage import is_there, naming, parse_json, read_file

OWNER_NAME = "owner"
BEAT_S = 2.0
DEAD_AFTER_S = 15.0
"""Longer than a client of a network file system may show an old content."""


@dataclass(frozen=True)
class Owner:
    """What the file says."""

    nonce: str
    host: str
    space: str
    """Where process numbers mean the same: this boot of this machine, in this container; empty where unknown."""
    pid: int
    process_start: str
    """Tells a process from a later one of the same number."""
    job: str
    """Slurm's number of the job, or empty."""
    beat: int = 0

    @classmethod
    def this_process(cls, environment: Mapping[str, str] = os.environ) -> "Owner":
        pid, job = os.getpid(), environment.get("SLURM_JOB_ID", "")
        return cls(secrets.token_hex(8), socket.gethostname(), _process_space(), pid, _process_start(pid), job)

    def describe(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    def is_alive(self, me: "Owner") -> bool | None:
        """Whether this owner still runs, as far as its process or its job tells; None: its beat must tell."""
        if self.space and self.space == me.space:
            return _process_start(self.pid) == self.process_start
        return False if self.job and self.job == me.job else None


class Ownership:
    """The claim of this process on a run directory, from `take` until `release`.

    Args:
        directory: the run directory, made if absent.
        lost: called once, from a thread, if another process took the directory over.
        say: shows a line.
    """

    def __init__(
        self, directory: Path, *, lost: Callable[[], None] = lambda: None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.owner = Owner.this_process()
        self._path, self._lost, self._say = directory / OWNER_NAME, lost, say
        self._made_directory = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> str:
        """Claim the directory; returns whom it was taken over from, or "".

        Raises:
            ValueError: it has a live owner, who is named.
            OSError: the file cannot be written or read.
        """
        self._made_directory = not is_there(self._path.parent)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        before = ""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            before = self._take_over()
        else:
            try:
                with naming(self._path):
                    os.close(descriptor)
                self._write()
            except OSError:
                with contextlib.suppress(OSError):  # a file without a name would make the next start watch it
                    self._path.unlink()
                raise
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()
        return before

    def release(self) -> None:
        """Give the directory up, and leave no trace if nothing else is in it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(OSError):
            owner = read_owner(self._path.parent)
            if owner is not None and owner.nonce == self.owner.nonce:
                self._path.unlink()
                if self._made_directory:
                    self._path.parent.rmdir()

    def _take_over(self) -> str:
        found = read_owner(self._path.parent)
        is_alive = None if found is None else found.is_alive(self.owner)
        if is_alive is None:
            is_alive = self._beats(found)
        if is_alive:
            raise ValueError(
                f"{self._path.parent} belongs to a run that is alive: {found.describe() if found else 'unknown'}; "
                "stop that one first, or choose another run.name"
            )
        self._write()
        time.sleep(BEAT_S / 4)
        now = read_owner(self._path.parent)
        if now is not None and now.nonce != self.owner.nonce:
            raise ValueError(f"{self._path.parent} was taken at the same moment by {now.describe()}")
        return found.describe() if found else "an owner who left no name"

    def _beats(self, found: Owner | None) -> bool:
        """Whether an owner writes into its file, watched for `DEAD_AFTER_S` at most."""
        name = found.describe() if found else "an unreadable owner"
        self._say(f"{self._path.parent} belongs to {name}: watching for {DEAD_AFTER_S:g} s whether it is alive")
        deadline = time.monotonic() + DEAD_AFTER_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 4)
            now = read_owner(self._path.parent)
            if now is not None and now != found:
                return True
        return False

    def _content(self) -> bytes:
        return json.dumps(asdict(self.owner)).encode() + b"\n"

    def _write(self) -> None:
        # in place: a rename would go unseen for longer elsewhere
        with naming(self._path), self._path.open("wb", buffering=0) as file:
            file.write(self._content())
            os.fsync(file.fileno())

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # storage that fails for a moment takes no run away
                found = read_owner(self._path.parent)
                if found is not None and found.nonce != self.owner.nonce:
                    self._lost()
                    return
                self.owner = replace(self.owner, beat=self.owner.beat + 1)
                self._write()


def read_owner(directory: Path) -> Owner | None:
    """The owner of a run directory; None if it has none, or if its file is being written.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        fields = parse_json(read_file(directory / OWNER_NAME))
        return Owner(
            **{key: type(default)(fields[key]) for key, default in asdict(Owner("", "", "", 0, "", "")).items()}
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def sees_owner(directory: Path, nonce: str) -> bool:
    """Whether this process sees an owner's name in a directory, after a few seconds at most."""
    deadline = time.monotonic() + DEAD_AFTER_S
    while True:
        with contextlib.suppress(OSError):
            owner = read_owner(directory)
            if owner is not None and owner.nonce == nonce:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(BEAT_S / 20)


def _process_space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When a live process of this space started, in ticks since boot; "" if there is none or nobody knows."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
