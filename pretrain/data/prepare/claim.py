"""Who works in a folder of prepared data: claimed for one set of inputs and settings, and locked while it grows."""

import errno
import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from pretrain.data.prepare.units import Unit
from pretrain.storage import is_there, naming, parse_json, read_file, write_atomically

IDENTITY_NAME = "prepare.json"
WORK_NAME = ".work"
LOCK_NAME = "lock"


class Part(NamedTuple):
    """A share of the units: every `num_parts`th, from unit `number - 1` on."""

    number: int
    """From 1 to `num_parts`."""
    num_parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.num_parts}"

    @property
    def owner(self) -> str:
        """Its name in the names of files."""
        return f"part-{self.number}-of-{self.num_parts}"

    def select(self, units: list[Unit]) -> list[Unit]:
        return units[self.number - 1 :: self.num_parts]


WHOLE = Part(1, 1)


def claim(output: Path, identity: dict[str, object]) -> None:
    """Make a folder ours for this work, or check that it is. Of several parts that come at once one makes it.

    Raises:
        ValueError: the folder is of something else, or of other settings.
        OSError: it cannot be made or read.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / IDENTITY_NAME
    if not is_there(path):
        if any(entry.suffix != ".tmp" and entry.name not in (IDENTITY_NAME, WORK_NAME) for entry in output.iterdir()):
            raise ValueError(f"{output}: holds files that are not of tools/prepare_data.py; name a new folder")
        work = output / WORK_NAME
        work.mkdir(exist_ok=True)
        with _open_lock(work / f"claim.{LOCK_NAME}") as file:
            _flock(file, fcntl.LOCK_EX)
            if not is_there(path):
                write_atomically(path, json.dumps(identity, indent=1).encode())
    try:
        found = parse_json(read_file(path))
    except ValueError:
        raise ValueError(f"{path}: is damaged; delete {output} or name a new folder") from None
    changed = [key for key, value in identity.items() if found.get(key) != value]
    if changed:
        names = {"inputs_sha256": "other or changed input files", "num_inputs": "another number of input files"}
        reasons = ", ".join(names.get(key, f"{key}={found.get(key)} (now {identity[key]})") for key in changed)
        raise ValueError(f"{output}: was prepared with {reasons}; delete it or name a new folder")


@contextmanager
def lock(output: Path, part: Part = WHOLE) -> Iterator[None]:
    """Hold the folder against other runs, a part only against itself and runs of all; the locks go with the process
    that holds them."""
    work = output / WORK_NAME
    work.mkdir(exist_ok=True)
    with _open_lock(work / LOCK_NAME) as folder, _open_lock(work / f"{part.owner}.{LOCK_NAME}") as own:
        try:
            _flock(folder, (fcntl.LOCK_EX if part == WHOLE else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            _flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = f"{output}: another run is preparing this folder"
            raise ValueError(f"{busy}; wait for it or name a new folder") from None
        yield


@contextmanager
def _open_lock(path: Path) -> Iterator[IO[str]]:
    file = path.open("w")
    try:
        yield file
    finally:
        with naming(path):
            file.close()


def _flock(file: IO[str], how: int) -> None:
    """Lock a file; where the file system has no locks (Lustre mounted without them, say), say so and continue."""
    try:
        with naming(file.name):
            fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        print(f"warning: {file.name}: {error.strerror}: nothing keeps a second run out of this folder", file=sys.stderr)
