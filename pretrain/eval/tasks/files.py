"""Files of a data directory: finding one under any of its compressions, and reading its rows with the place of each.

A row is a JSON object: a line of a `.jsonl`, or an entry of a `.json` that holds a list (or, as SQuAD does, the list
under "data"). A `.txt` is one row whose field "text" is all of it.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pretrain.data.prepare.archives import DECODERS, read_bytes
from pretrain.storage import is_there, parse_json

T = TypeVar("T")


def find_file(data_dir: Path, names: Sequence[str]) -> Path:
    """The first file that exists of some names below `data_dir`, plain or with the suffix of a compression.

    Raises:
        FileNotFoundError: none exists; the message names them.
        OSError: one cannot be looked at.
    """
    for name in names:
        for suffix in ("", *DECODERS):
            path = data_dir / (name + suffix)
            if is_there(path):
                return path
    paths = " or ".join(str(data_dir / name) for name in names)
    raise FileNotFoundError(f"{paths} (or with {', '.join(DECODERS)}): no such file")


@dataclass(frozen=True)
class Record:
    """A JSON object and its place (`where`: file, and line or entry), which every getter names in its ValueError if the
    field is not of the kind asked for."""

    where: str
    fields: dict[str, Any]

    def text(self, key: str) -> str:
        return self._get(key, str, "a string")

    def flag(self, key: str) -> bool:
        return self._get(key, bool, "true or false")

    def number(self, key: str) -> float:
        """A field that is a number, or a string that spells one."""
        return as_number(self._get(key, (int, float, str), "a number"), f"{self.where}: {key!r}")

    def choice(self, key: str, count: int) -> int:
        """A field that is a number from 0 to count - 1."""
        value = self.number(key)
        if value not in range(count):
            raise ValueError(f"{self.where}: {key!r} is {value:g}, not one of 0 to {count - 1}")
        return int(value)

    def texts(self, key: str) -> list[str]:
        """A field that is a list of one or more strings."""
        values = self._get(key, list, "a list of strings")
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self.where}: {key!r} is {values!r:.80}, not a list of one or more strings")
        return values

    def row(self, key: str) -> "Record":
        return Record(f"{self.where}, {key}", self._get(key, dict, "an object"))

    def rows(self, key: str) -> list["Record"]:
        return _as_rows(self._get(key, list, "a list of objects"), f"{self.where}, {key}")

    def _get(self, key: str, kind: type[T] | tuple[type[T], ...], description: str) -> T:
        if key not in self.fields:
            raise ValueError(f"{self.where}: no field {key!r}; there are {', '.join(self.fields) or 'none'}")
        value = self.fields[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.where}: {key!r} is {value!r:.80}, not {description}")
        return value


def as_number(value: float | str, where: str) -> float:
    """The number that a value is or spells, such as 43, "43.0" or "1,043"; raises a ValueError if it is not one."""
    try:
        return float(value.replace(",", "") if isinstance(value, str) else value)
    except ValueError:
        raise ValueError(f"{where} is {value!r:.80}, not a number") from None


def read_rows(path: Path) -> list[Record]:
    """All rows of a `.jsonl`, `.json` or `.txt` file, plain or compressed.

    Raises:
        ValueError: the file is damaged or empty, or a row is no JSON object; says which.
        OSError: the file cannot be read.
    """
    content = read_bytes(str(path)).removeprefix(codecs.BOM_UTF8)
    if ".jsonl" in path.suffixes:
        # Only "\n" ends a line: texts hold other characters that str.splitlines would cut at.
        lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
        rows = [_as_row(_parse(line, f"{path}, line {number}"), f"{path}, line {number}") for number, line in lines]
    elif ".txt" in path.suffixes:
        rows = [Record(str(path), {"text": _decode(content, str(path))})] if content.strip() else []
    else:
        value = _parse(content, str(path))
        entries = value.get("data") if isinstance(value, dict) else value
        if not isinstance(entries, list):
            raise ValueError(f"{path}: holds neither a list nor an object with a list under 'data'")
        rows = _as_rows(entries, str(path))
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: invalid UTF-8: {error.reason} at byte {error.start}") from None


def _parse(content: bytes, where: str) -> Any:
    text = _decode(content, where)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where}: broken JSON: {error}") from None


def _as_rows(values: list[Any], where: str) -> list[Record]:
    return [_as_row(value, f"{where}, entry {number}") for number, value in enumerate(values, start=1)]


def _as_row(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {value!r:.80} is not an object")
    return Record(where, value)
