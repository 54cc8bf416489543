"""Input documents: `.txt` (one a file), `.jsonl` (one a line), `.parquet` (one a row); plain or compressed, local or
any fsspec URL.

Steps: 1. `find_inputs` expands paths and globs to files, sorted; 2. `split_file` cuts a big plain `.jsonl` into byte
ranges and a big `.parquet` into ranges of row groups, so that several workers can share it (a compressed stream cannot
be entered in the middle: it stays whole); 3. `read_documents` yields what a piece holds: documents, and a `Problem` for
everything that did not become one.

Nothing is lost silently: a bad line costs that line, a cut archive costs what lies behind the cut, and each says so
with its file and its line or offset. Memory: one document, or one batch of parquet rows.
"""

import codecs
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pretrain.data.prepare.archives import (
    DECODERS,
    DamagedArchiveError,
    compression_of,
    inflate,
    naming_url,
    open_stored,
)
from pretrain.storage import is_there, naming, parse_json, require_missing

KINDS = (".txt", ".jsonl", ".parquet")
PARQUET_BATCH_ROWS = 256

MAX_TEXT_BYTES = 2_000_000_000
"""Longest document: its token ids, four bytes each and at most one a byte of text, fit in a member of a tar, 8 GiB."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file to read documents from."""

    path: str
    """Absolute local path, or URL."""
    size: int
    """Stored bytes."""
    version: str
    """Changes when the content does, as far as the file system can tell: an ETag or a time."""


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """A part of a file that one worker reads alone."""

    path: str
    start: int
    """First byte of a .jsonl, first row group of a .parquet, 0 of anything else."""
    end: int
    size: int
    """Stored bytes of the piece."""


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


def find_inputs(
    patterns: Iterable[str], on_problem: Callable[["Problem"], None] = lambda problem: None
) -> list[InputFile]:
    """Expand paths, globs and fsspec URLs to files, sorted by path, each once. `on_problem` is told what else a glob
    matches: folders of which nothing is read, pipes.

    Raises:
        ValueError: if a pattern matches nothing, or a file is not of a kind that `read_documents` reads.
        OSError: a file or folder cannot be looked at.
    """
    files = find_files(patterns, on_problem)
    for file in files:
        _kind(file.path)
    return files


def find_files(
    patterns: Iterable[str], on_problem: Callable[["Problem"], None] = lambda problem: None
) -> list[InputFile]:
    """Expand paths, globs and fsspec URLs to files of any kind, sorted by path, each once; raises ValueError if a
    pattern matches none. `on_problem` as of `find_inputs`."""
    others: dict[str, str] = {}
    files = {file.path: file for pattern in patterns for file in _expand(pattern, others)}
    for path, kind in sorted(others.items()):
        if kind != "directory":
            on_problem(Problem("not a file", path, f"of type {kind}: it is not read"))
        elif not any(file.startswith(path.rstrip("/") + "/") for file in files):
            on_problem(Problem("folder", path, "the files in it are not read: name them, as folder/*.jsonl"))
    return [files[path] for path in sorted(files)]


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
    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
    return next((str(info[key]) for key in keys if info.get(key)), "")


def _kind(path: str) -> tuple[str, str]:
    """Kind and compression of a file, by its name: ("jsonl", ".gz")."""
    name = path.lower()
    compression = compression_of(name)
    kind = Path(name.removesuffix(compression)).suffix
    if kind not in KINDS or (compression and kind == ".parquet"):
        raise ValueError(f"{path}: not a .txt, .jsonl (plain, or with {', '.join(DECODERS)}) or .parquet file")
    return kind, compression


def split_file(file: InputFile, piece_bytes: int) -> list[FilePart]:
    """Cut a file into pieces of about `piece_bytes` stored bytes, where its format allows."""
    kind, compression = _kind(file.path)
    whole = FilePart(path=file.path, start=0, end=file.size, size=file.size)
    if kind == ".parquet":
        return _split_parquet(whole, piece_bytes)
    if kind == ".txt" or compression or file.size <= piece_bytes:
        return [whole]
    starts = range(0, file.size, piece_bytes)
    ends = [*starts[1:], file.size]
    ranges = zip(starts, ends, strict=True)
    return [FilePart(path=file.path, start=start, end=end, size=end - start) for start, end in ranges]


