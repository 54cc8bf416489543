"""Shards on disk: tars that stock WebDataset reads, an index beside each, and one manifest a source.

A *source* is a folder:

    shard-000000.tar         one member a document: {key}.npy (token ids, no bos/eos), or {key}.txt / {key}.json (raw
                             text)
    shard-000000.index.npy   one INDEX_DTYPE row a document: where its payload lies, and what it must hash to
    manifest.jsonl           a header line, then one row a shard, every row padded to the same number of bytes

The index makes document n of a shard one seek, the padding makes row i of the manifest one seek: a source of a million
shards opens in the memory and time of a source of one. Writing is deterministic (the same documents give the same
bytes) and atomic (a temporary name, fsync, rename), so what has its final name is whole. Every payload is checked
against its size and CRC-32 when read.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np

FORMAT, VERSION = "looped-shards", 1
MANIFEST_NAME = "manifest.jsonl"
EXTENSIONS = ("npy", "txt", "json")
"""Member formats; the index stores a document's position in this tuple."""

INDEX_DTYPE = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("text_hash", "<u8"), ("crc32", "<u4"), ("extension", "u1")]
)
"""One row a document: offset of the payload in the tar and its size, in bytes; hash of the text; CRC-32 of the payload;
format."""

TAR_BLOCK = 512


class DamagedDocument(ValueError):  # noqa: N818 - reads as what it reports
    """A payload is not what the index says; the message names shard, document and offset."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Line 0 of the manifest. `write_manifest` fills in the totals and what describes the rows."""

    kind: Literal["tokens", "text"]
    tokenizer_sha256: str | None = None
    """Tokenizer that made the ids; None for text."""
    vocab_size: int | None = None
    """Ids of that tokenizer; None for text."""
    problems: dict[str, int] = field(default_factory=dict)
    """Inputs that did not become documents, counted by reason."""
    num_shards: int = 0
    num_documents: int = 0
    num_tokens: int | None = None
    """Tokens without bos and eos; None for text."""
    row_bytes: int = 0
    """Length of every row after the header, newline included."""
    rows_sha256: str = ""
    """Of all rows; with it, the header alone tells whether a source is the same."""
    format: str = FORMAT
    version: int = VERSION


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """A shard as the manifest describes it."""

    shard: str
    """File name of the tar."""
    documents: int
    tokens: int | None
    """Tokens without bos and eos; None for text."""
    bytes: int
    """Size of the tar."""
    sha256: str
    index_sha256: str


