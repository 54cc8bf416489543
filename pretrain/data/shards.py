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

import errno
import hashlib
import io
import os
import struct
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, Self

import numpy as np

from pretrain.data.manifest import MANIFEST_NAME, ShardRow
from pretrain.storage import naming, sync_file, sync_folder, write_atomically

EXTENSIONS = ("npy", "txt", "json")
"""Member formats; the index stores a document's position in this tuple."""

INDEX_DTYPE = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("text_hash", "<u8"), ("crc32", "<u4"), ("extension", "u1")]
)
"""One row a document: offset of the payload in the tar and its size, in bytes; hash of the text; CRC-32 of the payload;
format."""

INDEX_ROW = struct.Struct("<QQQIB")
"""The same as `INDEX_DTYPE`."""

TAR_BLOCK = 512


class DamagedDocument(ValueError):  # noqa: N818 - reads as what it reports
    """A payload is not what the index says; the message names shard, document and offset."""


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
        OSError: it cannot be looked at.
    """
    path = Path(folder) / index_name(row.shard)
    try:
        with naming(path):
            index = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        require_lost(path)
        raise ValueError(f"{path}: the index is missing; prepare or index the folder again") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable index ({error}); prepare or index the folder again") from None
    if not isinstance(index, np.memmap) or index.dtype != INDEX_DTYPE or index.shape != (row.documents,):
        raise ValueError(
            f"{path}: not an index of {row.documents} documents, as the manifest says; "
            "prepare or index the folder again"
        )
    return index


def check_index(folder: str | os.PathLike[str], row: ShardRow) -> None:
    """Compare the index of a shard with the hash in the manifest; reads all of it.

    Raises:
        ValueError: naming the index, if it is missing or not the one that was written.
        OSError: it cannot be read.
    """
    path = Path(folder) / index_name(row.shard)
    try:
        with naming(path), path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        require_lost(path)
        raise ValueError(f"{path}: the index is missing; prepare or index the folder again") from None
    if digest != row.index_sha256:
        raise ValueError(f"{path}: its sha256 is not the one in the manifest; prepare or index the folder again")


def require_lost(path: Path) -> None:
    """Raise the OSError that opening a file of a source met, unless the file is gone for good: its folder can be
    listed, holds the manifest, and does not hold the file. A file system that is not mounted is not a lost shard.

    Raises:
        OSError: naming the file.
    """
    present = os.listdir(path.parent)
    if path.name in present or MANIFEST_NAME not in present:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def write_index(folder: Path, shard: str, rows: np.ndarray) -> str:
    """Write the index of the tar `shard`, INDEX_DTYPE [documents], atomically. Returns the sha256 of the index file."""
    buffer = io.BytesIO()
    np.save(buffer, rows)
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
        self._rows = bytearray()  # a tuple would take six times the memory of a row

    def __len__(self) -> int:
        return len(self._rows) // INDEX_ROW.size

    def add(self, payload: bytes, text_hash: int) -> None:
        """Append a document: its payload (`encode_tokens`, or UTF-8 text) and the hash of its text."""
        offset = self._size + TAR_BLOCK
        self._write(self._header.fill(len(self), len(payload)) + payload + bytes(-len(payload) % TAR_BLOCK))
        extension = EXTENSIONS.index(self._extension)
        self._rows += INDEX_ROW.pack(offset, len(payload), text_hash, zlib.crc32(payload), extension)

    def _write(self, data: bytes) -> None:
        with naming(self._temporary):
            self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)

    def close(self, tokens: int | None) -> ShardRow:
        """Finish a shard that holds `tokens` tokens, None for text; returns its row for the manifest."""
        self._write(bytes(2 * TAR_BLOCK))
        with naming(self._temporary):
            sync_file(self._file)
            self._file.close()
        index_sha256 = write_index(self._folder, self._name, np.frombuffer(self._rows, dtype=INDEX_DTYPE))
        self._temporary.replace(self._folder / self._name)
        sync_folder(self._folder)
        return ShardRow(
            shard=self._name, documents=len(self), tokens=tokens, bytes=self._size,
            sha256=self._sha256.hexdigest(), index_sha256=index_sha256,
        )  # fmt: skip

    def discard(self) -> None:
        """Remove the unfinished shard; nothing happens after `close`."""
        if not self._file.closed:
            # Closing flushes; on a full disk that fails again, and the first error is the one to report.
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def encode_tokens(ids: np.ndarray, vocab_size: int) -> bytes:
    """Token ids [n] as the bytes of a .npy file: uint16, or uint32 above 65536 ids."""
    assert ids.ndim == 1
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    # Version 1.0 of the format: magic, length of the header (2 bytes), the header padded to a total of 128 bytes.
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({len(ids)},), }}".ljust(117)
    return b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + b"\n" + ids.astype(dtype).tobytes()


def read_document(file: BinaryIO, row: np.void, number: int) -> bytes:
    """The payload of document `number` of a shard, from its open tar and its row of the index.

    Raises:
        DamagedDocument: naming shard, document and offset, if the payload is cut short or not the one that was written.
        OSError: naming the shard.
    """
    offset, size = int(row["offset"]), int(row["size"])
    with naming(file.name):
        there = max(0, min(size, os.fstat(file.fileno()).st_size - offset))  # a damaged row may say anything
        payload = _read_exactly(file, offset, size) if there == size else b""
    if len(payload) == size and there == size and zlib.crc32(payload) == row["crc32"]:
        return payload
    there = len(payload) if there == size else there
    reason = f"its CRC-32 is not {row['crc32']:#010x}" if there == size else f"only {there} of {size} bytes are there"
    raise DamagedDocument(f"{file.name}: document {number} at byte {offset} is damaged: {reason}")


def _read_exactly(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes from `offset` on, fewer than `size` only at the end of the file. One call may give less than it is asked
    for: 2 GiB at most on Linux, anything on a network file system."""
    file.seek(offset)
    payload = file.read(size)
    if len(payload) == size:
        return payload
    parts = [payload]
    while parts[-1] and (left := size - sum(map(len, parts))):
        parts.append(file.read(left))
    return b"".join(parts)
