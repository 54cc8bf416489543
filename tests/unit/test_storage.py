"""JSON from anywhere is a value or one line, however deep it is nested."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from pretrain.checkpoint.format import Contents, unseal
from pretrain.data.manifest import MANIFEST_NAME, Manifest
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.storage import is_there, names_in, parse_json, write_atomically

DEEP = "[" * 100_000


def test_values_are_those_of_json() -> None:
    assert parse_json('{"a": [1, null, "ä"]}') == {"a": [1, None, "ä"]} == parse_json('{"a": [1, null, "ä"]}'.encode())


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "{", b"\xff"], ids=["lists", "objects", "cut", "binary"])
def test_what_is_no_value_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (MANIFEST_NAME, lambda path: Manifest.open(path.parent)),
        ("tokenizer.json", lambda path: Tokenizer.load(str(path))),
        ("checkpoint.json", lambda path: unseal(path, Contents)),
        ("depth.jsonl", lambda path: JsonLines(path).read(EvaluationRow, strict=True)),
    ],
)
def test_readers_name_the_file(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / name
    path.write_text(DEEP)
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert name in message and len(message.splitlines()) <= 2 and len(message) < 500
    assert json.dumps(DEEP)[:50] not in message


def test_a_file_is_written_from_parts_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = []

    def parts() -> Iterator[bytes]:
        for number in range(3):
            seen.append(path.exists())
            yield bytes([number])

    write_atomically(path, parts())
    assert path.read_bytes() == b"\0\1\2" and seen == [False] * 3


def test_what_another_process_makes_between_two_looks_is_no_fault(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Runs of a sweep that begin together: one looks for their folder, another makes it, the first looks why."""
    run = tmp_path / "sweep" / "run"
    look = os.listdir

    def make_and_look(folder: Path) -> list[str]:
        try:
            return look(folder)
        except FileNotFoundError:
            run.parent.mkdir(exist_ok=True)
            raise

    monkeypatch.setattr(os, "listdir", make_and_look)
    assert not is_there(run) and run.parent.is_dir()
    run.parent.rmdir()
    assert names_in(run.parent) == []


def test_what_is_listed_and_not_found_is_a_fault(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    def not_found(path: Path, *_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    folder = tmp_path / "folder"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", not_found)
        with pytest.raises(OSError, match=f"^{folder}: No such file .*, though it is there: the storage failed$"):
            is_there(folder)
    monkeypatch.setattr(os, "listdir", not_found)
    with pytest.raises(OSError, match=f"^{folder}: .* though it is there"):
        names_in(folder)
