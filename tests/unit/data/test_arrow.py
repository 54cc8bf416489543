"""Arrow files of both formats and data sets of Hugging Face as inputs: every row arrives, damage is named, splits are
chosen by name."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.claim import Part
from pretrain.data.prepare.datasets_input import hub_files
from pretrain.data.prepare.documents import find_inputs, read_documents, split_file
from pretrain.data.prepare.prepare import PrepareSettings, merge_parts, prepare, prepare_part
from pretrain.data.prepare.records import Document, Problem
from pretrain.data.shards import open_index, read_document

ROOT = Path(__file__).parents[3]
TEXTS = [f"{number} zweite Zeile: äöü \U0001f300\n" * (number % 7 + 1) for number in range(700)]
WRITERS: dict[str, Callable] = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}


def write_arrow(path: Path, kind: str, column: pa.Array, batch: int = 100, **options: str | None) -> Path:
    table = pa.table({"id": pa.array(range(len(column))), "text": column})
    with WRITERS[kind](path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def read(path: Path, piece_bytes: int = 1 << 30, split: str | None = None) -> tuple[list[str], list[str]]:
    """Texts of an input, read piece by piece, and its problems as lines."""
    texts, problems = [], []
    for file in find_inputs([str(path)], split=split):
        for piece in split_file(file, piece_bytes):
            for item in read_documents(piece, "text"):
                if isinstance(item, Document):
                    assert 0 <= item.consumed <= piece.size and item.utf8 == item.text.encode()
                    texts.append(item.text)
                else:
                    problems.append(str(item).removeprefix(str(path)))
    return texts, problems


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.utf8())]
)
def test_every_row_of_both_formats_arrives_in_order(
    tmp_path: Path, kind: str, compression: str | None, type_: pa.DataType
) -> None:
    path = write_arrow(tmp_path / "a.arrow", kind, pa.array(TEXTS).cast(type_), compression=compression)
    assert read(path) == read(path, 2000) == (TEXTS, [])
    pieces = split_file(find_inputs([str(path)])[0], 2000)
    assert (len(pieces) > 2) == (kind == "file")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_bad_row_costs_that_row_alone(tmp_path: Path, kind: str) -> None:
    values = pa.array([b"one", b"tw\xff", None, b"", b"five"], pa.binary()).view(pa.string())
    path = write_arrow(tmp_path / "a.arrow", kind, values, batch=3)
    texts, problems = read(path)
    assert texts == ["one", "five"]
    assert problems == [
        ", record batch 0, row 1: invalid UTF-8: invalid start byte at byte 2",
        ", record batch 0, row 2: not a string: 'text' is null",
        ", record batch 1, row 0: empty document: it holds no text",
    ]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_without_the_column_or_without_rows_is_named_once(tmp_path: Path, kind: str) -> None:
    path = write_arrow(tmp_path / "a.arrow", kind, pa.array(range(700)))
    assert read(path, 100) == ([], [": not a string: column 'text' is of type int64; all rows are lost"])
    (piece,) = split_file(find_inputs([str(path)])[0], 1 << 30)
    assert list(read_documents(piece, "body")) == [
        Problem("missing field", str(path), "no column 'body' in id, text; all rows are lost")
    ]
    path = write_arrow(tmp_path / "b.arrow", kind, pa.array([], pa.string()))
    assert read(path) == ([], [": empty file: it holds no row"])


def test_a_cut_stream_keeps_what_came_before(tmp_path: Path) -> None:
    whole = write_arrow(tmp_path / "whole.arrow", "stream", pa.array(TEXTS)).read_bytes()
    path = tmp_path / "a.arrow"
    for size, lost in ((len(whole) - 8, "it has no end mark"), (len(whole) // 2, "")):
        path.write_bytes(whole[:size])
        texts, (problem,) = read(path)
        assert texts == TEXTS[: len(texts)] and len(texts) == (700 if lost else 300)
        assert problem.startswith(f": damaged arrow: {lost}")
        assert problem.endswith(f"; record batches from {len(texts) // 100} on are lost")
    path.write_bytes(whole + whole)  # of two streams one would be read
    texts, (problem,) = read(path)
    assert texts == TEXTS and f"its stream ends at byte {len(whole)} of {2 * len(whole)}" in problem


def test_a_cut_or_foreign_file_is_named(tmp_path: Path) -> None:
    whole = write_arrow(tmp_path / "whole.arrow", "file", pa.array(TEXTS)).read_bytes()
    path = tmp_path / "a.arrow"
    for content in (whole[: len(whole) // 2], whole[:6], b"x", b'{"text": "a"}\n' * 99):
        path.write_bytes(content)
        texts, problems = read(path)
        assert texts == [] and len(problems) == 1
        assert problems[0].startswith(": damaged arrow: ") and problems[0].endswith("; all of it is lost")


@pytest.mark.parametrize("kind", WRITERS)
def test_no_damaged_byte_ends_the_process(tmp_path: Path, kind: str) -> None:
    """In another process: what pyarrow reads without a check can end it."""
    write_arrow(tmp_path / "whole.arrow", kind, pa.array(TEXTS[:40]), batch=20)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path / "whole.arrow"), str(tmp_path / "a.arrow")], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "400\n"), done.stderr[-2000:]


FUZZ = """
import random, sys
from pathlib import Path
from tests.unit.data.test_arrow import read
whole, path, draw = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(0)
for number in range(400):
    damaged = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        damaged[draw.randrange(len(whole) if number % 2 else 1200)] = draw.choice((0, 1, 127, 255, draw.randrange(256)))
    path.write_bytes(damaged)
    read(path)
