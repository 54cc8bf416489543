"""A GGUF file, llama.cpp's format of weights: settings and tensors by name, read without trust in any of its numbers.

Layout (github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3): magic, version, counts of tensors and settings; the
settings, each a key, a type and a value; for each tensor its name, dimensions (innermost first), type and offset; the
data, aligned. F32, F16, BF16 and Q8_0 are read here, other types by the dequantisation of the `gguf` package.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.storage import naming, require_content

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of settings, and how `struct` reads them."""
_STRING, _ARRAY = 8, 9
_PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype("<i2")}
"""Types of tensors that are numbers as they are: F32, F16, BF16."""
_BF16, _Q8_0 = 30, 8
_Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", 32)])


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    shape: tuple[int, ...]
    """Outermost dimension first, as torch has it."""
    kind: int
    offset: int
    """In the file, in bytes."""


class GGUFFile:
    """A file, open. `settings` and `tensors` are read at once, data on request.

    Raises:
        ValueError: in one line, if it is no such file, is cut, or declares what it does not hold.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path), path.open("rb") as file:
            require_content(path, file.read(64))
            file.seek(0, 2)
            if not file.tell():
                raise ValueError(f"{path}: is empty")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._place = 0
        try:
            self.settings, self.tensors = self._read_header()
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: damaged: {error} at byte {self._place}") from None

    def num_bytes(self, name: str) -> int:
        """Stored bytes of a tensor."""
        return _num_bytes(self.path, name, self.tensors[name])

    def read(self, name: str) -> Tensor:
        """A tensor, in its type or, if it is quantised, as float32."""
        tensor = self.tensors[name]
        count = math.prod(tensor.shape)
        if tensor.kind in _PLAIN:
            numbers = np.frombuffer(self._data, _PLAIN[tensor.kind], count, tensor.offset).copy()
            found = torch.from_numpy(numbers)
            return (found.view(torch.bfloat16) if tensor.kind == _BF16 else found).view(tensor.shape)
        if tensor.kind == _Q8_0:
            blocks = np.frombuffer(self._data, _Q8_0_BLOCK, count // 32, tensor.offset)
            numbers = blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]
            return torch.from_numpy(numbers).view(tensor.shape)
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        stored = np.frombuffer(self._data, np.uint8, self.num_bytes(name), tensor.offset)
        try:
            numbers = dequantize(stored, GGMLQuantizationType(tensor.kind))
        except NotImplementedError:
            kind = GGMLQuantizationType(tensor.kind).name
            raise ValueError(f"{self.path}: {name} is of type {kind}, which the gguf package cannot read") from None
        return torch.from_numpy(numbers.astype(np.float32)).view(tensor.shape)

    def _read_header(self) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        if self._take(4) != MAGIC:
            raise ValueError(f"{self.path}: is no GGUF file: it does not begin with {MAGIC.decode()}")
        version = self._number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "of the other byte order" if swapped else f"of version {version}; 2 and 3 are read"
            raise ValueError(f"{self.path}: a GGUF file {what}")
        num_tensors, num_settings = self._count(24, "tensors"), self._count(13, "settings")
        settings: dict[str, Any] = {}
        for _ in range(num_settings):
            key = self._string()
            settings[key] = self._value(self._number("I"), key)
        listed = [
            (self._string(), self._dimensions(), self._number("I"), self._number("Q")) for _ in range(num_tensors)
        ]
        alignment = settings.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"{self.path}: general.alignment is {alignment!r}")
        start = -(-self._place // alignment) * alignment
        tensors = {
            name: StoredTensor(shape=shape, kind=kind, offset=start + offset) for name, shape, kind, offset in listed
        }
        if len(tensors) < len(listed):
            raise ValueError(f"{self.path}: two tensors have one name")
        for name, tensor in tensors.items():
            end = tensor.offset + _num_bytes(self.path, name, tensor)
            if end > len(self._data):
                raise ValueError(f"{self.path}: {name} ends at byte {end} of {len(self._data)}: cut, or not whole yet")
        return settings, tensors

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._place:
            raise ValueError(f"{self.path}: {size} bytes at byte {self._place} of {len(self._data)}: cut, or damaged")
        self._place += size
        return self._data[self._place - size : self._place]

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))
        return value

    def _count(self, least_bytes: int, what: str) -> int:
        """A number of things, each of which takes so many bytes of the rest of the file or more."""
        count = self._number("Q")
        if count * least_bytes > len(self._data) - self._place:
            raise ValueError(f"{self.path}: declares {count} {what}, more than it can hold: cut, or damaged")
        return count

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8")

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            value = self._number(_SCALARS[kind])
            # 1e-5, and not the number of 64 bits that is nearest to it in 32
            return float(str(np.float32(value))) if _SCALARS[kind] == "f" else value
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"{self.path}: {key[:60]!r} is of type {kind}, which is unknown")
        of = self._number("I")
        if of == _STRING:
            return [self._string() for _ in range(self._count(8, f"texts in {key[:60]}"))]
        if of not in _SCALARS:
            raise ValueError(f"{self.path}: {key[:60]!r} is a list of type {of}, which is unknown")
        count = self._count(struct.calcsize(f"<{_SCALARS[of]}"), f"numbers in {key[:60]}")
        code = f"<{count}{_SCALARS[of]}"
        return list(struct.unpack(code, self._take(struct.calcsize(code))))

    def _dimensions(self) -> tuple[int, ...]:
        number = self._number("I")
        if not 1 <= number <= MOST_DIMENSIONS:
            raise ValueError(f"{self.path}: a tensor of {number} dimensions")
        return tuple(reversed([self._number("Q") for _ in range(number)]))


def _num_bytes(path: Path, name: str, tensor: StoredTensor) -> int:
    count = math.prod(tensor.shape)
    if tensor.kind in _PLAIN:
        return count * _PLAIN[tensor.kind].itemsize
    block, size = (32, _Q8_0_BLOCK.itemsize) if tensor.kind == _Q8_0 else _sizes(path, name, tensor.kind)
    if tensor.shape[-1] % block:
        raise ValueError(f"{path}: {name} has rows of {tensor.shape[-1]}, its type blocks of {block}")
    return count // block * size


def _sizes(path: Path, name: str, kind: int) -> tuple[int, int]:
    """Numbers and bytes of a block of a quantised type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        return GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"{path}: {name} is of type {kind}, which is unknown") from None
