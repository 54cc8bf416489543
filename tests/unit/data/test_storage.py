"""Data behind a storage that fails: the error of the call, never damage."""

import errno
import fcntl
import io
import os
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pytest

from pretrain.data.manifest import Manifest
from pretrain.data.prepare import documents, inputs, records
from pretrain.data.prepare.prepare import PrepareSettings, prepare
from pretrain.data.shards import open_index, read_document
from pretrain.data.stream import stream
from pretrain.data.stream.loader import Loader
from tests.support.corpus import make_data, make_texts, make_tokenizer, write_source


@pytest.mark.parametrize("on_damage", ["stop", "skip"])
def test_a_storage_that_fails_is_no_damage(tmp_path: Path, on_damage: Literal["stop", "skip"]) -> None:
    """With workers and without, skipping or not: the call's own error, and nothing is skipped because of it."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer.model")
    folder = write_source(tmp_path / "away", make_texts(80), 4, tokenizer)
    for num_workers in (0, 2):
        section = make_data(tmp_path / "tokenizer.model", folder, num_workers=num_workers, on_damage=on_damage)
        with Loader(section, seed=1, seq_len=16, global_batch=4) as loader:
            for number in (1, 2, 3):
                path = folder / f"shard-{number:06d}.tar"
                path.rename(folder / f"kept-{number}")
                path.symlink_to(path)  # opening it is ELOOP, which is neither damage nor a missing file
            with pytest.raises(OSError, match=r"shard-00000\d\.tar") as caught:
                for _ in range(200):
                    loader.next_batch()
            assert caught.value.errno == errno.ELOOP and loader.damaged == 0
            for number in (1, 2, 3):
                (folder / f"kept-{number}").replace(folder / f"shard-{number:06d}.tar")
            loader.next_batch()


def test_a_read_that_fails_for_a_moment_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a newly opened file: the handle of one that a server has forgotten stays stale."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer.model")
    section = make_data(tmp_path / "tokenizer.model", write_source(tmp_path / "data", make_texts(80), 4, tokenizer))
    stale: dict[int, object] = {}
    failures = [errno.ESTALE, errno.EIO, 0, errno.ETIMEDOUT]

    def read(file: BinaryIO, row: np.void, number: int) -> bytes:
        assert id(file) not in stale or stale[id(file)] is not file, "a handle that failed is not used again"
        if error := failures.pop(0) if failures else 0:
            stale[id(file)] = file
            raise OSError(error, os.strerror(error), file.name)
        return read_document(file, row, number)

    with Loader(section, seed=1, seq_len=16, global_batch=4) as loader:
        expected = [loader.next_batch() for _ in range(3)]
    monkeypatch.setattr(stream, "read_document", read)
    monkeypatch.setattr(stream, "WAITS_S", (0.0, 0.0))
    with Loader(section, seed=1, seq_len=16, global_batch=4) as loader:
        assert all(bool((loader.next_batch() == batch).all()) for batch in expected)
        failures += [errno.EIO] * 3
        with pytest.raises(OSError, match=r"Input/output error: '.*shard-00000\d\.tar'"):
            for _ in range(200):
                loader.next_batch()
        assert loader.damaged == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[0].rpartition(": ")[2] for line in said] == [
        *map(os.strerror, (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EIO, errno.EIO))
    ]


def test_a_file_system_without_locks_is_said_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / "text.jsonl").write_text('{"text": "some words"}\n')
    monkeypatch.setattr(fcntl, "flock", flock)
    prepare(PrepareSettings(inputs=(str(tmp_path / "text.jsonl"),), output=tmp_path / "out", tokenizer=None))
    assert Manifest.open(tmp_path / "out").header.num_documents == 1
    assert "Function not implemented: nothing keeps a second run out of this folder" in capsys.readouterr().err


def test_a_short_read_is_no_damage(tmp_path: Path) -> None:
    """A network file system may give less than it was asked for; Linux gives 2 GiB at most."""

    class Slow(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7))

    folder = write_source(tmp_path / "source", make_texts(3), 1, make_tokenizer(tmp_path / "tokenizer.model"))
    row = Manifest.open(folder)[0]
    with Slow(str(folder / row.shard)) as slow, (folder / row.shard).open("rb") as fast:
        for number, entry in enumerate(open_index(folder, row)):
            assert read_document(slow, entry, number) == read_document(fast, entry, number)  # type: ignore[arg-type]


def test_a_document_that_no_tar_member_can_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_TEXT_BYTES", 10)
    problem = records.parse_text(b"twelve bytes", "book.txt", 12)
    assert str(problem) == "book.txt: too long document: 12 bytes of text, 10 at most: split it"


def test_a_file_whose_length_nobody_knows_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        exists = staticmethod(lambda _: True)
        info = staticmethod(lambda _: {"type": "file", "size": None})

    monkeypatch.setattr(inputs, "url_to_fs", lambda name: (Server(), name))
    with pytest.raises(ValueError, match=r"http://here/a\.jsonl: the server does not say how long it is"):
        documents.find_inputs(["http://here/a.jsonl"])