def _split_parquet(whole: FilePart, piece_bytes: int) -> list[FilePart]:
    try:
        with naming(whole.path), open_stored(whole.path) as stored:
            groups = pq.ParquetFile(stored).num_row_groups
    except (pa.ArrowException, OSError) as error:
        if _is_real_io(error):
            raise
        groups = 0  # reading it will name the damage
    if groups == 0:
        return [FilePart(path=whole.path, start=0, end=0, size=whole.size)]
    count = min(groups, max(1, whole.size // piece_bytes))
    borders = [groups * number // count for number in range(count + 1)]
    return [
        FilePart(path=whole.path, start=start, end=end, size=whole.size * (end - start) // groups)
        for start, end in pairwise(borders)
    ]


def read_documents(piece: FilePart, text_field: str) -> Iterator[Document | Problem]:
    """Read the documents of a piece, in order; `text_field` is the key or the column of the text.

    Raises:
        OSError: if the file cannot be read at all; bad content is a Problem instead.
    """
    kind, compression = _kind(piece.path)
    if piece.size == 0 and piece.start == 0:
        yield Problem(reason="empty file", where=piece.path, detail="it holds no document")
        return
    with naming(piece.path), open_stored(piece.path) as stored:
        if kind == ".parquet":
            yield from _read_parquet(piece, stored, text_field)
            return
        content = inflate(stored, compression)
        if kind == ".txt":
            yield _read_text(piece, content)
        else:
            yield from _read_lines(piece, content, stored, text_field)


def _read_text(piece: FilePart, content: BinaryIO) -> Document | Problem:
    try:
        data = content.read()
    except DamagedArchiveError as error:
        return Problem("damaged archive", piece.path, f"{error}; its document is lost")
    return parse_text(data.removeprefix(codecs.BOM_UTF8), piece.path, piece.size)


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


def _read_lines(piece: FilePart, content: BinaryIO, stored: BinaryIO, text_field: str) -> Iterator[Document | Problem]:
    """The lines that begin in [start, end) of plain bytes; all lines of an archive."""
    is_plain = content is stored
    offset, number, is_blank = piece.start, 0, True
    if piece.start:
        # A line begins at `start` only if the byte before it ends one.
        content.seek(piece.start - 1)
        offset += len(content.readline()) - 1
    while not is_plain or offset < piece.end:
        try:
            line = content.readline()
        except DamagedArchiveError as error:
            yield Problem("damaged archive", f"{piece.path}, after line {number}", f"{error}; what follows is lost")
            return
        if not line:
            break
        number += 1
        where = f"{piece.path}, line {number}" if piece.start == 0 else f"{piece.path}, line at byte {offset}"
        first = offset == 0
        offset += len(line)
        line = line.rstrip(b"\r\n")
        if line and not line.isspace():
            is_blank = False
            consumed = min(offset, piece.end) - piece.start if is_plain else stored.tell()
            yield parse_record(line.removeprefix(codecs.BOM_UTF8) if first else line, where, text_field, consumed)
    if is_blank and piece.start == 0 and not content.readline():
        yield Problem("empty file", piece.path, "only blank lines" if number else "it holds no document")


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


def _is_real_io(error: BaseException) -> bool:
    """Arrow reports damage as an OSError too, but without an error number."""
    return isinstance(error, OSError) and error.errno is not None


def _read_parquet(piece: FilePart, stored: BinaryIO, text_field: str) -> Iterator[Document | Problem]:
    try:
        file = pq.ParquetFile(stored)
    except (pa.ArrowException, OSError) as error:
        if _is_real_io(error):
            raise
        yield Problem("damaged parquet", piece.path, f"{_first_line(error)}; all of it is lost")
        return
    rows = file.metadata.num_rows
    index = file.schema_arrow.get_field_index(text_field)
    if rows == 0 or index < 0:
        # Every piece of the file sees this; the first one reports it.
        if piece.start == 0 and rows == 0:
            yield Problem("empty file", piece.path, "it holds no row")
        elif piece.start == 0:
            columns = ", ".join(file.schema_arrow.names)
            lost = f"no column {text_field!r} in {columns}; all {rows} rows are lost"
            yield Problem("missing field", piece.path, lost)
        return
    kind = file.schema_arrow.field(index).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        if piece.start == 0:
            yield Problem(
                "not a string", piece.path, f"column {text_field!r} is of type {kind}; all {rows} rows are lost"
            )
        return
    first = sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
    for group in range(piece.start, piece.end):
        consumed = piece.size * (group - piece.start) // (piece.end - piece.start)
        yield from _read_row_group(piece.path, file, group, first, consumed, text_field)
        first += file.metadata.row_group(group).num_rows


def _read_row_group(
    path: str, file: pq.ParquetFile, group: int, first: int, consumed: int, text_field: str
) -> Iterator[Document | Problem]:
    """Documents of one row group, whose first row is row `first` of the file."""
    last = first + file.metadata.row_group(group).num_rows - 1
    row = first
    try:
        for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group], columns=[text_field], use_threads=False):
            column = batch.column(0)
            column = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
            # As bytes, so that one row of bad UTF-8 costs that row alone.
            for value in column.cast(pa.large_binary()).to_pylist():
                where = f"{path}, row {row}"
                if value is None:
                    yield Problem("not a string", where, f"{text_field!r} is null")
                else:
                    yield parse_text(value, where, consumed)
                row += 1
    except (pa.ArrowException, OSError) as error:
        if _is_real_io(error):
            raise
        yield Problem("damaged parquet", path, f"{_first_line(error)}; rows {row} to {last} are lost")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
