"""Preparation: one result for any number of workers and any interruption, nothing lost silently, one line for what goes
wrong."""

import gzip
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.foreign import index_folder
from pretrain.data.prepare.prepare import PrepareSettings, prepare
from pretrain.data.prepare.records import Problem
from pretrain.data.prepare.units import Advance, Event, Started
from pretrain.data.shards import open_index, read_document, text_hash
from pretrain.data.stream.framing import frame_document
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train import train_tokenizer
from tests.support.corpus import write_tar
from tests.support.killing import in_fork, killed_at_write

ROOT = Path(__file__).parents[3]
LONGEST = 1_000  # tokens of a document
TEXTS = [f"{number} loops " + "round the ring " * (number % 7) for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    path.write_bytes(train_tokenizer(["loops round the ring"], vocab_size=285)[0])
    return path


@pytest.fixture(autouse=True)
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs give several units, as big ones do."""
    monkeypatch.setattr("pretrain.data.prepare.prepare.MIN_UNIT_BYTES", 300)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Inputs of several kinds that hold TEXTS, and four problems."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "a.jsonl").write_text("".join(lines[:30]) + "broken\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[30:50]).encode()) + gzip.compress(b"{}\n")[:-1])
    for number, text in enumerate(TEXTS[50:]):
        (folder / f"c{number}.txt").write_text(text)
    (folder / "d.txt").write_text("")
    return folder


PROBLEMS = {"broken JSON": 1, "damaged archive": 1, "empty file": 1, "missing field": 1}


def settings(inputs: Path, output: Path, tokenizer: Path | None, **changes: object) -> PrepareSettings:
    return PrepareSettings(inputs=(f"{inputs}/*",), output=output, tokenizer=tokenizer, **{"num_workers": 0, **changes})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_source(folder: Path, tokenizer_path: Path) -> list[list[int]]:
    """Token ids of all documents of a source, in order."""
    tokenizer = Tokenizer.load(tokenizer_path)
    manifest = Manifest.open(folder)
    documents = []
    for number in range(len(manifest)):
        row = manifest[number]
        with (folder / row.shard).open("rb") as file:
            for entry in open_index(folder, row):
                documents.append(
                    frame_document(read_document(file, entry, 0), entry["extension"], tokenizer)
                    .read(1, LONGEST)
                    .tolist()[:-1]
                )
    return documents


def test_every_document_arrives_once_in_order_and_every_problem_is_counted(
    tmp_path: Path, inputs: Path, tokenizer_path: Path
) -> None:
    events: list[Event] = []
    result = prepare(settings(inputs, tmp_path / "out", tokenizer_path), events.append)
    tokenizer = Tokenizer.load(tokenizer_path)
    expected = [tokenizer.encode(text) for text in TEXTS]
    assert read_source(tmp_path / "out", tokenizer_path) == expected
    header = Manifest.open(tmp_path / "out").header
    assert header == result.header
    assert (header.kind, header.problems, header.vocab_size) == ("tokens", PROBLEMS, 285)
    assert (header.num_documents, header.num_tokens) == (len(TEXTS), sum(map(len, expected)))
    assert header.num_shards > 3
    problems = [str(event) for event in events if isinstance(event, Problem)]
    assert (tmp_path / "out" / "problems.txt").read_text().splitlines() == problems
    assert any(f"{inputs}/b.jsonl.gz, after line 21: damaged archive" in line for line in problems)
    advances = [event for event in events if isinstance(event, Advance)]
    assert isinstance(events[0], Started)
    assert (
        events[0].total_bytes
        == sum(advance.stored_bytes for advance in advances)
        == sum(p.stat().st_size for p in inputs.iterdir())
    )
    assert sum(advance.documents for advance in advances) == len(TEXTS)


def test_the_number_of_workers_does_not_show(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    for workers in (0, 1, 2):
        prepare(settings(inputs, tmp_path / str(workers), tokenizer_path, num_workers=workers))
    assert files(tmp_path / "0") == files(tmp_path / "1") == files(tmp_path / "2")


def test_kill_at_any_write_then_again_gives_the_same_bytes(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    whole = tmp_path / "whole"
    prepare(settings(inputs, whole, tokenizer_path))
    expected = files(whole)
    kills, resumed = 0, set()
    for number in count(1, 8):
        output = tmp_path / f"out{number}"
        if not killed_at_write(number, lambda output=output: prepare(settings(inputs, output, tokenizer_path))):
            break
        kills += 1
        result = prepare(settings(inputs, output, tokenizer_path))
        resumed.add(result.resumed_units)
        assert files(output) == expected
    assert kills > 10
    assert len(resumed) > 3


def test_a_worker_that_dies_is_reported_and_its_work_continues(
    tmp_path: Path, inputs: Path, tokenizer_path: Path
) -> None:
    def kill_workers(event: Event) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"a worker process died .*run the same command again"):
        prepare(settings(inputs, tmp_path / "out", tokenizer_path, num_workers=1), kill_workers)
    prepare(settings(inputs, tmp_path / "out", tokenizer_path))
    assert read_source(tmp_path / "out", tokenizer_path) == [
        Tokenizer.load(tokenizer_path).encode(text) for text in TEXTS
    ]


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl, .*: broken JSON: "):
        all_inputs = settings(inputs, tmp_path / "out", tokenizer_path, num_workers=2, strict=True)
        prepare(replace(all_inputs, inputs=(f"{inputs}/a.jsonl",)))


def test_a_second_call_reuses_and_a_different_one_is_refused(
    tmp_path: Path, inputs: Path, tokenizer_path: Path
) -> None:
    output = tmp_path / "out"
    prepare(settings(inputs, output, tokenizer_path))
    before = files(output)
    assert prepare(settings(inputs, output, tokenizer_path, num_workers=1)).reused
    with pytest.raises(
        ValueError, match=r"was prepared with shard_documents=None \(now 5\); delete it or name a new folder"
    ):
        prepare(settings(inputs, output, tokenizer_path, shard_documents=5))
    with pytest.raises(ValueError, match="tokenizer_sha256="):
        prepare(settings(inputs, output, None))
    (inputs / "e.txt").write_text("more")
    with pytest.raises(
        ValueError, match="was prepared with another number of input files, other or changed input files"
    ):
        prepare(settings(inputs, output, tokenizer_path))
    assert files(output) == before


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"out: holds files that are not of tools/prepare_data\.py"):
        prepare(settings(inputs, tmp_path / "out", tokenizer_path))
    assert list(files(tmp_path / "out")) == ["thesis.tex"]


def test_two_runs_cannot_share_a_folder(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    def second_run(event: Event) -> None:
        with pytest.raises(ValueError, match="another run is preparing this folder"):
            prepare(settings(inputs, tmp_path / "out", tokenizer_path))

    prepare(settings(inputs, tmp_path / "out", tokenizer_path), second_run)
    assert Manifest.open(tmp_path / "out").header.num_documents == len(TEXTS)


def test_kept_text_is_the_twin_of_the_tokens(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    tokens, text = tmp_path / "tokens", tmp_path / "text"
    for output, tokenizer in ((tokens, tokenizer_path), (text, None)):
        prepare(settings(inputs, output, tokenizer, shard_documents=4))
    assert read_source(tokens, tokenizer_path) == read_source(text, tokenizer_path)
    ours, theirs = Manifest.open(tokens), Manifest.open(text)
    assert theirs.header.kind == "text"
    assert theirs.header.num_tokens is None
    assert [ours[i].documents for i in range(len(ours))] == [theirs[i].documents for i in range(len(theirs))]
    for number in range(len(ours)):
        assert np.array_equal(
            open_index(tokens, ours[number])["text_hash"], open_index(text, theirs[number])["text_hash"]
        )


def test_shards_respect_their_limits(
    tmp_path: Path, inputs: Path, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(name: str, **changes: object) -> list[tuple[int, int]]:
        prepare(settings(inputs, tmp_path / name, tokenizer_path, **changes))
        manifest = Manifest.open(tmp_path / name)
        return [(manifest[i].documents, manifest[i].tokens or 0) for i in range(len(manifest))]

    assert max(documents for documents, _ in rows("documents", shard_documents=3)) == 3
    limited = rows("tokens", shard_tokens=50)
    assert all(tokens <= 50 or documents == 1 for documents, tokens in limited)
    assert any(documents > 1 for documents, _ in limited)
    monkeypatch.setattr("pretrain.data.prepare.units.SHARD_TEXT_BYTES", 1)
    assert {documents for documents, _ in rows("bytes")} == {1}


def test_a_text_that_the_tokenizer_cannot_write_is_named_by_its_file(tmp_path: Path) -> None:
    for name, text in (("a", "1+1=2"), ("b", "1+1=two")):
        (tmp_path / f"{name}.txt").write_text(text)
    settings = PrepareSettings(
        inputs=(str(tmp_path / "*.txt"),), output=tmp_path / "out", tokenizer="symbols:012+=", num_workers=0
    )
    with pytest.raises(ValueError, match=r"/b\.txt: character 4: 'two' begins with none of the tokenizer's symbols"):
        prepare(settings)


def test_strict_stops_at_the_first_problem_also_on_earlier_work(
    tmp_path: Path, inputs: Path, tokenizer_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl, .*: broken JSON: "):
        prepare(settings(inputs, tmp_path / "out", tokenizer_path, strict=True))
    prepare(settings(inputs, tmp_path / "out", tokenizer_path))
    with pytest.raises(ValueError, match=r"a\.jsonl, .*: broken JSON: .* \(1 of 4 bad inputs, see .*problems\.txt\)"):
        prepare(settings(inputs, tmp_path / "out", tokenizer_path, strict=True))


@pytest.mark.parametrize("size", [5, 700])
def test_inputs_of_blank_lines_are_an_error_that_says_so(tmp_path: Path, tokenizer_path: Path, size: int) -> None:
    """Also where the file is cut into pieces, none of which is the whole file."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "blank.jsonl").write_text("\n" * size)
    with pytest.raises(ValueError, match=r"the inputs hold no document.*: only blank lines$"):
        prepare(settings(tmp_path / "in", tmp_path / "out", tokenizer_path))


def test_inputs_without_a_document_are_an_error(tmp_path: Path, tokenizer_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"the inputs hold no document \(1 x empty document; see "):
        prepare(
            PrepareSettings(
                inputs=(f"{tmp_path}/a.txt",), output=tmp_path / "out", tokenizer=tokenizer_path, num_workers=0
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_tokens": 0}, "shard_tokens=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"tokenizer": None, "shard_tokens": 9}, "shards of text"),
        ({"max_document_tokens": 0}, "max_document_tokens=0: a document holds at least 1"),
        ({"tokenizer": None, "max_document_tokens": 9}, "max_document_tokens counts tokens, and the text is kept"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrepareSettings(**{"inputs": ("x.txt",), "output": Path("out"), "tokenizer": Path("t.model"), **changes})  # type: ignore[arg-type]


def run_tool(*arguments: str | Path | int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/prepare_data.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_the_tool_prepares_reports_and_reuses(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    arguments = ("--input", f"{inputs}/*", "--tokenizer", tokenizer_path, "--output", tmp_path / "out", "--workers", 1)
    first, second = run_tool(*arguments), run_tool(*arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "out: 60 documents, " in first.stdout
    assert "not used: 1 x broken JSON, 1 x damaged archive, 1 x empty file, 1 x missing field" in first.stdout
    assert second.stdout == first.stdout.rstrip() + " (reused: nothing to do)\n"
    assert f"{inputs}/a.jsonl, line 31: broken JSON: " in first.stderr
    strict = run_tool(*arguments, "--strict")
    assert strict.returncode == 2
    assert strict.stderr.startswith(f"error: {inputs}/a.jsonl, line 31: broken JSON: ")


def test_the_tool_names_wrong_arguments(tmp_path: Path) -> None:
    done = run_tool("--input", "x.txt", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "either --tokenizer FILE or --keep-text is needed" in done.stderr


def test_a_full_disk_is_one_line_and_the_same_call_continues(
    tmp_path: Path, inputs: Path, tokenizer_path: Path
) -> None:
    # A limit on the size of files fails a write as a full disk does, without a disk to fill.
    output = tmp_path / "out"
    (inputs / "e.txt").write_text(" ".join(TEXTS) * 20)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        with pytest.raises(
            OSError,
            match=r"part-000000.tar.tmp: File too large; finished work is kept: make room and run the same",
        ):
            prepare(settings(inputs, output, None))

    assert in_fork(limited) == 0
    assert not list(output.glob("**/*.tmp"))
    result = prepare(settings(inputs, output, None))
    assert result.resumed_units > 0
    assert result.header.num_documents == len(TEXTS) + 1


FOREIGN = {
    "x/a.txt": b"one loop",
    "x/a.json": b'{"text": "metadata"}',
    "x/b.json": b'{"text": "two \\u00e9 loops", "url": "x"}',
    "x/b.jpg": b"\xff\xd8",
    "x/c.txt": b"\xff",
    "x/d.json": b"[1]",
    f"{'long/' * 40}e.txt": b"a long name",
}


def test_foreign_tars_are_indexed_in_place(tmp_path: Path, tokenizer_path: Path) -> None:
    write_tar(tmp_path / "web-1.tar", FOREIGN)
    write_tar(tmp_path / "web-2.tar", {"a.txt": b"three", "b.png": b"x"})
    write_tar(tmp_path / "web-3.tar", {"b.png": b"x"})
    before = files(tmp_path)
    first, done = run_tool("--index", tmp_path), run_tool("--index", tmp_path)
    assert (first.returncode, first.stdout) == (0, done.stdout), first.stderr
    not_used = "1 x invalid UTF-8, 1 x missing field, 3 x other member, 1 x unused text"
    assert f"4 documents, text, 2 shards; not used: {not_used}" in done.stdout
    assert f"{tmp_path}/web-1.tar, member x/c.txt: invalid UTF-8" in done.stderr
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    tokenizer = Tokenizer.load(tokenizer_path)
    texts = ["one loop", "two é loops", "a long name", "three"]
    assert read_source(tmp_path, tokenizer_path) == [tokenizer.encode(text) for text in texts]
    index = open_index(tmp_path, Manifest.open(tmp_path)[0])
    assert index["text_hash"].tolist() == [text_hash(text.encode()) for text in texts[:3]]


@pytest.mark.parametrize("cut", [-10_000, 1600, 100])
def test_damage_to_a_foreign_tar_is_named_and_what_came_before_kept(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{number}.txt": b"x" * 700 for number in range(8)})
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    events: list[Event] = []
    if cut == 100:
        with pytest.raises(ValueError, match=r"its tars hold no text \(1 x damaged archive\)"):
            index_folder(tmp_path, events.append)
    else:
        header = index_folder(tmp_path, events.append)
        assert 0 < header.num_documents < 8
        assert header.problems == {"damaged archive": 1}
    problems = [str(event) for event in events if isinstance(event, Problem)]
    assert len(problems) == 1
    assert f"{path}" in problems[0]
    with pytest.raises(ValueError, match="damaged archive"):
        index_folder(tmp_path, strict=True)


def test_indexing_refuses_what_is_not_a_folder_of_tars(tmp_path: Path, inputs: Path, tokenizer_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.tar files to index"):
        index_folder(inputs)
    prepare(settings(inputs, tmp_path / "out", tokenizer_path))
    with pytest.raises(ValueError, match="has its indexes already"):
        index_folder(tmp_path / "out")
