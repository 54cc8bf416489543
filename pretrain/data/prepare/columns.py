"""Documents of a column of a .parquet or .arrow file, as pyarrow reads them.

An .arrow file is of one of two formats (arrow.apache.org, "IPC File Format", "IPC Streaming Format"), told apart by
their first bytes: the file format has record batches that can be read alone, the stream format, which
`datasets.save_to_disk` writes, is read from its beginning. What pyarrow does not check when it reads a batch, offsets
that lead out of their buffer among it, is checked before a text is taken from it.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.data.prepare.archives import open_stored
from pretrain.data.prepare.inputs import FilePart
from pretrain.data.prepare.records import Document, Problem, parse_text
from pretrain.storage import naming

BATCH_ROWS = 256
DAMAGE = (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError)
"""What pyarrow raises of bytes that are not what they should be: a length that no memory holds, too, and names of
columns that are not UTF-8."""
ARROW_FILE_MAGIC = b"ARROW1"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
DAMAGED_ARROW = "damaged arrow"
AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
"""Types of text, and those in which one row of bad UTF-8 costs that row alone."""


def split_columns(whole: FilePart, kind: str, piece_bytes: int) -> list[FilePart]:
    """Cut a file into pieces of about `piece_bytes` stored bytes at its row groups or record batches."""
    try:
        with naming(whole.path), open_stored(whole.path) as stored:
            groups = pq.ParquetFile(stored).num_row_groups if kind == ".parquet" else _num_batches(stored)
    except DAMAGE as error:
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


def read_columns(piece: FilePart, kind: str, stored: BinaryIO, text_field: str) -> Iterator[Document | Problem]:
    """Read the documents of a piece that `split_columns` made, from its open file."""
    read = _read_parquet if kind == ".parquet" else _read_arrow
    return read(piece, stored, text_field)


def _is_real_io(error: BaseException) -> bool:
    """Arrow reports damage as an OSError too, but without an error number."""
    return isinstance(error, OSError) and error.errno is not None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _column_problem(path: str, schema: pa.Schema, text_field: str, rows: str) -> Problem | None:
    """Why a file has no column of texts, if so; `rows` are lost with it."""
    index = schema.get_field_index(text_field)
    if index < 0:
        columns = ", ".join(schema.names)
        return Problem("missing field", path, f"no column {text_field!r} in {columns}; {rows} are lost")
    kind = schema.field(index).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if kind not in AS_BYTES:
        return Problem("not a string", path, f"column {text_field!r} is of type {kind}; {rows} are lost")
    return None


def _texts(
    column: pa.Array, where: Callable[[int], str], consumed: int, text_field: str
) -> Iterator[Document | Problem]:
    """The documents of a column; `where` names a row of it in a Problem."""
    for start in range(0, len(column), BATCH_ROWS):
        rows = column.slice(start, BATCH_ROWS)
        rows = rows.dictionary_decode() if isinstance(rows, pa.DictionaryArray) else rows
        for row, value in enumerate(rows.cast(pa.large_binary()).to_pylist(), start):
            if value is None:
                yield Problem("not a string", where(row), f"{text_field!r} is null")
            else:
                yield parse_text(value, where(row), consumed)


def _read_parquet(piece: FilePart, stored: BinaryIO, text_field: str) -> Iterator[Document | Problem]:
    try:
        file = pq.ParquetFile(stored)
    except DAMAGE as error:
        if _is_real_io(error):
            raise
        yield Problem("damaged parquet", piece.path, f"{_first_line(error)}; all of it is lost")
        return
    rows = file.metadata.num_rows
    empty = None if rows else Problem("empty file", piece.path, "it holds no row")
    problem = empty or _column_problem(piece.path, file.schema_arrow, text_field, f"all {rows} rows")
    if problem is not None:
        if piece.start == 0:  # every piece of the file sees this; the first one reports it
            yield problem
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

    def where(number: int) -> str:
        return f"{path}, row {row + number}"

    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[text_field], use_threads=False):
            yield from _texts(batch.column(0), where, consumed, text_field)
            row += batch.num_rows
    except DAMAGE as error:
        if _is_real_io(error):
            raise
        yield Problem("damaged parquet", path, f"{_first_line(error)}; rows {row} to {last} are lost")


def _is_file_format(stored: BinaryIO) -> bool:
    beginning = stored.read(len(ARROW_FILE_MAGIC))
    stored.seek(0)
    return beginning == ARROW_FILE_MAGIC


def _num_batches(stored: BinaryIO) -> int:
    """Record batches that can be read alone; 0 of the stream format."""
    return pa.ipc.open_file(stored).num_record_batches if _is_file_format(stored) else 0


def _read_arrow(piece: FilePart, stored: BinaryIO, text_field: str) -> Iterator[Document | Problem]:
    is_file = _is_file_format(stored)
    open_reader = pa.ipc.open_file if is_file else pa.ipc.open_stream
    try:
        schema = open_reader(stored).schema
        problem = _column_problem(piece.path, schema, text_field, "all rows")
        stored.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=[max(0, schema.get_field_index(text_field))])
        reader = open_reader(stored, options=options)
    except DAMAGE as error:
        if _is_real_io(error):
            raise
        yield Problem(DAMAGED_ARROW, piece.path, f"{_first_line(error)}; all of it is lost")
        return
    if problem is not None:
        if piece.start == 0:
            yield problem
        return
    num_rows, is_whole = 0, not is_file or piece.end - piece.start == reader.num_record_batches
    batches = _batches_of_file(piece, reader) if is_file else _batches_of_stream(piece, reader, stored)
    for number, batch, consumed in batches:
        if isinstance(batch, Problem):
            num_rows += 1
            yield batch
        else:
            num_rows += batch.num_rows
            yield from _read_batch(piece.path, number, batch, consumed, text_field)
    if not num_rows and is_whole:
        yield Problem("empty file", piece.path, "it holds no row")


_Numbered = tuple[int, "pa.RecordBatch | Problem", int]
"""Number of a record batch in its file, the batch or why it is lost, stored bytes read so far."""


def _batches_of_file(piece: FilePart, reader: pa.RecordBatchFileReader) -> Iterable[_Numbered]:
    """Each batch is read alone: damage costs one."""
    for number in range(piece.start, piece.end):
        consumed = piece.size * (number - piece.start) // (piece.end - piece.start)
        try:
            yield number, reader.get_batch(number), consumed
        except DAMAGE as error:
            if _is_real_io(error):
                raise
            lost = f"{_first_line(error)}; record batch {number} is lost"
            yield number, Problem(DAMAGED_ARROW, piece.path, lost), consumed


def _batches_of_stream(piece: FilePart, reader: pa.RecordBatchStreamReader, stored: BinaryIO) -> Iterable[_Numbered]:
    """One batch after the other: damage costs what lies behind it, and a stream without its end was cut."""
    number = 0
    try:
        for batch in reader:
            yield number, batch, min(stored.tell(), piece.size)
            number += 1
        if (end := stored.tell()) != piece.size:
            raise pa.ArrowInvalid(f"its stream ends at byte {end} of {piece.size}")
        stored.seek(-len(END_OF_STREAM), os.SEEK_END)
        if stored.read() != END_OF_STREAM:
            raise pa.ArrowInvalid("it has no end mark")
    except DAMAGE as error:
        if _is_real_io(error):
            raise
        lost = f"{_first_line(error)}; record batches from {number} on are lost"
        yield number, Problem(DAMAGED_ARROW, piece.path, lost), piece.size


def _read_batch(
    path: str, number: int, batch: pa.RecordBatch, consumed: int, text_field: str
) -> Iterator[Document | Problem]:
    try:
        column = batch.column(0)
        column = column.cast(AS_BYTES[column.type]) if column.type in AS_BYTES else column
        column.validate(full=True)
    except pa.ArrowException as error:
        yield Problem(DAMAGED_ARROW, path, f"{_first_line(error)}; record batch {number} is lost")
        return
    yield from _texts(column, lambda row: f"{path}, record batch {number}, row {row}", consumed, text_field)
