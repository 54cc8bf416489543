"""Files on a storage where any call can fail for a moment: errors that name the file, and files written whole or not.

A call that fails says nothing about the file. Python names the file in the error of `open`, not in that of `read`,
`write`, `flush` and `fsync`: `naming` adds it, wherever a file is read or written. And "no such file" is believed of a
file that may well be absent only where the listing of its folder agrees: `is_there`.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

LEADS_NOWHERE = (errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that no storage has: symbolic links in a circle, a name too long. Bad input, as a missing file."""


PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO)
"""Errors of a network file system that a later call may not meet."""
WAITS_S = (0.5, 2.0, 8.0)
"""How long a reader waits for that, each time."""


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError inside that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read_file(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: naming the file.
    """
    with naming(path):
        return path.read_bytes()


def require_content(path: Path, beginning: bytes) -> None:
    """Raise a ValueError if a file, given its first bytes, only stands for one that Git LFS holds."""
    if beginning.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: is a Git LFS pointer, not the file: fetch it with git lfs pull")


def parse_json(text: str | bytes, on_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of JSON that may come from anywhere; `on_object` makes something else than a dict of an object's keys
    and values, doubled keys among them.

    Raises:
        ValueError: it is not JSON in UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=on_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_there(path: Path) -> bool:
    """Whether a file or folder is there. What another process makes between two looks is there at the second.

    Raises:
        OSError: a call failed, or the folder lists it and it cannot be found.
    """
    for _ in range(2):
        try:
            path.stat()
        except NotADirectoryError:
            return False
        except FileNotFoundError:
            if not is_listed(path):
                return False
        else:
            return True
    raise lost(path)


def is_listed(path: Path) -> bool:
    """Whether the folder of a file or folder lists it.

    Raises:
        OSError: the folder is there and cannot be listed.
    """
    return path.name in (names_in(path.parent) or ())


def names_in(folder: Path) -> list[str] | None:
    """The names in a folder, or None if it is not there. One that another process makes meanwhile is looked at again.

    Raises:
        OSError: it is there and cannot be listed.
    """
    for _ in range(2):
        try:
            with naming(folder):
                return os.listdir(folder)
        except FileNotFoundError:
            if not is_there(folder):
                return None
    raise lost(folder)


def require_new(path: Path, what: str = "run directory") -> None:
    """Raise a ValueError if something is already where a command is to make a file or folder."""
    if is_there(path):
        raise ValueError(f"{path} exists: name a new {what}")


def require_missing(path: Path) -> None:
    """Believe that a file or folder is not there, as a call said.

    Raises:
        OSError: it is there, or a call failed.
    """
    if is_there(path):
        raise lost(path)


def lost(path: Path) -> OSError:
    """The error of a file that is there, and that a call did not find."""
    return OSError(f"{path}: {os.strerror(errno.ENOENT)}, though it is there: the storage failed")


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file so that its name holds either the old bytes or the new, whatever happens.

    Args:
        path: its name.
        data: all bytes, or one part after another.

    Raises:
        OSError: naming the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(temporary), temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            sync_file(file)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        raise
    sync_folder(path.parent)


def clear_away(folder: Path) -> None:
    """Remove a folder as far as that is possible; what is left is for a later call."""
    with suppress(OSError):  # some of its calls raise all the same
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut.

    Raises:
        OSError: naming the folder.
    """
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(file: BinaryIO) -> None:
    """Make what was written survive a power cut."""
    file.flush()
    os.fsync(file.fileno())
