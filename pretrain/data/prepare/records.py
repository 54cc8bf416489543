"""Documents of a text or of a record of JSON, and what did not become one."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from pretrain.storage import parse_json

MAX_TEXT_BYTES = 2_000_000_000
"""Longest document: its token ids, four bytes each and at most one a byte of text, fit in a member of a tar, 8 GiB."""


class Document(NamedTuple):
    text: str
    utf8: bytes
    """The same text."""
    consumed: int
    """Stored bytes of the piece read so far, for progress."""


@dataclass(frozen=True)
class Problem:
    """An input, or a part of one, that did not become a document."""

    reason: str
    """One of a few fixed words, to count by."""
    where: str
    """File, and line, row or offset."""
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.detail}"


def parse_text(utf8: bytes, where: str, consumed: int) -> Document | Problem:
    """A document of plain text; `where` names it in a Problem."""
    try:
        text = utf8.decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem("invalid UTF-8", where, f"{error.reason} at byte {error.start}")
    if not text or text.isspace():
        return Problem("empty document", where, "it holds no text")
    if len(utf8) > MAX_TEXT_BYTES:
        return Problem("too long document", where, f"{len(utf8):,} bytes of text, {MAX_TEXT_BYTES:,} at most: split it")
    return Document(text, utf8, consumed)


def parse_record(line: bytes, where: str, text_field: str, consumed: int) -> Document | Problem:
    """A document of a JSON object; `where` names it in a Problem."""
    try:
        record = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Problem("invalid UTF-8", where, f"{error.reason} at byte {error.start} of the record")
    except ValueError as error:
        return Problem("broken JSON", where, str(error))
    if not isinstance(record, dict):
        return Problem("missing field", where, f"no {text_field!r}; it is not an object")
    if line.count(name := json.dumps(text_field).encode()) > 1 and _is_doubled(line, text_field):
        return Problem("doubled field", where, f"more than one {name.decode()}: which one is meant?")
    if text_field not in record:
        return Problem("missing field", where, f"no {text_field!r}; its fields are {', '.join(record) or 'none'}")
    text = record[text_field]
    if not isinstance(text, str):
        return Problem("not a string", where, f"{text_field!r} is of type {type(text).__name__}")
    try:
        utf8 = text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Problem("invalid UTF-8", where, f"a lone surrogate at character {error.start} of {text_field!r}")
    return parse_text(utf8, where, consumed)


def _is_doubled(line: bytes, field: str) -> bool:
    """Whether a JSON object has a key of this name more than once; a reader takes the last one without a word."""
    pairs: list[list[tuple[str, Any]]] = []
    parse_json(line, pairs.append)
    return [key for key, _ in pairs[-1]].count(field) > 1  # the outermost object is the last to end
