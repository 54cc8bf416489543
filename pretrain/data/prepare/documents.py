"""Input documents: `.txt` (one a file), `.jsonl` (one a line), `.tar` of WebDataset (one a sample), `.parquet` and
`.arrow` (one a row); plain or compressed, local or any fsspec URL; and tars that a command writes.

Steps:
1. `find_inputs` expands paths, globs, braces and data sets to files, sorted.
2. `split_file` cuts a big plain `.jsonl` into byte ranges, a big `.parquet` into ranges of row groups and a big
   `.arrow` of the file format into ranges of record batches, so that several workers can share it. A compressed stream,
   one of Arrow and a tar are read from their beginning: they stay whole.
3. `read_documents` yields what a piece holds: documents, and a `Problem` for everything that did not become one.

Nothing is lost silently: a bad line costs that line, a cut archive costs what lies behind the cut, and each says so
with its file and its line or offset. Memory: one document, or one batch of rows.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pretrain.data.prepare.archives import DECODERS, DamagedArchiveError, compression_of, inflate, open_stored
from pretrain.data.prepare.columns import read_columns, split_columns
from pretrain.data.prepare.datasets_input import hub_files, saved_files
from pretrain.data.prepare.inputs import COMMAND, FilePart, InputFile, find_commands, find_files
from pretrain.data.prepare.records import Document, Problem, parse_record, parse_text
from pretrain.storage import naming

KINDS = (".txt", ".jsonl", ".tar", ".parquet", ".arrow")
SHORT_NAMES = {".tgz": ".tar.gz", ".txz": ".tar.xz"}
COLUMNS = (".parquet", ".arrow")
"""Kinds that hold columns, and their own compression."""


def find_inputs(
    patterns: Iterable[str],
    on_problem: Callable[[Problem], None] = lambda problem: None,
    *,
    dataset: str | None = None,
    split: str | None = None,
) -> list[InputFile]:
    """Expand paths, globs, fsspec URLs, braces, folders of `datasets.save_to_disk`, commands and the name of a data set
    to files, sorted by path, each once.

    Args:
        patterns: all but the name, as the user wrote them: one that begins with pipe: is a shell command.
        on_problem: is told what else a glob matches: folders of which nothing is read, pipes.
        dataset: a data set by its name, as `hub_files` takes it.
        split: that of the data set, or of folders that hold several.

    Raises:
        ValueError: if a pattern matches nothing, a file is not of a kind that `read_documents` reads, or nothing has
            splits and one is named.
        OSError: a file or folder cannot be looked at.
    """
    patterns = list(patterns)
    commands = find_commands(patterns)
    patterns = [pattern for pattern in patterns if not pattern.startswith(COMMAND)]
    found = hub_files(dataset, split) if dataset else []
    saved = {pattern: saved_files(Path(pattern), split) for pattern in patterns}
    if split is not None and not dataset and not any(saved.values()):
        raise ValueError(f"--split {split}: no input is a data set that has splits")
    for pattern, files_of_saved in saved.items():
        found += [pattern] if files_of_saved is None else files_of_saved
    files = find_files(found, on_problem)
    for file in files:
        _kind(file.path)
    return sorted([*files, *commands], key=lambda file: file.path)


def _kind(path: str) -> tuple[str, str]:
    """Kind and compression of a file, by its name: ("jsonl", ".gz")."""
    name = path.lower()
    name = next((name.removesuffix(short) + long for short, long in SHORT_NAMES.items() if name.endswith(short)), name)
    compression = compression_of(name)
    kind = Path(name.removesuffix(compression)).suffix
    if kind not in KINDS or (compression and kind in COLUMNS):
        plain = f".txt, .jsonl or .tar (plain, or with {', '.join(DECODERS)})"
        raise ValueError(f"{path}: not a {plain}, .parquet or .arrow file")
    return kind, compression


def split_file(file: InputFile, piece_bytes: int) -> list[FilePart]:
    """Cut a file into pieces of about `piece_bytes` stored bytes, where its format allows."""
    whole = FilePart(path=file.path, start=0, end=file.size, size=file.size, is_command=file.is_command)
    if file.is_command:
        return [whole]
    kind, compression = _kind(file.path)
    if kind in COLUMNS:
        return split_columns(whole, kind, piece_bytes)
    if kind in (".txt", ".tar") or compression or file.size <= piece_bytes:
        return [whole]
    starts = range(0, file.size, piece_bytes)
    ends = [*starts[1:], file.size]
    ranges = zip(starts, ends, strict=True)
    return [FilePart(path=file.path, start=start, end=end, size=end - start) for start, end in ranges]


def read_documents(piece: FilePart, text_field: str) -> Iterator[Document | Problem]:
    """Read the documents of a piece, in order; `text_field` is the key or the column of the text.

    Raises:
        OSError: if the file cannot be read at all; bad content is a Problem instead.
    """
    if piece.is_command:
        from pretrain.data.prepare.samples import open_command, read_samples

        with open_command(piece.path) as content:
            yield from read_samples(piece, content, lambda: 0, text_field)
        return
    kind, compression = _kind(piece.path)
    if piece.size == 0 and piece.start == 0:
        yield Problem(reason="empty file", where=piece.path, detail="it holds no document")
        return
    with naming(piece.path), open_stored(piece.path) as stored:
        if kind in COLUMNS:
            yield from read_columns(piece, kind, stored, text_field)
            return
        content = inflate(stored, compression)
        if kind == ".tar":
            # imports torch, which workers do not need for anything else
            from pretrain.data.prepare.samples import read_samples

            yield from read_samples(piece, content, stored.tell, text_field)
        elif kind == ".txt":
            yield _read_text(piece, content)
        else:
            yield from _read_lines(piece, content, stored, text_field)


def _read_text(piece: FilePart, content: BinaryIO) -> Document | Problem:
    try:
        data = content.read()
    except DamagedArchiveError as error:
        return Problem("damaged archive", piece.path, f"{error}; its document is lost")
    return parse_text(data.removeprefix(codecs.BOM_UTF8), piece.path, piece.size)


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