class Manifest:
    """The manifest of a source. Holds the header only; each row is read when asked for."""

    def __init__(self, folder: Path, header: Header, rows_start: int, fingerprint: str) -> None:
        self.folder = folder
        self.header = header
        self.fingerprint = fingerprint
        """sha256 of the header line, which holds that of the rows, which hold those of the shards."""
        self._rows_start = rows_start

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open the source in `folder`.

        Raises:
            ValueError: naming the folder and what to do, if it holds no manifest of ours or a damaged one.
        """
        path = Path(folder) / MANIFEST_NAME
        try:
            with path.open("rb") as file:
                line = file.readline()
                size = file.seek(0, os.SEEK_END)
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"{folder}: no {MANIFEST_NAME}; make shards there with tools/prepare_data.py, "
                "or index tars of text with its --index"
            ) from None
        header = _parse_header(path, line)
        if size != len(line) + header.num_shards * header.row_bytes:
            raise ValueError(
                f"{path}: {size} bytes do not hold {header.num_shards} rows: cut short or edited; "
                "prepare the data again"
            )
        return cls(Path(folder), header, len(line), hashlib.sha256(line).hexdigest())

    def __len__(self) -> int:
        return self.header.num_shards

    def __getitem__(self, index: int) -> ShardRow:
        if not 0 <= index < len(self):
            raise IndexError(f"shard {index} of {len(self)} in {self.folder}")
        path = self.folder / MANIFEST_NAME
        with path.open("rb") as file:
            file.seek(self._rows_start + index * self.header.row_bytes)
            line = file.read(self.header.row_bytes)
        try:
            row = ShardRow(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: the row of shard {index} is not readable ({error}); run tools/prepare_data.py again"
            ) from None
        if Path(row.shard).name != row.shard:
            raise ValueError(f"{path}: shard {index} has the name {row.shard!r}, which is not a plain file name")
        return row


def _parse_header(path: Path, line: bytes) -> Header:
    try:
        values = json.loads(line)
        if values["format"] != FORMAT or values["version"] != VERSION:
            raise ValueError(f"format {values['format']!r} version {values['version']!r}")
        return Header(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not a {FORMAT} manifest of version {VERSION} ({error}); prepare the data again"
        ) from None


def write_manifest(folder: str | os.PathLike[str], header: Header, rows: Iterable[ShardRow]) -> Header:
    """Write the manifest of a source, atomically.

    Args:
        folder: the source; its shards and indexes are already there.
        header: kind, tokenizer and problems; the totals are filled in here.
        rows: the shards, in order.

    Returns:
        The header as written.
    """
    listed = list(rows)
    lines = [json.dumps(asdict(row)) for row in listed]
    row_bytes = max((len(line) for line in lines), default=0) + 1
    tokens = sum(row.tokens or 0 for row in listed) if header.kind == "tokens" else None
    text = "".join(line.ljust(row_bytes - 1) + "\n" for line in lines).encode("ascii")
    header = replace(
        header, num_shards=len(listed), num_documents=sum(row.documents for row in listed), num_tokens=tokens,
        row_bytes=row_bytes, rows_sha256=hashlib.sha256(text).hexdigest(),
    )  # fmt: skip
    write_atomically(Path(folder) / MANIFEST_NAME, json.dumps(asdict(header)).encode("ascii") + b"\n" + text)
    return header


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name holds either the old bytes or the new, whatever happens."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            _sync(file)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def text_hash(text: bytes) -> int:
    """The first 8 bytes of BLAKE2b of a document's UTF-8 text, as an integer: equal for tokens, .txt and .json of the
    same text."""
    return int.from_bytes(hashlib.blake2b(text).digest()[:8], "little")


def index_name(shard: str) -> str:
    """File name of the index of a tar: data.tar -> data.index.npy."""
    return shard.removesuffix(".tar") + ".index.npy"


def open_index(folder: str | os.PathLike[str], row: ShardRow) -> np.memmap:
    """Map the index of a shard, INDEX_DTYPE [documents].

    Raises:
        ValueError: naming the index, if it is missing, damaged or of another shard.
    """
    path = Path(folder) / index_name(row.shard)
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable index ({error}); prepare or index the folder again") from None
    if not isinstance(index, np.memmap) or index.dtype != INDEX_DTYPE or index.shape != (row.documents,):
        raise ValueError(
            f"{path}: not an index of {row.documents} documents, as the manifest says; "
            "prepare or index the folder again"
        )
    return index


def write_index(folder: Path, shard: str, rows: list[tuple[int, int, int, int, int]]) -> str:
    """Write the index of a shard, atomically.

    Args:
        folder: the source.
        shard: file name of the tar.
        rows: one tuple a document, in the order of INDEX_DTYPE.

    Returns:
        The sha256 of the index file.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows, dtype=INDEX_DTYPE))
    write_atomically(folder / index_name(shard), buffer.getvalue())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


