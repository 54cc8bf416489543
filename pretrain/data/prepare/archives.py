"""Files, local or any fsspec URL, decompressed as their names say; a truncated archive is an error."""

import ftplib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard
from fsspec.core import url_to_fs

from pretrain.storage import naming

DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
"""Incremental decoder of one member of each kind of archive."""

ARCHIVE_CHUNK = 1 << 16
DECODED_AT_ONCE = 1 << 10
"""Stored bytes given to a decoder at a time. The most that they can become is 32 MiB (blocks of zstd that repeat one
byte), where a whole chunk could become 2 GiB."""


class DamagedArchiveError(Exception):
    """A compressed stream ends early or does not decode."""


def compression_of(path: str) -> str:
    """The key of DECODERS that a file's name ends in, or nothing."""
    return next((suffix for suffix in DECODERS if path.lower().endswith(suffix)), "")


def inflate(stored: BinaryIO, compression: str) -> BinaryIO:
    """The content of a file of that compression, or of none; reading it raises DamagedArchiveError."""
    return (
        cast("BinaryIO", io.BufferedReader(Inflated(stored, DECODERS[compression]), ARCHIVE_CHUNK))
        if compression
        else stored
    )


@contextmanager
def open_content(path: str) -> Iterator[BinaryIO]:
    """A file of any kind, decompressed as its name says.

    Raises:
        DamagedArchiveError: by reading, where the archive is cut or does not decode.
        OSError: the file cannot be read.
    """
    with naming(path), open_stored(path) as stored:
        yield inflate(stored, compression_of(path))


def read_bytes(path: str) -> bytes:
    """All of a file of any kind, decompressed as its name says.

    Raises:
        ValueError: the archive is damaged.
        OSError: the file cannot be read.
    """
    try:
        with open_content(path) as content:
            return content.read()
    except DamagedArchiveError as error:
        raise ValueError(f"{path}: damaged archive: {error}; fetch it again") from None


@contextmanager
def naming_url(url: str) -> Iterator[None]:
    """An error of a server, or of the way to it, names the URL."""
    try:
        yield
    except (OSError, EOFError, ftplib.Error) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "filename", None) is not None:
            raise
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectionError(f"{url}: {why}") from error


def open_stored(path: str) -> BinaryIO:
    """A local file or a URL as it is stored."""
    if "://" in path:
        with naming_url(path):
            file_system, name = url_to_fs(path)
            return cast("BinaryIO", file_system.open(name, "rb"))
    return Path(path).open("rb")


class Inflated(io.RawIOBase):
    """The decompressed bytes of an archive of one or more members; unlike the libraries' readers, it refuses a missing
    end."""

    def __init__(self, stored: BinaryIO, new_decoder: Callable[[], Any]) -> None:
        self._stored = stored
        self._new_decoder = new_decoder
        self._decoder: Any = None
        self._stored_ahead = memoryview(b"")
        self._pending = memoryview(b"")
        self._damage: DamagedArchiveError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            if self._damage is not None:
                raise self._damage
            if not self._stored_ahead:
                self._stored_ahead = memoryview(self._stored.read(ARCHIVE_CHUNK))
            if not self._stored_ahead:
                if self._decoder is not None:
                    raise DamagedArchiveError("it ends in the middle")
                return 0
            self._pending = memoryview(self._inflate())
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _inflate(self) -> bytes:
        """Decode what was read ahead until there is a chunk of content, or until the damage, which the next call
        meets."""
        parts, size = [], 0
        while self._stored_ahead and size < ARCHIVE_CHUNK:
            data = bytes(self._stored_ahead[:DECODED_AT_ONCE])
            num_taken = len(data)
            if self._decoder is None:
                data = data.lstrip(b"\0")  # padding between members
                self._decoder = self._new_decoder() if data else None
            if self._decoder is not None:
                try:
                    parts.append(self._decoder.decompress(data))
                except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                    self._damage = DamagedArchiveError(str(error))
                    break
                size += len(parts[-1])
                if self._decoder.eof:
                    num_taken -= len(self._decoder.unused_data)
                    self._decoder = None
            self._stored_ahead = self._stored_ahead[num_taken:]
        return b"".join(parts)
