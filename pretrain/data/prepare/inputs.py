"""Input files: paths, globs, fsspec URLs and braces expanded to files, sorted by path, each once; and commands.

`pipe:COMMAND`, WebDataset's way to name a tar, is a shell command. It is run as the user who calls, so it is taken from
that user's own pattern alone: what a file, a listing or a data set's page says is never a command, whatever it is
called, because `InputFile.is_command` is set by `find_commands` and nowhere else.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from braceexpand import braceexpand
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pretrain.data.prepare.archives import naming_url
from pretrain.data.prepare.records import Problem
from pretrain.storage import is_there, naming, require_missing

COMMAND = "pipe:"
COMMAND_BYTES = 1 << 20
"""What counts as the size of a command's output, which is not known before it has run."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file to read documents from."""

    path: str
    """Absolute local path, or URL; pipe:COMMAND of a command."""
    size: int
    """Stored bytes."""
    version: str
    """Changes when the content does, as far as the file system can tell: an ETag or a time."""
    is_command: bool = False


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """A part of a file that one worker reads alone."""

    path: str
    start: int
    """First byte of a .jsonl, first row group of a .parquet, 0 of anything else."""
    end: int
    size: int
    """Stored bytes of the piece."""
    is_command: bool = False


def find_files(
    patterns: Iterable[str], on_problem: Callable[[Problem], None] = lambda problem: None
) -> list[InputFile]:
    """Expand paths, globs, fsspec URLs and braces to files of any kind, sorted by path, each once; raises ValueError if
    a pattern matches none. `on_problem` is told what else a glob matches: folders of which nothing is read, pipes."""
    others: dict[str, str] = {}
    names = (name for pattern in patterns for name in _expand_braces(pattern))
    files = {file.path: file for name in names for file in _expand(name, others)}
    for path, kind in sorted(others.items()):
        if kind != "directory":
            on_problem(Problem("not a file", path, f"of type {kind}: it is not read"))
        elif not any(file.startswith(path.rstrip("/") + "/") for file in files):
            on_problem(Problem("folder", path, "the files in it are not read: name them, as folder/*.jsonl"))
    return [files[path] for path in sorted(files)]


def find_commands(patterns: Iterable[str]) -> list[InputFile]:
    """The commands among patterns that a user wrote, their braces expanded: `pipe:curl -s URL/{000..099}.tar` is a
    hundred of them."""
    commands = (name for pattern in patterns if pattern.startswith(COMMAND) for name in _expand_braces(pattern))
    return [InputFile(path=name, size=COMMAND_BYTES, version="", is_command=True) for name in dict.fromkeys(commands)]


def _expand_braces(pattern: str) -> list[str]:
    """What a pattern with {a,b} or {000..099} stands for; a local file of that very name stands for itself."""
    if "{" not in pattern or ("://" not in pattern and not pattern.startswith(COMMAND) and is_there(Path(pattern))):
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"{pattern}: {error}: one that is not of a pattern is written \\{{") from None


def _expand(pattern: str, others: dict[str, str]) -> list[InputFile]:
    """The files that a pattern matches; adds paths and types of what else it matches to `others`."""
    try:
        with naming_url(pattern):
            file_system, path = url_to_fs(pattern)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{pattern}: {error}") from None
    is_local = isinstance(file_system, LocalFileSystem)
    # A file of that very name wins over a glob: names may hold brackets.
    if is_there(Path(path)) if is_local else file_system.exists(path):
        found = {path: file_system.info(path)}
    elif is_local:
        found = _glob(path)
    else:
        with naming_url(pattern):
            found = cast("dict[str, Any]", file_system.glob(path, detail=True))
    files = {name: info for name, info in found.items() if info["type"] == "file"}
    if not files:
        absent = "no such file" if is_local else "no such file, or no answer"
        hint = "is a folder; name the files in it, as folder/*.jsonl" if found else absent
        raise ValueError(f"{pattern}: {hint}")
    unknown = [name for name, info in files.items() if info["size"] is None]
    if unknown:
        raise ValueError(f"{unknown[0]}: the server does not say how long it is: download it and name the copy")
    paths = {name: name if is_local else file_system.unstrip_protocol(name) for name in found}
    others.update({paths[name]: info["type"] for name, info in found.items() if name not in files})
    return [InputFile(path=paths[name], size=info["size"], version=_version(info)) for name, info in files.items()]


class _LocalFiles(LocalFileSystem):
    """Local files, with the failures that the library passes over when it lists folders; a link to a file is a file."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[OSError] = []

    def ls(self, path: str, detail: bool = False, **_: Any) -> list[Any]:
        try:
            with naming(path), os.scandir(path) as entries:
                found = [self.info(entry if entry.is_dir() else entry.path) for entry in entries]
        except OSError as error:
            self.failures.append(error)
            raise
        return found if detail else [info["name"] for info in found]


def _glob(pattern: str) -> dict[str, Any]:
    """Local files and folders that match.

    Raises:
        OSError: one could not be looked at.
    """
    file_system = _LocalFiles()
    found = cast("dict[str, Any]", file_system.glob(pattern, detail=True))
    for failure in file_system.failures:
        if not isinstance(failure, FileNotFoundError):
            raise failure
        require_missing(Path(failure.filename))
    return found


def _version(info: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created", "blob_id")
    return next((str(info[key]) for key in keys if info.get(key)), "")