class _TarHeader:
    """Headers of members 000000000.ext, 000000001.ext, ...: `tarfile`'s own, made once, with name, size and checksum
    filled in.

    `tarfile` takes 15 microseconds a header, a tenth of the time that a short document takes in all.
    """

    def __init__(self, extension: str) -> None:
        blank = tarfile.TarInfo(f"{0:09d}.{extension}").tobuf(tarfile.USTAR_FORMAT)
        # Layout of ustar: name at 0, size (11 octal digits) at 124, checksum at 148, which sums all bytes with itself
        # as spaces.
        self._before_size, self._before_checksum, self._rest = blank[9:124], blank[135:148], blank[156:]
        self._sum = sum(self._before_size) + sum(self._before_checksum) + sum(self._rest) + 8 * ord(" ")

    def fill(self, number: int, size: int) -> bytes:
        name, octal_size = b"%09d" % number, b"%011o" % size
        assert len(name) == 9
        assert len(octal_size) == 11, "ustar holds members of less than 8 GiB"
        checksum = b"%06o\0 " % (self._sum + sum(name) + sum(octal_size))
        return b"".join((name, self._before_size, octal_size, self._before_checksum, checksum, self._rest))


class ShardWriter:
    """Writes one tar and its index under temporary names; `close` gives them their final ones, index first.

    As a context manager it removes the unfinished shard if the block fails.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, extension: Literal["npy", "txt"]) -> None:
        self._folder = Path(folder)
        self._name = name
        self._extension = extension
        self._header = _TarHeader(extension)
        self._temporary = self._folder / (name + ".tmp")
        self._file = self._temporary.open("wb")
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._rows: list[tuple[int, int, int, int, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, payload: bytes, text_hash: int) -> None:
        """Append a document: its payload (`encode_tokens`, or UTF-8 text) and the hash of its text."""
        offset = self._size + TAR_BLOCK
        self._write(self._header.fill(len(self._rows), len(payload)) + payload + bytes(-len(payload) % TAR_BLOCK))
        self._rows.append((offset, len(payload), text_hash, zlib.crc32(payload), EXTENSIONS.index(self._extension)))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)

    def close(self, tokens: int | None) -> ShardRow:
        """Finish the shard.

        Args:
            tokens: tokens of all documents; None for text.

        Returns:
            The shard's row for the manifest.
        """
        self._write(bytes(2 * TAR_BLOCK))
        _sync(self._file)
        self._file.close()
        index_sha256 = write_index(self._folder, self._name, self._rows)
        self._temporary.replace(self._folder / self._name)
        sync_folder(self._folder)
        return ShardRow(
            shard=self._name,
            documents=len(self._rows),
            tokens=tokens,
            bytes=self._size,
            sha256=self._sha256.hexdigest(),
            index_sha256=index_sha256,
        )

    def discard(self) -> None:
        """Remove the unfinished shard; nothing happens after `close`."""
        if not self._file.closed:
            # Closing flushes; on a full disk that fails again, and the first error is the one to report.
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def encode_tokens(ids: np.ndarray, vocab_size: int) -> bytes:
    """Token ids [n] as the bytes of a .npy file: uint16, or uint32 above 65536 ids."""
    assert ids.ndim == 1
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    # Version 1.0 of the format: magic, length of the header (2 bytes), the header padded to a total of 128 bytes.
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({len(ids)},), }}".ljust(117)
    return b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + b"\n" + ids.astype(dtype).tobytes()


def read_document(file: BinaryIO, row: np.void) -> bytes:
    """Read a document's payload.

    Args:
        file: the open tar of the shard.
        row: the document's row of the index.

    Raises:
        DamagedDocument: naming shard, document and offset, if the payload is cut short or not the one that was written.
    """
    offset, size = int(row["offset"]), int(row["size"])
    there = max(0, min(size, os.fstat(file.fileno()).st_size - offset))  # a damaged row may say anything
    payload = b""
    if there == size:
        file.seek(offset)
        payload = file.read(size)
        if len(payload) == size and zlib.crc32(payload) == row["crc32"]:
            return payload
    shard = Path(file.name)
    index = np.load(shard.with_name(index_name(shard.name)), mmap_mode="r", allow_pickle=False)
    number = int(np.searchsorted(index["offset"], offset))
    reason = (
        f"its CRC-32 is not {row['crc32']:#010x}" if len(payload) == size else f"only {there} of {size} bytes are there"
    )
    raise DamagedDocument(f"{shard}: document {number} at byte {offset} is damaged: {reason}")
