"""Files of rows: wherever a write was cut short, no other row is lost and none is there twice."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pretrain.rows.jsonl import JsonLines


@dataclass(frozen=True)
class Row:
    step: int
    text: str = "ä\n"
    value: float | None = 0.5


ROWS = [Row(1), Row(2, 'a "quoted" {word}'), Row(3)]


@pytest.fixture
def file(tmp_path: Path) -> JsonLines:
    return JsonLines(tmp_path / "eval" / "rows.jsonl")


def steps(file: JsonLines) -> list[int]:
    return [row.step for row in file.read(Row, strict=True)]


def test_rows_come_back(file: JsonLines) -> None:
    assert file.read(Row) == [] == file.problems
    file.append(ROWS[:2])
    file.append([])
    JsonLines(file.path).append(ROWS[2:])
    assert file.read(Row, strict=True) == ROWS
    with pytest.raises(FileNotFoundError):
        JsonLines(file.path.with_name("absent")).read(Row, strict=True)


def test_a_number_that_is_not_finite_is_null(file: JsonLines) -> None:
    file.append([Row(1, value=float("nan")), Row(2, value=float("-inf"))])
    assert [json.loads(line)["value"] for line in file.path.read_bytes().splitlines()] == [None, None]


def test_a_line_torn_at_any_byte_costs_no_other_row(file: JsonLines) -> None:
    file.append(ROWS)
    whole = file.path.read_bytes()
    ends = [offset for offset in range(len(whole)) if whole[offset : offset + 1] == b"\n"]
    for offset in range(len(whole) + 1):
        file.path.write_bytes(whole[:offset])
        kept = [row.step for row, end in zip(ROWS, ends, strict=True) if offset >= end]
        assert [row.step for row in file.read(Row)] == kept, offset
        JsonLines(file.path).append([Row(8), Row(9)])
        assert steps(file) == [*kept, 8, 9], offset

        for last in (0, 2, 3):
            file.path.write_bytes(whole[:offset])
            resumed = JsonLines(file.path)
            resumed.cut(last)
            resumed.append([Row(last + 1)])
            assert steps(file) == [*(step for step in kept if step <= last), last + 1], (offset, last)


@pytest.mark.parametrize("damage", [b"\0" * 20, b'{"step": 1', b'{"st{"step": 7}', b"[1]", b"\xff", b"7"])
def test_a_damaged_line_is_named_and_the_others_are_read(file: JsonLines, damage: bytes) -> None:
    file.append(ROWS)
    first, *others = file.path.read_bytes().splitlines(keepends=True)
    file.path.write_bytes(b"".join([first, damage + b"\n", *others]))
    assert file.read(Row) == ROWS
    (problem,) = file.problems
    assert problem.startswith(f"{file.path}:2: ")
    with pytest.raises(ValueError, match=r"rows.jsonl:2: "):
        file.read(Row, strict=True)
    assert file.tail(Row, 1 << 20) == ROWS
    file.cut(2)
    assert file.problems == [f"{file.path}:2: an unfinished row, removed"]
    assert (steps(file), file.problems) == ([1, 2], [])


def test_zeros_at_the_end_are_removed(file: JsonLines) -> None:
    """A file system may leave them where the power failed before the data was written."""
    file.append(ROWS)
    file.path.write_bytes(file.path.read_bytes() + b"\0" * 4096)
    JsonLines(file.path).append([Row(4)])
    assert steps(file) == [1, 2, 3, 4]


def test_a_row_of_another_kind_is_named(file: JsonLines) -> None:
    file.append(ROWS)
    with file.path.open("a") as stream:
        stream.write('{"step": "4"}\n{"step": 5, "new": 1}\n')
    assert [row.step for row in file.read(Row)] == [1, 2, 3, 5]
    assert file.problems == [f"{file.path}:4: step: Input should be a valid integer"]


def test_the_tail_begins_with_a_whole_row(file: JsonLines) -> None:
    file.append(Row(step) for step in range(1000))
    line = len(file.path.read_bytes().splitlines()[-1]) + 1
    assert [row.step for row in file.tail(Row, 3 * line + 5)] == [997, 998, 999]
    assert len(file.tail(Row, 1 << 20)) == 1000


def test_cutting_a_whole_file_leaves_it_alone(file: JsonLines) -> None:
    file.append(ROWS)
    before = file.path.stat().st_ino
    file.cut(3)
    assert (file.path.stat().st_ino, file.problems) == (before, [])
    assert list(file.path.parent.iterdir()) == [file.path]


def test_two_writers_share_a_file(file: JsonLines) -> None:
    other = JsonLines(file.path)
    for step in range(1, 7):
        (file, other)[step % 2].append([Row(step)])
    assert steps(file) == [1, 2, 3, 4, 5, 6]


@contextmanager
def full_disk(allowed_bytes: int) -> Iterator[None]:
    """Writes beyond a file size fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_wait_while_the_disk_is_full_and_no_half_one_is_seen(file: JsonLines) -> None:
    file.append(ROWS[:1])
    for torn in (b"", b'{"step":'):
        file = JsonLines(file.path)
        before = steps(file)
        file.path.write_bytes(file.path.read_bytes() + torn)
        with full_disk(file.path.stat().st_size + 20):
            for row in ROWS[1:]:
                with pytest.raises(OSError, match="too large"):
                    file.append([row])
                assert steps(file) == before
            with pytest.raises(OSError, match="too large"):
                file.flush()
        file.append([Row(4)])
        assert steps(file) == [*before, 2, 3, 4]
        file.flush()
        assert steps(file) == [*before, 2, 3, 4]
