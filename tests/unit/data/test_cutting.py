"""Documents cut at blank lines and every so many tokens: nothing is lost, and neither workers, parts nor restarts
show."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.claim import Part
from pretrain.data.prepare.cutting import cut_text
from pretrain.data.prepare.prepare import PrepareSettings, merge_parts, prepare, prepare_part
from pretrain.data.prepare.records import Document
from pretrain.data.shards import open_index, read_document, text_hash
from pretrain.data.stream.framing import frame_document
from pretrain.data.tokenizers.tokenizer import Tokenizer
from tests.support.corpus import make_tokenizer
from tests.support.killing import killed_at_write
from tools import prepare_data

SPEECHES = [f"Speaker {number % 5}:\n  line {number}\nand " + "on " * (number % 40) + "." for number in range(300)]
PLAY = "\n" + "".join(speech + "\n \t\n\n"[: 2 + number % 3] + "\n" for number, speech in enumerate(SPEECHES))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    make_tokenizer(path)
    return path


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A play in one file, and a text beside it; several units."""
    monkeypatch.setattr("pretrain.data.prepare.prepare.MIN_UNIT_BYTES", 300)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "play.txt").write_text(PLAY)
    (tmp_path / "in" / "more.jsonl").write_text(json.dumps({"text": "one\r\n\r\ntwo"}) + "\n")
    return tmp_path / "in"


def settings(play: Path, output: Path, tokenizer: Path | None, **changes: Any) -> PrepareSettings:
    values: dict[str, Any] = {"num_workers": 0, "split_documents": "blank-lines"} | changes
    return PrepareSettings(inputs=(f"{play}/*",), output=output, tokenizer=tokenizer, **values)


def documents(folder: Path) -> list[tuple[bytes, int, int]]:
    """Payload, kind and hash of all documents of a source."""
    manifest, found = Manifest.open(folder), []
    for shard in map(manifest.__getitem__, range(len(manifest))):
        with (folder / shard.shard).open("rb") as file:
            for place, row in enumerate(open_index(folder, shard)):
                found.append((read_document(file, row, place), int(row["extension"]), int(row["text_hash"])))
    return found


def ids_of(folder: Path, tokenizer: Tokenizer) -> list[list[int]]:
    framed = [frame_document(payload, kind, tokenizer) for payload, kind, _ in documents(folder)]
    return [each.read(1, 100_000).tolist()[:-1] for each in framed]


def test_a_play_becomes_its_speeches(tmp_path: Path, play: Path, tokenizer: Path) -> None:
    result = prepare(settings(play, tmp_path / "out", None))
    found = documents(tmp_path / "out")
    assert [payload.decode() for payload, _, _ in found] == ["one", "two", *SPEECHES]
    assert [each for _, _, each in found] == [text_hash(payload) for payload, _, _ in found]
    assert (result.header.num_documents, result.num_texts, result.header.problems) == (302, 2, {})
    prepare(settings(play, tmp_path / "ids", tokenizer))
    loaded = Tokenizer.load(tokenizer)
    assert ids_of(tmp_path / "ids", loaded) == [loaded.encode(text) for text in ["one", "two", *SPEECHES]]


@given(st.text(alphabet="ab \t\r\n\x0c\u2028ä", max_size=60))
def test_no_character_but_white_space_is_lost(text: str) -> None:
    parts = [part.text for part in cut_text(Document(text, text.encode(), 1), "blank-lines")]
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part.strip() and not part.endswith("\n") for part in parts)
    assert not any(line.isspace() or not line for part in parts for line in part.split("\n"))


@pytest.mark.parametrize("most", [1, 7, 64, 10**6])
def test_a_long_document_is_cut_every_so_many_tokens(tmp_path: Path, play: Path, tokenizer: Path, most: int) -> None:
    loaded = Tokenizer.load(tokenizer)
    texts = ["one\r\n\r\ntwo", PLAY]
    prepare(settings(play, tmp_path / "out", tokenizer, split_documents=None, max_document_tokens=most))
    found = ids_of(tmp_path / "out", loaded)
    wanted = [ids[start : start + most] for ids in map(loaded.encode, texts) for start in range(0, len(ids), most)]
    assert found == wanted
    hashes = [each for _, _, each in documents(tmp_path / "out")]
    assert (hashes == [text_hash(text.encode()) for text in texts]) == (most == 10**6)
    assert len(set(hashes)) > 0.9 * len({tuple(ids) for ids in found})


def test_speeches_that_are_too_long_are_cut_too(tmp_path: Path, play: Path, tokenizer: Path) -> None:
    loaded = Tokenizer.load(tokenizer)
    prepare(settings(play, tmp_path / "out", tokenizer, max_document_tokens=20))
    speeches = [loaded.encode(text) for text in ["one", "two", *SPEECHES]]
    assert ids_of(tmp_path / "out", loaded) == [
        ids[start : start + 20] for ids in speeches for start in range(0, len(ids), 20)
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_workers_parts_and_restarts_do_not_show(tmp_path: Path, play: Path, tokenizer: Path) -> None:
    for number in range(4):  # more units
        (play / f"play{number}.txt").write_text(PLAY[number:])
    cut = {"max_document_tokens": 30, "shard_documents": 100}
    whole = prepare(settings(play, tmp_path / "whole", tokenizer, **cut))
    assert whole.num_texts == 6 and whole.header.num_documents > 1500
    assert prepare(settings(play, tmp_path / "workers", tokenizer, num_workers=2, **cut)).num_texts == 6
    parts = settings(play, tmp_path / "parts", tokenizer, **cut)
    for number in (3, 1, 2):
        prepare_part(parts, Part(number, 3))
    assert merge_parts(parts, 3).num_texts == 6
    killed = settings(play, tmp_path / "killed", tokenizer, **cut)
    assert killed_at_write(9, lambda: prepare(killed))
    assert prepare(killed).num_texts == 6
    for name in ("workers", "parts", "killed"):
        assert files(tmp_path / name) == files(tmp_path / "whole")


def test_another_cut_is_another_folder(tmp_path: Path, play: Path, tokenizer: Path) -> None:
    first = settings(play, tmp_path / "out", tokenizer)
    prepare(first)
    assert prepare(first).num_texts is None
    for changes in ({"split_documents": None}, {"max_document_tokens": 5}):
        with pytest.raises(ValueError, match=r"was prepared with .*; delete it or name a new folder"):
            prepare(settings(play, tmp_path / "out", tokenizer, **changes))


def test_the_tool_says_what_was_cut(
    tmp_path: Path, play: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input", f"{play}/*", "--output", f"{tmp_path}/out", "--workers", "0", "--keep-text"]
    monkeypatch.setattr("sys.argv", ["prepare_data.py", *options, "--split-documents", "blank-lines"])
    assert prepare_data.main() == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/out: 302 documents cut from 2 texts, text, ")
    monkeypatch.setattr("sys.argv", ["prepare_data.py", *options, "--max-document-tokens", "9"])
    assert prepare_data.main() == 2
    assert capsys.readouterr().err == (
        "error: max_document_tokens counts tokens, and the text is kept; text is cut by split_documents\n"
    )
