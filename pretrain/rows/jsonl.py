"""Files of rows: JSON objects, one a line, each a dataclass (or names with values) when it is written or read.

A kill, a full disk or a power cut can leave the last line unfinished. Nobody loses another row to it:
- `append` first completes such a line if only its end is missing, or removes it; what cannot be written, all of the
  call, is written first by the next call;
- `cut` leaves whole rows of the steps that a resumed run does not repeat, so no step is in a file twice;
- `read` passes over damaged lines and names them in `problems`, or raises at the first; blank lines and a byte order
  mark are none.
"""

import codecs
import contextlib
import functools
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from pretrain.schema.section import first_problem
from pretrain.storage import is_there, naming

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class JsonLines:
    """A file of rows, open only while it is read or written; it need not be there.

    Args:
        path: of the file; `append` and `cut` make it and its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        """Damaged lines that the last `read` or `cut` met: a message each, naming file and line."""
        self._unwritten = b""
        self._start: int | None = None
        """Where in the file they belong, once that was tried."""
        self._is_healed = False

    def append(self, rows: "Iterable[DataclassInstance | Mapping[str, Any]]") -> None:
        """Write rows, in one write; a number that is not finite becomes null.

        Raises:
            OSError: they cannot be written, for example because the disk is full; the next call writes them first.
        """
        self._unwritten += b"".join(to_json(row, inf_nan_mode="null") + b"\n" for row in rows)
        self.flush()

    def flush(self) -> None:
        """Try again to write what `append` could not.

        Raises:
            OSError: it failed again.
        """
        if not self._unwritten:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), self.path.open("ab+", buffering=0) as file:
            if not self._is_healed:
                _heal(file)
                self._is_healed = True
            self._take_back(file)
            size, written = file.seek(0, os.SEEK_END), 0
            try:
                while written < len(self._unwritten):
                    written += file.write(self._unwritten[written:])
            except OSError:
                file.truncate(size)  # no reader meets half a row, and the next call begins on a line of its own
                raise
        self._unwritten, self._start = b"", None

    def _take_back(self, file: io.FileIO) -> None:
        """Remove what an earlier call wrote of the rows before it failed, or failed to close the file."""
        if self._start is None:
            self._start = file.seek(0, os.SEEK_END)
            return
        file.seek(self._start)
        if self._unwritten.startswith(file.read()):
            file.truncate(self._start)

    def read(self, record: type[T], *, strict: bool = False, required: bool = False) -> list[T]:
        """The rows of the file, in order.

        Args:
            record: dataclass of a row; keys that it does not have are ignored.
            strict: raise for a missing file or a damaged line. Default: a missing file has no rows, and damaged lines
                are in `problems` alone.
            required: raise for a missing file.

        Raises:
            ValueError: naming file, line and field, if strict.
            OSError: the file cannot be read.
        """
        self.problems = []
        if not (strict or required) and not is_there(self.path):
            return []
        parse, rows = _adapter(record).validate_json, []
        with naming(self.path), self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.isspace():
                    continue
                try:
                    rows.append(parse(line, strict=True))
                except ValidationError as error:
                    problem = f"{self.path}:{number}: {first_problem(error)}"
                    if strict:
                        raise ValueError(problem) from None
                    self.problems.append(problem)
        return rows

    def tail(self, record: type[T], num_bytes: int) -> list[T]:
        """The rows in the last bytes of the file, in order, without damaged lines.

        Raises:
            OSError: the file cannot be read.
        """
        rows = []
        with naming(self.path), self.path.open("rb") as lines:
            start = max(0, lines.seek(0, os.SEEK_END) - num_bytes)
            lines.seek(start)
            if start:
                lines.readline()  # the end of a row, most likely
            for line in lines:
                with contextlib.suppress(ValidationError):
                    rows.append(_adapter(record).validate_json(line, strict=True))
        return rows

    def sync(self) -> None:
        """Make what was written survive a power cut.

        Raises:
            OSError: naming the file.
        """
        if self._is_healed:  # it was written or cut, so it is there
            with naming(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def cut(self, last_step: int) -> set[int]:
        """Remove rows whose `step` is after `last_step`, and lines that hold no row; atomically. Returns the steps of
        the rows that stay.

        Raises:
            OSError: the file cannot be read or written.
        """
        self.problems, changed, steps = [], False, set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path):
            self.path.touch()
        scratch = self.path.with_name(self.path.name + ".tmp")
        with naming(scratch), scratch.open("wb") as new, naming(self.path), self.path.open("rb") as old:
            for number, line in enumerate(old, start=1):
                step = _object_in(line).get("step")
                if not isinstance(step, int):
                    self.problems.append(f"{self.path}:{number}: an unfinished row, removed")
                kept = b""
                if isinstance(step, int) and step <= last_step:
                    steps.add(step)
                    kept = line.removesuffix(b"\n") + b"\n"
                new.write(kept)
                changed |= kept != line
            new.flush()
            os.fsync(new.fileno())
        self._is_healed = True
        if changed:
            scratch.replace(self.path)
        else:
            scratch.unlink()
        return steps


def _heal(file: io.FileIO) -> None:
    """Complete a last row that lacks its line end alone; remove one that was cut short."""
    file.seek(0)
    last = file.read().rpartition(b"\n")[2]
    if _object_in(last):
        file.write(b"\n")
    else:
        file.truncate(file.tell() - len(last))


def _object_in(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; empty if it holds none."""
    try:
        found = from_json(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@functools.cache
def _adapter(record: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(record)
