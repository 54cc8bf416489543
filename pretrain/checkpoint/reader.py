"""Read any range of any tensor from a checkpoint, whatever tensor, pipeline and data parallelism it was saved under.

Files are memory-mapped by safetensors: a read touches the pages of the elements asked for and no others. Which blocks
to copy is worked out in `pretrain/checkpoint/index.py`. Checksums are not looked at here:
`pretrain/checkpoint/verify.py` does that first, once, and leaves the bytes in the page cache.
"""

import hashlib
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.checkpoint.format import DTYPES, Contents, Piece, check_range, read_contents
from pretrain.checkpoint.index import SavedTensor, build_index, plan_copies
from pretrain.schema.choice import did_you_mean


class CheckpointReader:
    """One checkpoint, open for reading.

    Args:
        path: its folder.
        contents: what its `checkpoint.json` says, where that is known. Default: it is read.

    Raises:
        OSError: `checkpoint.json` cannot be read.
        ValueError: it is damaged or its pieces do not make up whole tensors; the message names checkpoint and reason.
    """

    def __init__(self, path: Path | str, contents: Contents | None = None) -> None:
        self.path = Path(path)
        try:
            contents = contents or read_contents(self.path)
            self._index = build_index(contents.files)
        except ValueError as error:
            raise ValueError(f"checkpoint {self.path}: {error}") from error
        self.step: int = contents.step
        self.meta: dict[str, Any] = contents.meta
        self.sha256 = hashlib.sha256(" ".join(sorted(file.sha256 for file in contents.files)).encode()).hexdigest()
        """Of the hashes of its files."""
        self._files: dict[str, Any] = {}

    @property
    def tensors(self) -> Mapping[str, SavedTensor]:
        """What was saved, by name: dtype, logical shape and split."""
        return self._index

    @torch.no_grad()
    def load(self, pieces: Iterable[Piece]) -> None:
        """Fill the tensors of `pieces`, in place, on their devices.

        Raises:
            ValueError: naming a tensor that the checkpoint does not have, or has with another shape or dtype.
        """
        for piece in pieces:
            saved = self._find(piece.name)
            for field, here, there in (
                ("shape", list(piece.shape), list(saved.shape)),
                ("dtype", piece.tensor.dtype, DTYPES[saved.dtype]),
            ):
                if here != there:
                    raise ValueError(
                        f"checkpoint {self.path}: tensor {piece.name} has {field} {there}, the run needs {here}"
                    )
            self._fill(
                piece.tensor, saved, piece.partition_dim, piece.partition_index, piece.partition_count, piece.start
            )

    def read(
        self, name: str, partition_dim: int | None, partition_index: int, partition_count: int, start: int, stop: int
    ) -> Tensor:
        """Read elements [start, stop) of the row-major flattening of a part of a tensor.

        Args:
            name: name of the logical tensor.
            partition_dim: dim along which the part is a slice; None = the part is the whole tensor.
            partition_index: which slice.
            partition_count: equal slices along that dim.
            start: first element, counted in the part.
            stop: end, counted in the part.

        Returns:
            The elements, (stop - start,), of the dtype that was saved, on the CPU, in memory of their own.

        Raises:
            ValueError: there is no such tensor or range.
            OSError: a file cannot be read.
        """
        saved = self._find(name)
        check_range(name, saved.shape, partition_dim, partition_index, partition_count, start, stop)
        target = torch.empty(stop - start, dtype=DTYPES[saved.dtype])
        self._fill(target, saved, partition_dim, partition_index, partition_count, start)
        return target

    def read_whole(self, name: str) -> Tensor:
        """Read a whole tensor, in its logical shape."""
        shape = self._find(name).shape
        return self.read(name, None, 0, 1, 0, prod(shape)).view(shape)

    def _fill(self, target: Tensor, saved: SavedTensor, dim: int | None, index: int, count: int, start: int) -> None:
        stop = start + target.numel()
        if count > 1 and saved.partition_count > 1 and dim != saved.partition_dim:
            whole = self.read_whole(saved.name)
            target.copy_(whole.chunk(count, dim or 0)[index].reshape(-1)[start:stop])
            return
        num_copied = 0
        for block in plan_copies(saved, dim, index, count, start, stop):
            source = self._stored(block.file, block.key)
            size = (block.rows, block.columns)
            target_view = target.as_strided(
                size, (block.target_stride, 1), target.storage_offset() + block.target_offset
            )
            target_view.copy_(
                source.as_strided(size, (block.source_stride, 1), source.storage_offset() + block.source_offset)
            )
            num_copied += block.rows * block.columns
        assert num_copied == target.numel(), "the index covers every element exactly once"

    def _stored(self, file: str, key: str) -> Tensor:
        """A stored piece, (numel,), as a view of the mapped file."""
        try:
            if file not in self._files:
                self._files[file] = safe_open(self.path / file, framework="pt")
            return self._files[file].get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {self.path}: {file}: {error}") from error
        except (OSError, RuntimeError) as error:  # of two libraries, which say a page, or no file, or "no such file"
            is_unopened = isinstance(error, FileNotFoundError)
            reason = "it could not be opened" if is_unopened else str(error).splitlines()[0]
            raise OSError(f"{self.path / file}: {reason}: the storage failed") from error

    def _find(self, name: str) -> SavedTensor:
        if name not in self._index:
            raise ValueError(f"checkpoint {self.path}: there is no tensor {name}{did_you_mean(name, self._index)}")
        return self._index[name]
