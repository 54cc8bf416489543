"""Where each element of a logical tensor lies in a checkpoint, and which blocks to copy for any range asked for.

A part of a tensor that is split along one dim is a table of rows: one row per index of the dims before it, `width`
elements wide (the dims from it on, divided by the number of parts). The parts of another split have the same rows, only
wider or narrower, side by side in the whole row. A flat range of a part is at most three rectangles: the end of a first
row, full rows, the start of a last row. So

1. cut the wanted range and each saved range into rectangles, in columns of the whole row;
2. intersect them: each intersection is one strided 2-D copy.

The number of copies depends on the number of saved pieces that overlap, not on the number of rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod

from pretrain.checkpoint.format import FileEntry, PieceEntry, part_numel


@dataclass(frozen=True, kw_only=True)
class Span:
    """Elements [start, stop) of a saved part, inside a piece that starts at `origin`."""

    file: str
    key: str
    origin: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class SavedTensor:
    """A logical tensor as it was saved: `spans[p]` covers part p from its first element to its last, in order, without
    overlap."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    partition_dim: int | None
    partition_count: int
    spans: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A strided copy of `rows` x `columns` elements; offsets are into the stored piece and into the wanted range."""

    file: str
    key: str
    rows: int
    columns: int
    source_offset: int
    source_stride: int
    target_offset: int
    target_stride: int


@dataclass(frozen=True)
class _Rectangle:
    top: int
    bottom: int
    left: int
    right: int


def build_index(files: Sequence[FileEntry]) -> dict[str, SavedTensor]:
    """Collect the pieces of all files by tensor and check that each tensor is complete. Copies of the same elements are
    allowed.

    Raises:
        ValueError: naming the tensor whose pieces disagree or leave a gap, and the elements that no rank saved.
    """
    collected: dict[str, list[tuple[str, PieceEntry]]] = {}
    for file in files:
        for piece in file.pieces:
            collected.setdefault(piece.name, []).append((file.name, piece))
    return {name: _join(name, pieces) for name, pieces in collected.items()}


def _join(name: str, pieces: list[tuple[str, PieceEntry]]) -> SavedTensor:
    first_file, first = pieces[0]
    parts: list[list[tuple[str, PieceEntry]]] = [[] for _ in range(first.partition_count)]
    for file, piece in pieces:
        for field in ("dtype", "shape", "partition_dim", "partition_count"):
            if getattr(piece, field) != getattr(first, field):
                raise ValueError(
                    f"tensor {name} has {field} {getattr(first, field)} in {first_file} "
                    f"and {getattr(piece, field)} in {file}"
                )
        parts[piece.partition_index].append((file, piece))
    numel = part_numel(first.shape, first.partition_count)
    return SavedTensor(
        name=name,
        dtype=first.dtype,
        shape=first.shape,
        partition_dim=first.partition_dim,
        partition_count=first.partition_count,
        spans=tuple(
            _cover(f"tensor {name}, part {index} of {len(parts)}", part, numel) for index, part in enumerate(parts)
        ),
    )


def _cover(where: str, pieces: list[tuple[str, PieceEntry]], numel: int) -> tuple[Span, ...]:
    """The pieces of one part in order, cut so that each element comes once."""
    spans, covered = [], 0
    for file, piece in sorted(pieces, key=lambda item: item[1].start):
        if piece.start > covered:
            raise ValueError(f"{where}: no rank saved elements [{covered}, {piece.start}) of {numel}")
        if piece.stop > covered:
            spans.append(Span(file=file, key=piece.key, origin=piece.start, start=covered, stop=piece.stop))
            covered = piece.stop
    if covered < numel:
        raise ValueError(f"{where}: no rank saved elements [{covered}, {numel}) of {numel}")
    return tuple(spans)


def plan_copies(
    saved: SavedTensor, partition_dim: int | None, partition_index: int, partition_count: int, start: int, stop: int
) -> Iterator[Block]:
    """The copies that fill elements [start, stop) of part `partition_index` of `partition_count` along `partition_dim`.

    The two splits, saved and wanted, must be along the same dim unless one of them has a single part.
    """
    dim = (saved.partition_dim if saved.partition_count > 1 else partition_dim) or 0
    assert partition_count == 1 or partition_dim == dim, "splits along two dims have no common rows"
    row_width = prod(saved.shape[dim:])
    width, saved_width = row_width // partition_count, row_width // saved.partition_count
    for wanted in _rectangles(start, stop, width, left=partition_index * width):
        for part in range(wanted.left // saved_width, ceil(wanted.right / saved_width)):
            part_left = part * saved_width
            for span in saved.spans[part]:
                for stored in _rectangles(span.start, span.stop, saved_width, left=part_left):
                    top, bottom = max(wanted.top, stored.top), min(wanted.bottom, stored.bottom)
                    left, right = max(wanted.left, stored.left), min(wanted.right, stored.right)
                    if top < bottom and left < right:
                        yield Block(
                            file=span.file,
                            key=span.key,
                            rows=bottom - top,
                            columns=right - left,
                            source_offset=top * saved_width + left - part_left - span.origin,
                            source_stride=saved_width,
                            target_offset=top * width + left - partition_index * width - start,
                            target_stride=width,
                        )


def _rectangles(start: int, stop: int, width: int, left: int) -> Iterator[_Rectangle]:
    """The flat range [start, stop) of a table of rows of `width` elements, whose first column is column `left` of the
    whole row."""
    if start == stop:
        return
    right = left + width
    first, start_column = divmod(start, width)
    last, stop_column = divmod(stop, width)
    if first == last:
        yield _Rectangle(first, last + 1, left + start_column, left + stop_column)
        return
    if start_column:
        yield _Rectangle(first, first + 1, left + start_column, right)
        first += 1
    if first < last:
        yield _Rectangle(first, last, left, right)
    if stop_column:
        yield _Rectangle(last, last + 1, left, left + stop_column)
