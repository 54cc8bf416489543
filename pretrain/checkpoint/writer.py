"""Write one rank's tensor file: copy the pieces out of the training state, then write, hash and flush them.

1. Stage: copy every piece into one reused buffer, laid out exactly as the file's data. Only this makes a step wait; it
   costs one copy of the rank's state (into pinned memory from a GPU) and, kept between saves, as much host memory.
2. Write header and buffer in large blocks while another thread computes the sha256 of the same bytes; fsync.

The file is plain safetensors (https://huggingface.co/docs/safetensors, "Format"): 8 bytes of header length, a JSON
header, the data without holes. Pieces are ordered by element size, largest first, so each one is aligned.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel

from pretrain.checkpoint.format import FileEntry, Piece, PieceEntry, seal
from pretrain.storage import naming

_BLOCK_BYTES = 64 << 20
_ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A tensor file in memory; valid until the staging buffer is filled again."""

    header: bytes
    data: memoryview
    pieces: tuple[PieceEntry, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.header) + len(self.data)


class StagingBuffer:
    """Host memory that holds a copy of a rank's pieces; grows to the largest save and is reused."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def fill(self, pieces: Sequence[Piece]) -> Staged:
        """Copy the pieces; when this returns, the training state may change.

        Raises:
            ValueError: two pieces hold the same elements.
            MemoryError: the host has no room for the copy.
        """
        ordered = sorted(pieces, key=lambda piece: -piece.tensor.element_size())
        entries = tuple(PieceEntry.of(piece) for piece in ordered)
        header = _header(entries)
        num_bytes = sum(entry.num_bytes for entry in entries)
        devices = {piece.tensor.device for piece in ordered if piece.tensor.is_cuda}
        if self._buffer.numel() < num_bytes:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # free the old one before taking more
            try:
                self._buffer = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=bool(devices))
            except RuntimeError as error:
                raise MemoryError(f"no {num_bytes / 2**30:.3g} GiB of host memory for a copy of the state") from error
        offset = 0
        for piece, entry in zip(ordered, entries, strict=True):
            copy = self._buffer[offset : offset + entry.num_bytes].view(piece.tensor.dtype)
            copy.copy_(piece.tensor, non_blocking=True)
            offset += entry.num_bytes
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return Staged(header=header, data=self._buffer.numpy().data[:num_bytes], pieces=entries)


def write_tensors(path: Path, staged: Staged) -> FileEntry:
    """Write a staged file so that it survives a power cut, and describe it.

    Raises:
        OSError: naming the file.
    """
    with ThreadPoolExecutor(max_workers=1) as hasher:
        digest = hasher.submit(_sha256, staged.header, staged.data)
        _write_durably(path, staged.header, staged.data)
        return FileEntry(name=path.name, size=staged.num_bytes, sha256=digest.result(), pieces=staged.pieces)


def publish(path: Path, document: BaseModel) -> None:
    """Write a sealed document so that its name appears only once it is complete.

    Raises:
        OSError: naming the file.
    """
    partial = path.with_name(path.name + ".part")
    _write_durably(partial, seal(document))
    partial.rename(path)


def _header(entries: Sequence[PieceEntry]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        if entry.key in table:
            raise ValueError(
                f"tensor {entry.name}: two pieces hold elements "
                f"[{entry.start}, {entry.stop}) of part {entry.partition_index}"
            )
        table[entry.key] = {
            "dtype": entry.dtype,
            "shape": [entry.numel],
            "data_offsets": [offset, offset + entry.num_bytes],
        }
        offset += entry.num_bytes
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_durably(path: Path, *chunks: bytes | memoryview) -> None:
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(descriptor, rest[:_BLOCK_BYTES]) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(*chunks: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
