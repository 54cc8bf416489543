"""Readers of inputs: every format gives its documents, every damage is named, pieces of a file add up to the file."""

import gzip
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.prepare.archives import ARCHIVE_CHUNK, open_content
from pretrain.data.prepare.documents import find_inputs, read_documents, split_file
from pretrain.data.prepare.inputs import InputFile
from pretrain.data.prepare.records import Document, Problem, parse_record

TEXTS = ["first\nline", "zweite Zeile: äöü", "3 · third \U0001f300"]
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}, ensure_ascii=False) + "\n" for text in texts).encode()


def read(path: Path | str, text_field: str = "text", piece_bytes: int = 1 << 30) -> tuple[list[str], list[str]]:
    """Texts of a file, read piece by piece, and its problems as lines."""
    texts, problems = [], []
    for file in find_inputs([str(path)]):
        for piece in split_file(file, piece_bytes):
            consumed = 0
            for item in read_documents(piece, text_field):
                if isinstance(item, Problem):
                    problems.append(str(item))
                else:
                    assert item.utf8 == item.text.encode()
                    assert consumed <= item.consumed <= piece.size
                    consumed = item.consumed
                    texts.append(item.text)
    return texts, problems


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def write_parquet(path: Path, values: pa.Array, name: str = "text") -> Path:
    pq.write_table(pa.table({"id": pa.array(range(len(values))), name: values}), path, row_group_size=2)
    return path


@pytest.mark.parametrize("suffix", ["", *COMPRESSORS])
def test_every_compression_of_text_and_jsonl(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSORS.get(suffix, bytes)
    assert read(write(tmp_path / f"a.jsonl{suffix}", compress(jsonl(TEXTS)))) == (TEXTS, [])
    assert read(write(tmp_path / f"a.txt{suffix}", compress(TEXTS[0].encode()))) == ([TEXTS[0]], [])


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_archives_of_several_members_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESSORS[suffix]
    data = compress(jsonl(TEXTS[:1])) + compress(jsonl(TEXTS[1:]))
    assert read(write(tmp_path / f"a.jsonl{suffix}", data)) == (TEXTS, [])


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_truncated_archive_keeps_what_came_before(tmp_path: Path, suffix: str) -> None:
    texts = [f"{number} " + "".join(chr(33 + (number * k * k) % 90) for k in range(700)) for number in range(300)]
    whole = COMPRESSORS[suffix](jsonl(texts))
    for cut in (len(whole) // 2, len(whole) - 1):
        path = write(tmp_path / f"a.jsonl{suffix}", whole[:cut])
        found, problems = read(path)
        assert found == texts[: len(found)]
        assert problems == [
            f"{path}, after line {len(found)}: damaged archive: it ends in the middle; what follows is lost"
        ]
    assert len(found) > 150  # Zstandard decodes blocks of 128 KiB, all or nothing
    path = write(tmp_path / f"b.txt{suffix}", whole[: len(whole) // 2])
    assert read(path) == ([], [f"{path}: damaged archive: it ends in the middle; its document is lost"])


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_what_is_no_archive_is_named(tmp_path: Path, suffix: str) -> None:
    texts, problems = read(write(tmp_path / f"a.jsonl{suffix}", b"plain text, not compressed"))
    assert texts == []
    assert len(problems) == 1
    assert f"a.jsonl{suffix}, after line 0: damaged archive: " in problems[0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a\xff"}', "line 2: invalid UTF-8: invalid start byte at byte 11 of the record"),
        (b'{"text": "a', "line 2: broken JSON: Unterminated string starting at: line 1 column 10 (char 9)"),
        (b"[" * 100_000, "line 2: broken JSON: nested too deeply"),
        (b'{"title": "a", "id": 3}', "line 2: missing field: no 'text'; its fields are title, id"),
        (b'["text"]', "line 2: missing field: no 'text'; it is not an object"),
        (b'{"text": 7}', "line 2: not a string: 'text' is of type int"),
        (b'{"text": null}', "line 2: not a string: 'text' is of type NoneType"),
        (b'{"text": ""}', "line 2: empty document: it holds no text"),
        (b'{"text": " \\n "}', "line 2: empty document: it holds no text"),
        (b'{"text": "a\\ud800"}', "line 2: invalid UTF-8: a lone surrogate at character 1 of 'text'"),
    ],
)
def test_a_bad_line_costs_that_line_alone(tmp_path: Path, line: bytes, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", jsonl(TEXTS[:1]) + line + b"\n" + jsonl(TEXTS[1:]))
    texts, problems = read(path)
    assert texts == TEXTS
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}, {problem}")


def test_blank_lines_crlf_byte_order_mark_and_a_missing_last_newline_are_harmless(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + jsonl(TEXTS).replace(b"\n", b"\r\n\r\n").rstrip()
    assert read(write(tmp_path / "a.jsonl", data)) == (TEXTS, [])
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfx\r\n")) == (["x\r\n"], [])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"")
    assert read(path) == ([], [f"{path}: empty file: it holds no document"])


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_blank_lines_is_named(tmp_path: Path, packed: bool) -> None:
    content = b"\n  \n\r\n\n"
    path = write(tmp_path / ("a.jsonl" + ".gz" * packed), gzip.compress(content) if packed else content)
    assert read(path) == ([], [f"{path}: empty file: only blank lines"])


def test_an_archive_of_nothing_is_an_empty_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(b""))
    assert read(path) == ([], [f"{path}: empty file: it holds no document"])


def test_invalid_utf8_in_text_is_named_by_its_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"good\xc3")
    assert read(path) == ([], [f"{path}: invalid UTF-8: unexpected end of data at byte 4"])


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30), piece_bytes=st.integers(1, 200), blank=st.booleans()
)
@settings(deadline=None)
def test_byte_ranges_of_a_file_add_up_to_it(
    lengths: list[int], piece_bytes: int, blank: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = [f"{number}" + "é" * length for number, length in enumerate(lengths)]
    data = jsonl(texts).replace(b"\n", b"\n\n") if blank else jsonl(texts)
    path = write(tmp_path_factory.mktemp("ranges") / "a.jsonl", data)
    assert read(path, piece_bytes=piece_bytes) == (texts, [])


def test_a_bad_line_of_a_later_range_is_named_by_its_offset(tmp_path: Path) -> None:
    good = jsonl(TEXTS)
    path = write(tmp_path / "a.jsonl", good + b"broken\n")
    texts, problems = read(path, piece_bytes=len(good))
    assert texts == TEXTS
    assert problems[0].startswith(f"{path}, line at byte {len(good)}: broken JSON: ")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 30])
