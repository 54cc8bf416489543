"""The manifest of a source of shards: a header line, then one row a shard, every row padded to the same length.

The padding makes row i one seek: a source of a million shards opens in the memory and time of a source of one. The
header holds the hash of all rows, which hold those of the shards and their indexes (`pretrain/data/shards.py`).
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self, get_args

from pretrain.storage import naming, parse_json, require_missing, write_atomically

FORMAT, VERSION = "looped-shards", 1
MANIFEST_NAME = "manifest.jsonl"
Kind = Literal["tokens", "text"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """Line 0 of the manifest. `write_manifest` fills in the totals and what describes the rows."""

    kind: Kind
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
            OSError: the manifest cannot be read.
        """
        path = Path(folder) / MANIFEST_NAME
        try:
            with naming(path), path.open("rb") as file:
                line = file.readline()
                size = file.seek(0, os.SEEK_END)
        except (FileNotFoundError, NotADirectoryError):
            require_missing(path)
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
        with naming(path), path.open("rb") as file:
            file.seek(self._rows_start + index * self.header.row_bytes)
            line = file.read(self.header.row_bytes)
        try:
            row = ShardRow(**parse_json(line))
            if not (isinstance(row.shard, str) and min(row.documents, row.bytes, row.tokens or 0) >= 0):
                raise ValueError(f"{row.documents} documents, {row.tokens} tokens, {row.bytes} bytes")
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: the row of shard {index} is not readable ({error}); run tools/prepare_data.py again"
            ) from None
        if Path(row.shard).name != row.shard:
            raise ValueError(f"{path}: shard {index} has the name {row.shard!r}, which is not a plain file name")
        return row

    def require_tokenizer(self, name: str, sha256: str) -> None:
        """Raise a ValueError if the tokens are of another tokenizer than that of data.tokenizer, called `name`."""
        header = self.header
        if header.kind == "tokens" and header.tokenizer_sha256 != sha256:
            theirs, ours = f"sha256 {str(header.tokenizer_sha256)[:12]}", f"sha256 {sha256[:12]}"
            raise ValueError(
                f"{self.folder}: its tokens were made by another tokenizer ({theirs}) than data.tokenizer={name} "
                f"({ours}): name that tokenizer or prepare the folder again"
            )

    def check_rows(self) -> None:
        """Compare all rows with their hash in the header; reads the whole manifest.

        Raises:
            ValueError: they are not those that were written.
            OSError: the manifest cannot be read.
        """
        path, digest = self.folder / MANIFEST_NAME, hashlib.sha256()
        with naming(path), path.open("rb") as file:
            file.seek(self._rows_start)
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != self.header.rows_sha256:
            raise ValueError(f"{path}: its rows are not those that were written; run tools/prepare_data.py again")


def _parse_header(path: Path, line: bytes) -> Header:
    try:
        values = parse_json(line)
        if values["format"] != FORMAT or values["version"] != VERSION:
            raise ValueError(f"format {values['format']!r} version {values['version']!r}")
        header = Header(**values)
        if header.kind not in get_args(Kind) or min(header.num_shards, header.num_documents, header.row_bytes) < 0:
            raise ValueError(f"kind {header.kind!r}, {header.num_shards} shards, {header.num_documents} documents")
        return header
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not a {FORMAT} manifest of version {VERSION} ({error}); prepare the data again"
        ) from None


def write_manifest(folder: str | os.PathLike[str], header: Header, rows: Iterable[ShardRow]) -> Header:
    """Write the manifest of a source, atomically, after its shards and indexes. Returns the header with the totals that
    are filled in here."""
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
