"""Whatever layout saved a tensor, any other layout reads back exactly its own range of it."""

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.checkpoint.format import DTYPES, Piece
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.store import CheckpointStore


def save_ranks(directory: Path, step: int, pieces_of_ranks: list[list[Piece]]) -> CheckpointReader:
    """Save with one store per rank, all but rank 0's in the background of this process."""
    stores = [
        CheckpointStore(
            directory=directory,
            rank=rank,
            world_size=len(pieces_of_ranks),
            nonce="test",
            keep_last=1,
            keep_every=0,
            asynchronous=rank > 0,
            timeout_s=60,
        )
        for rank in range(len(pieces_of_ranks))
    ]
    for store, pieces in reversed(list(zip(stores, pieces_of_ranks, strict=True))):
        store.save(step, pieces, {})
    for store in stores:
        store.wait()
    return CheckpointReader(directory / f"step-{step:08d}")


def cut(logical: Tensor, dim: int | None, tensor_size: int, cuts: list[float]) -> list[Piece]:
    """Pieces of a tensor split along `dim`, each part then cut at shares `cuts` of its flattening."""
    parts = [logical] if dim is None else logical.chunk(tensor_size, dim)
    pieces = []
    for index, part in enumerate(parts):
        flat = part.reshape(-1)
        inner = {round(share * flat.numel()) for share in cuts}
        borders = sorted({0, *inner, flat.numel()}) if flat.numel() else [0, 0]
        pieces += [
            Piece(
                name="x",
                tensor=flat[start:stop].clone(),
                shape=tuple(logical.shape),
                partition_dim=dim,
                partition_index=index,
                partition_count=len(parts),
                start=start,
            )
            for start, stop in pairwise(borders)
        ]
    return pieces


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Tensor, list[Piece], list[Piece], int]:
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 12]), min_size=0, max_size=3)))
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    # 251: what every dtype holds exactly
    logical = torch.arange(torch.Size(shape).numel()).remainder(251).to(dtype).reshape(shape)
    cuts = st.lists(st.floats(0, 1), max_size=3)

    def split() -> list[Piece]:
        dim = draw(st.sampled_from([None, *range(len(shape))]))
        size = draw(st.sampled_from([size for size in (1, 2, 4) if dim is not None and shape[dim] % size == 0] or [1]))
        return cut(logical, dim, size, draw(cuts))

    return logical, split(), split(), draw(st.integers(1, 3))


@settings(max_examples=80, deadline=None)
@given(layouts())
def test_any_layout_reads_what_any_other_saved(drawn: tuple[Tensor, list[Piece], list[Piece], int]) -> None:
    logical, saved, wanted, world_size = drawn
    with tempfile.TemporaryDirectory() as folder:
        reader = save_ranks(Path(folder), 1, [saved[rank::world_size] for rank in range(world_size)])
        assert torch.equal(reader.read_whole("x"), logical)
        for piece in wanted:
            stop = piece.start + piece.tensor.numel()
            read = reader.read(
                "x", piece.partition_dim, piece.partition_index, piece.partition_count, piece.start, stop
            )
            assert read.dtype == piece.tensor.dtype
            assert torch.equal(read, piece.tensor)
        blank = [Piece(**{**vars(piece), "tensor": torch.zeros_like(piece.tensor)}) for piece in wanted]
        reader.load(blank)
        assert all(torch.equal(got.tensor, piece.tensor) for got, piece in zip(blank, wanted, strict=True))


def test_copies_of_the_same_elements_are_read_once(tmp_path: Path) -> None:
    norm = torch.arange(10.0)
    overlapping = [
        Piece(name="norm", tensor=norm[:7], shape=(10,)),
        Piece(name="norm", tensor=norm[3:], shape=(10,), start=3),
    ]
    reader = save_ranks(tmp_path, 1, [[overlapping[0]], [overlapping[1]], [Piece.whole("norm", norm)]])
    assert torch.equal(reader.read("norm", None, 0, 1, 2, 9), norm[2:9])


def test_a_read_owns_its_memory(tmp_path: Path) -> None:
    reader = save_ranks(tmp_path, 1, [[Piece.whole("x", torch.ones(4))]])
    reader.read_whole("x").zero_()
    assert torch.equal(reader.read_whole("x"), torch.ones(4))


def test_misfits_name_tensor_and_checkpoint(tmp_path: Path) -> None:
    reader = save_ranks(tmp_path, 7, [[Piece.whole("weights/query", torch.ones(4, 6))]])
    with pytest.raises(
        ValueError, match=r"step-00000007: there is no tensor weights/qeury, did you mean weights/query\?$"
    ):
        reader.read("weights/qeury", None, 0, 1, 0, 1)
    with pytest.raises(
        ValueError, match=r"step-00000007: tensor weights/query has shape \[4, 6\], the run needs \[6, 4\]"
    ):
        reader.load([Piece.whole("weights/query", torch.ones(6, 4))])
    with pytest.raises(
        ValueError, match=r"step-00000007: tensor weights/query has dtype torch.float32, the run needs torch.float64"
    ):
        reader.load([Piece.whole("weights/query", torch.ones(4, 6, dtype=torch.float64))])
    with pytest.raises(ValueError, match=r"tensor weights/query: elements \[6, 13\) lie outside a part of 12 elements"):
        reader.read("weights/query", 1, 1, 2, 6, 13)
    with pytest.raises(ValueError, match=r"dim 1 of shape \[4, 6\] does not split into 4 parts"):
        reader.read("weights/query", 1, 0, 4, 0, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor": torch.ones(2, 2)}, "1-D and contiguous"),
        ({"tensor": torch.ones(8)[::2]}, "1-D and contiguous"),
        ({"tensor": torch.ones(4, dtype=torch.complex64)}, "cannot be saved"),
        ({"start": 1}, "lie outside a part"),
        ({"partition_index": 1}, "needs a partition_dim"),
        ({"partition_dim": 2}, "is not a dim"),
        ({"partition_dim": 0, "partition_index": 2, "partition_count": 2}, "does not exist"),
        ({"partition_dim": 0, "partition_count": 3}, "does not split"),
    ],
)
def test_impossible_pieces_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"tensor x: .*{message}"):
        Piece(**{"name": "x", "tensor": torch.ones(4), "shape": (2, 2), **fields})