def test_parquet_by_row_groups(tmp_path: Path, kind: pa.DataType, piece_bytes: int) -> None:
    texts = [f"row {number}" for number in range(7)]
    path = write_parquet(tmp_path / "a.parquet", pa.array(texts).cast(kind))
    assert read(path, piece_bytes=piece_bytes) == (texts, [])


def test_bad_rows_of_a_parquet_file_cost_those_rows_alone(tmp_path: Path) -> None:
    raw = pa.array([b"a", None, b"b\xff", b"", b"c"], pa.binary())
    values = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    path = write_parquet(tmp_path / "a.parquet", values)
    assert read(path, piece_bytes=1) == (
        ["a", "c"],
        [
            f"{path}, row 1: not a string: 'text' is null",
            f"{path}, row 2: invalid UTF-8: invalid start byte at byte 1",
            f"{path}, row 3: empty document: it holds no text",
        ],
    )


def test_a_parquet_file_without_the_column_is_named_once(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["a"] * 5), "body")
    assert read(path, piece_bytes=1) == (
        [],
        [f"{path}: missing field: no column 'text' in id, body; all 5 rows are lost"],
    )
    assert read(path, "id") == ([], [f"{path}: not a string: column 'id' is of type int64; all 5 rows are lost"])
    assert read(path, "body") == (["a"] * 5, [])


