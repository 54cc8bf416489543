"""What a checkpoint is on disk: names, the two JSON documents, and the pieces that tensors are cut into.

A checkpoint is a folder `step-00001000` that appears whole or not at all, with

- `rank-00000.safetensors`, ...: the pieces of tensors that one rank saved, each a 1-D tensor;
- `checkpoint.json`: step, free-form `meta`, and for every file its size, sha256 and pieces. Sealed with its own sha256.

A piece is a flat range of one rank's tensor-parallel part: take slice `partition_index` of `partition_count` along
`partition_dim` of the logical tensor (all of it when `partition_dim` is None), flatten it row by row, take [start,
start + numel). Weights split by tensor parallelism, shards of a distributed optimizer and whole arrays are all of this
kind, so any layout can be read back in any other.

Why safetensors and flat ranges: torch.distributed.checkpoint pickles its metadata and wants DTensors, which flat
optimizer shards are not; megatron.core.dist_checkpointing spawns writer processes for tens of seconds and refuses flat
ranges. Here a save is one write per rank.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from pretrain.checkpoint.names import CONTENTS_NAME, parse_step
from pretrain.schema.section import first_problem
from pretrain.storage import parse_json, read_file

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def part_numel(shape: Sequence[int], partition_count: int) -> int:
    """Elements of one of `partition_count` equal parts of a tensor of this shape."""
    return prod(shape) // partition_count


def check_range(
    name: str,
    shape: Sequence[int],
    partition_dim: int | None,
    partition_index: int,
    partition_count: int,
    start: int,
    stop: int,
) -> None:
    """Raise a ValueError that names the tensor unless part `partition_index` of `partition_count` exists and has
    elements [start, stop)."""
    if partition_dim is None:
        if (partition_index, partition_count) != (0, 1):
            raise ValueError(f"tensor {name}: part {partition_index} of {partition_count} needs a partition_dim")
    elif not 0 <= partition_dim < len(shape):
        raise ValueError(f"tensor {name}: partition_dim={partition_dim} is not a dim of shape {list(shape)}")
    elif not 0 <= partition_index < partition_count:
        raise ValueError(f"tensor {name}: part {partition_index} of {partition_count} does not exist")
    elif shape[partition_dim] % partition_count:
        raise ValueError(
            f"tensor {name}: dim {partition_dim} of shape {list(shape)} does not split into {partition_count} parts"
        )
    if not 0 <= start <= stop <= part_numel(shape, partition_count):
        raise ValueError(
            f"tensor {name}: elements [{start}, {stop}) lie outside a part of "
            f"{part_numel(shape, partition_count)} elements (shape {list(shape)}, {partition_count} parts)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A flat range of a rank's tensor-parallel part of a logical tensor: what is saved, or where a load puts it.

    Raises:
        ValueError: the range does not exist in such a tensor, or the tensor is not 1-D, contiguous and of a dtype in
            `DTYPES`.
    """

    name: str
    """Name of the logical tensor, the same on all ranks, such as "weights/loop.0.attention.query.weight"."""
    tensor: Tensor
    """The elements, (numel,), on any device."""
    shape: tuple[int, ...]
    """Shape of the whole logical tensor."""
    partition_dim: int | None = None
    """Dim of the logical tensor that tensor parallelism splits; None = not split."""
    partition_index: int = 0
    """Which slice along partition_dim, of partition_count."""
    partition_count: int = 1
    """Equal slices along partition_dim."""
    start: int = 0
    """Where the range starts in the row-major flattening of the part, in elements."""

    def __post_init__(self) -> None:
        if self.tensor.dim() != 1 or not self.tensor.is_contiguous():
            raise ValueError(
                f"tensor {self.name}: a piece is 1-D and contiguous, not of shape {list(self.tensor.shape)}"
            )
        if self.tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(
                f"tensor {self.name}: {self.tensor.dtype} cannot be saved, only {', '.join(map(str, DTYPES.values()))}"
            )
        stop = self.start + self.tensor.numel()
        check_range(
            self.name, self.shape, self.partition_dim, self.partition_index, self.partition_count, self.start, stop
        )

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> Self:
        """A whole tensor, held by one rank."""
        return cls(name=name, tensor=tensor.reshape(-1), shape=tuple(tensor.shape))


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


DocumentT = TypeVar("DocumentT", bound=_Document)


class PieceEntry(_Document):
    """A piece as the index knows it: everything but the elements."""

    name: str
    dtype: Literal["F64", "F32", "BF16", "I64", "U8"]
    shape: tuple[int, ...]
    partition_dim: int | None
    partition_index: int
    partition_count: int
    start: int
    numel: int = Field(ge=0)

    @classmethod
    def of(cls, piece: Piece) -> Self:
        return cls(
            name=piece.name,
            dtype=_DTYPE_NAMES[piece.tensor.dtype],  # pyright: ignore[reportArgumentType]
            shape=tuple(piece.shape),
            partition_dim=piece.partition_dim,
            partition_index=piece.partition_index,
            partition_count=piece.partition_count,
            start=piece.start,
            numel=piece.tensor.numel(),
        )

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        check_range(
            self.name, self.shape, self.partition_dim, self.partition_index, self.partition_count, self.start, self.stop
        )
        return self

    @property
    def stop(self) -> int:
        return self.start + self.numel

    @property
    def num_bytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def key(self) -> str:
        """Name of the piece inside its safetensors file; unique there."""
        return f"{self.name}[{self.partition_index}][{self.start}:{self.stop}]"


class FileEntry(_Document):
    """A tensor file: what it must be and what it holds."""

    name: str = Field(pattern=r"^rank-\d{5,}\.safetensors$")
    size: int
    sha256: str
    pieces: tuple[PieceEntry, ...]


class Contents(_Document):
    """The document `checkpoint.json`."""

    format: Literal[1] = 1
    step: int = Field(ge=0)
    meta: dict[str, Any]
    files: tuple[FileEntry, ...]


def seal(document: BaseModel) -> bytes:
    """A document as JSON that carries the sha256 of its canonical form, so that any damage to it shows."""
    body = document.model_dump()
    return json.dumps({"sha256": _digest(body), "body": body}).encode()


def unseal(path: Path, kind: type[DocumentT]) -> DocumentT:
    """Read a sealed document.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or is not a document of this kind.
    """
    try:
        sealed = parse_json(read_file(path))
        if sealed["sha256"] != _digest(sealed["body"]):
            raise ValueError("its sha256 does not match")
        # JSON text, not objects: strict validation takes lists as tuples only from JSON.
        return kind.model_validate_json(json.dumps(sealed["body"]))
    except ValidationError as error:
        raise ValueError(f"{path.name} is damaged: {first_problem(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error


def read_contents(path: Path) -> Contents:
    """Read and check a checkpoint's `checkpoint.json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or belongs to another step than the folder's name says.
    """
    contents = unseal(path / CONTENTS_NAME, Contents)
    if contents.step != parse_step(path.name):
        raise ValueError(f"{CONTENTS_NAME} is of step {contents.step}")
    return contents


def describe(error: Exception) -> str:
    """An exception as one line: file and reason for an OSError."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