print(number + 1)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the library writes them: a data set in three files, and one with two splits."""
    folder = tmp_path_factory.mktemp("saved")
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"id": list(range(700)), "text": TEXTS})
    one.save_to_disk(folder / "one", num_shards=3)
    two = datasets.DatasetDict({"train": one.select(range(600)), "test": one.select(range(600, 700))})
    two.save_to_disk(folder / "two")
    (folder / "files").mkdir()
    one.select(range(600)).to_parquet(folder / "files" / "train-00000-of-00001.parquet")
    one.select(range(600, 700)).to_parquet(folder / "files" / "test-00000-of-00001.parquet")
    return folder


def test_saved_data_sets_are_read_split_by_split(saved: Path) -> None:
    assert read(saved / "one") == (TEXTS, [])
    assert read(saved / "two", split="train") == (TEXTS[:600], [])
    assert read(saved / "two", split="test") == (TEXTS[600:], [])


@pytest.mark.parametrize(
    ("pattern", "split", "message"),
    [
        ("two", None, "two: name a split with --split: it has train, test"),
        ("two", "dev", "two: it has no split dev: it has train, test"),
        ("one", "train", "one: holds one data set and no splits: leave out --split train"),
        ("files/*.parquet", "train", "--split train: no input is a data set that has splits"),
    ],
)
def test_a_split_that_is_not_there_is_named(saved: Path, pattern: str, split: str | None, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        find_inputs([f"{saved}/{pattern}"], split=split)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("", "state.json: not as datasets.save_to_disk writes it: "),
        ("[]", "state.json: not as datasets.save_to_disk writes it: "),
        ('{"_data_files": 3}', "state.json: not as datasets.save_to_disk writes it: no list _data_files"),
        ('{"_data_files": ["a"]}', "state.json: it does not say which files hold its rows"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "state.json: it does not say which files hold its rows"),
        ('{"_data_files": [{"filename": "a.arrow"}]}', "a.arrow: is not there, and state.json names it"),
        ('{"_indices_data_files": [{"filename": "i.arrow"}]}', "it picks rows of its files by an index"),
    ],
)
def test_a_damaged_folder_of_a_data_set_is_one_line(tmp_path: Path, state: str, message: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ValueError) as caught:
        find_inputs([str(tmp_path)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_by_name_is_its_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(saved / "files")
    assert hub_files(name, "test") == [f"{name}/test-00000-of-00001.parquet"]
    assert [file.path for file in find_inputs([], dataset=name, split="train")] == hub_files(name, "train")
    for dataset, split, message in (
        (name, None, "name a split with --split: it has train, test"), (name, "dev", "it has no split dev"),
        (f"{name}:other", "train", "other"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            hub_files(dataset, split)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError):
        hub_files(name, "test")


def test_without_a_network_a_name_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError(-2, "no network here")))
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"^nobody/nothing: the Hub does not answer: .*no network here") as caught:
        hub_files("nobody/nothing", "train")
    assert time.monotonic() - began < 10 and "\n" not in str(caught.value)


def texts_of(folder: Path) -> list[str]:
    texts, manifest = [], Manifest.open(folder)
    for number in range(len(manifest)):
        shard = manifest[number]
        with (folder / shard.shard).open("rb") as file:
            rows = open_index(folder, shard)
            texts += [read_document(file, row, place).decode() for place, row in enumerate(rows)]
    return texts


def test_shards_of_a_saved_data_set_are_the_same_by_parts_and_workers(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.data.prepare.prepare.MIN_UNIT_BYTES", 5000)

    def settings(name: str, workers: int = 0) -> PrepareSettings:
        return PrepareSettings(
            inputs=(str(saved / "one"),), output=tmp_path / name, tokenizer=None, num_workers=workers
        )

    assert prepare(settings("whole")).header.num_documents == 700
    assert texts_of(tmp_path / "whole") == TEXTS
    prepare(settings("workers", workers=2))
    for number in (2, 1):
        prepare_part(settings("parts"), Part(number, 2))
    merge_parts(settings("parts"), 2)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_file())
    for other in ("workers", "parts"):
        assert all((tmp_path / other / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