def test_damage_to_a_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([f"{'x' * 200} {number}" for number in range(6)]))
    data = path.read_bytes()
    texts, problems = read(write(path, data[: len(data) // 2]))
    assert texts == []
    assert problems[0].startswith(f"{path}: damaged parquet: ")
    start = data.index(b"xxxx", len(data) // 3) - 40
    texts, problems = read(write(path, data[:start] + bytes(80) + data[start + 80 :]))
    assert 0 < len(texts) < 6
    assert problems
    assert "are lost" in problems[0]


def test_files_behind_urls_are_read() -> None:
    memory = fsspec.filesystem("memory")
    for name, data in (("b.jsonl", jsonl(TEXTS[1:])), ("a.jsonl.gz", gzip.compress(jsonl(TEXTS[:1])))):
        memory.pipe_file(f"/documents/{name}", data)
    assert read("memory://documents/*.jsonl*") == (TEXTS, [])
    assert read("memory://documents/b.jsonl", piece_bytes=10) == (TEXTS[1:], [])


def test_globs_are_sorted_and_files_counted_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c[1].txt", "d.csv"):
        write(tmp_path / name, name.encode())
    files = find_inputs([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt", f"{tmp_path}/c[1].txt"])
    assert [Path(file.path).name for file in files] == ["a.txt", "b.txt", "c[1].txt"]
    assert files[0] == InputFile(path=f"{tmp_path}/a.txt", size=5, version=files[0].version)
    write(tmp_path / "a.txt", b"other")
    assert find_inputs([f"{tmp_path}/a.txt"])[0].version != files[0].version


def test_what_a_glob_matches_and_nothing_reads_is_named(tmp_path: Path) -> None:
    for name in ("more", "deeper/still"):
        (tmp_path / name).mkdir(parents=True)
        write(tmp_path / name / "b.txt", b"b")
    write(tmp_path / "a.txt", b"a")
    os.mkfifo(tmp_path / "pipe.txt")
    problems: list[Problem] = []
    find_inputs([f"{tmp_path}/*", f"{tmp_path}/more/*.txt"], problems.append)
    assert [str(problem).partition(": ")[0] for problem in problems] == [f"{tmp_path}/deeper", f"{tmp_path}/pipe.txt"]
    assert [problem.reason for problem in problems] == ["folder", "not a file"]


@pytest.mark.parametrize(
    ("line", "doubled"),
    [
        (b'{"text": "one", "text": "two"}', True),
        (b'{"text": "one", "inner": {"text": "two"}}', False),
        (b'{"inner": [{"text": "two"}, {"text": "three"}], "text": "say \\"text\\""}', False),
        (b'{"inner": {"text": 1, "text": 2}, "text": "one"}', False),
    ],
)
def test_a_second_text_of_a_record_is_not_lost_in_silence(line: bytes, doubled: bool) -> None:
    found = parse_record(line, "here", "text", 0)
    assert (isinstance(found, Problem) and found.reason == "doubled field") == doubled
    assert doubled or isinstance(found, Document)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.txt", "no such file"),
        ("*.json", "no such file"),
        ("folder", "is a folder"),
        ("d.csv", r"not a \.txt, \.jsonl"),
        ("x.parquet.gz", r"not a \.txt, \.jsonl"),
    ],
)
def test_inputs_that_cannot_be_read_are_named(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("d.csv", "x.parquet.gz"):
        write(tmp_path / name, b"x")
    with pytest.raises(ValueError, match=message) as caught:
        find_inputs([f"{tmp_path}/{pattern}"])
    assert pattern in str(caught.value)


def test_an_unknown_protocol_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"nosuch://x/a\.txt: Protocol not known: nosuch"):
        find_inputs(["nosuch://x/a.txt"])


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ConnectionError, match=r"ftp://127\.0\.0\.1:1/a\.txt: Connection refused"):
        find_inputs(["ftp://127.0.0.1:1/a.txt"])
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:1/a\.txt: no such file, or no answer"):
        find_inputs(["http://127.0.0.1:1/a.txt"])


def test_documents_are_tuples_of_text_bytes_and_progress(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"abc")
    (piece,) = split_file(find_inputs([str(path)])[0], 1)
    assert list(read_documents(piece, "text")) == [Document("abc", b"abc", 3)]


def test_memory_does_not_follow_what_an_archive_becomes(tmp_path: Path) -> None:
    """One byte, repeated: a chunk of the archive is all of it."""
    size = 256 << 20
    path = write(tmp_path / "bomb.jsonl.zst", COMPRESSORS[".zst"](bytes(size)))
    assert path.stat().st_size < ARCHIVE_CHUNK
    tracemalloc.start()
    with open_content(str(path)) as content:
        total = sum(iter(lambda: len(content.read(1 << 16)), 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size
    assert peak < size / 3
