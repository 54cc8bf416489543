"""Shards: what stock readers see, what the index and the manifest promise, and how damage is named."""

import io
import json
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.compat import WebDataset

from pretrain.data.manifest import MANIFEST_NAME, Header, Manifest, ShardRow, write_manifest
from pretrain.data.shards import (
    INDEX_DTYPE,
    DamagedDocument,
    ShardWriter,
    check_index,
    encode_tokens,
    index_name,
    open_index,
    read_document,
    text_hash,
)
from pretrain.data.stream.framing import frame_document
from pretrain.data.tokenizers.sentencepiece import SentencePieceTokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train import train_tokenizer

TEXTS = ["one two", "three\n", "", "four five six · é"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return SentencePieceTokenizer(train_tokenizer(["one two three four five six seven · é"], vocab_size=290)[0])


def write_source(folder: Path, tokenizer: Tokenizer | None) -> ShardRow:
    """A source of one shard of TEXTS, as token ids or as text."""
    with ShardWriter(folder, "shard-000000.tar", "npy" if tokenizer else "txt") as shard:
        tokens = 0
        for text in TEXTS:
            ids = tokenizer.encode_batch([text])[0] if tokenizer else np.zeros(0)
            shard.add(
                encode_tokens(ids, tokenizer.vocab_size) if tokenizer else text.encode(), text_hash(text.encode())
            )
            tokens += len(ids)
        row = shard.close(tokens if tokenizer else None)
    write_manifest(folder, Header(kind="tokens" if tokenizer else "text"), [row])
    return row


@given(ids=st.lists(st.integers(0, 65535), max_size=300), vocab_size=st.sampled_from([300, 65536, 65537, 200_000]))
def test_token_payloads_are_what_numpy_saves(ids: list[int], vocab_size: int) -> None:
    saved = io.BytesIO()
    np.save(saved, np.array(ids, dtype="<u2" if vocab_size <= 65536 else "<u4"))
    assert encode_tokens(np.array(ids, dtype=np.int32), vocab_size) == saved.getvalue()


@given(sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=12))
def test_tars_are_what_tarfile_writes(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tar")
    expected = io.BytesIO()
    with (
        ShardWriter(folder, "s.tar", "txt") as shard,
        tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, size in enumerate(sizes):
            payload = bytes([number + 65]) * size
            shard.add(payload, 0)
            member = tarfile.TarInfo(f"{number:09d}.txt")
            member.size = size
            tar.addfile(member, io.BytesIO(payload))
        row = shard.close(None)
    written = (folder / "s.tar").read_bytes()
    assert written.rstrip(b"\0") == expected.getvalue().rstrip(b"\0")
    assert len(written) == row.bytes
    assert written.endswith(bytes(1024))


def test_webdataset_reads_the_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_source(tmp_path, tokenizer)
    samples = list(WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False))
    assert [tokenizer.decode(np.load(io.BytesIO(sample["npy"]))) for sample in samples] == TEXTS
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(len(TEXTS))]


def test_the_index_leads_to_every_document_of_tokens_and_of_its_text_twin(tmp_path: Path, tokenizer: Tokenizer) -> None:
    hashes = []
    for name, kind in (("tokens", tokenizer), ("text", None)):
        folder = tmp_path / name
        folder.mkdir()
        row = write_source(folder, kind)
        index = open_index(folder, row)
        assert (index.dtype, len(index)) == (INDEX_DTYPE, len(TEXTS))
        hashes.append(index["text_hash"].tolist())
        with (folder / row.shard).open("rb") as file:
            for number in (2, 0, 3, 1):
                payload = read_document(file, index[number], number)
                framed = frame_document(payload, index[number]["extension"], tokenizer).read(0, 10_000)
                assert framed.dtype == np.int32
                assert framed.tolist() == [tokenizer.bos_id, *tokenizer.encode(TEXTS[number]), tokenizer.eos_id]
    assert hashes[0] == hashes[1] == [text_hash(text.encode()) for text in TEXTS]


@pytest.mark.parametrize(
    ("damage", "reason"), [("flip", "its CRC-32 is not"), ("cut", r"only \d+ of \d+ bytes are there")]
)
def test_damage_is_named_with_shard_document_and_offset(tmp_path: Path, damage: str, reason: str) -> None:
    row = write_source(tmp_path, None)
    index = open_index(tmp_path, row)
    offset = int(index[3]["offset"])
    path = tmp_path / row.shard
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data if damage == "flip" else data[: offset + 2])
    with path.open("rb") as file:
        assert read_document(file, index[1], 1) == TEXTS[1].encode()
        with pytest.raises(
            DamagedDocument, match=rf"shard-000000\.tar: document 3 at byte {offset} is damaged: {reason}"
        ):
            read_document(file, index[3], 3)


@pytest.mark.parametrize(
    ("column", "value"), [("offset", 2**64 - 1), ("offset", 2**40), ("size", 2**64 - 1), ("size", 2**50)]
)
def test_an_index_row_that_points_nowhere_is_damage(
    tmp_path: Path, tokenizer: Tokenizer, column: str, value: int
) -> None:
    row = write_source(tmp_path, tokenizer)
    entry = open_index(tmp_path, row)[:1].copy()[0]
    entry[column] = value
    with (
        (tmp_path / row.shard).open("rb") as file,
        pytest.raises(DamagedDocument, match=r"only \d+ of \d+ bytes are there"),
    ):
        read_document(file, entry, 0)


def test_a_fingerprint_changes_with_any_row(tmp_path: Path) -> None:
    rows = some_rows(3)
    seen = set()
    for changed in (rows, rows[:2], [*rows[:2], replace(rows[2], sha256="2" * 64)]):
        write_manifest(tmp_path, Header(kind="tokens"), changed)
        seen.add(Manifest.open(tmp_path).fingerprint)
    assert len(seen) == 3


def test_a_failed_shard_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path, "s.tar", "txt") as shard:
        shard.add(b"x", 0)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def some_rows(count: int) -> list[ShardRow]:
    return [
        ShardRow(
            shard=f"shard-{i:06d}.tar",
            documents=i,
            tokens=i * i,
            bytes=10**i % 97,
            sha256="0" * 64,
            index_sha256="1" * 64,
        )
        for i in range(count)
    ]


def test_the_manifest_gives_back_header_and_rows(tmp_path: Path) -> None:
    rows = some_rows(13)
    header = Header(kind="tokens", tokenizer_sha256="ab", vocab_size=9, problems={"broken JSON": 2})
    written = write_manifest(tmp_path, header, iter(rows))
    manifest = Manifest.open(tmp_path)
    assert manifest.header == written
    assert (written.num_shards, written.num_documents, written.num_tokens) == (
        13,
        sum(range(13)),
        sum(i * i for i in range(13)),
    )
    assert [manifest[i] for i in range(len(manifest))] == rows
    lines = (tmp_path / MANIFEST_NAME).read_bytes().splitlines(keepends=True)
    assert {len(line) for line in lines[1:]} == {written.row_bytes}
    assert [json.loads(line)["shard"] for line in lines[1:]] == [row.shard for row in rows]
    with pytest.raises(IndexError):
        manifest[13]


def test_opening_a_manifest_costs_the_same_for_any_number_of_shards(tmp_path: Path) -> None:
    peaks = []
    for count in (10, 5000):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_manifest(folder, Header(kind="tokens"), some_rows(count))
        tracemalloc.start()
        assert Manifest.open(folder)[count - 1].documents == count - 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no manifest\.jsonl; make shards there with tools/prepare_data\.py"),
        (b"", "not a looped-shards manifest"),
        (b'{"format": "other", "version": 1}\n', "format 'other' version 1"),
        (
            b'{"format": "looped-shards", "version": 1, "kind": "text", "num_shards": 3, "row_bytes": 10}\n',
            "do not hold 3 rows",
        ),
        (b'{"format": "looped-shards", "version": 1, "kind": "text", "colour": 3}\n', "colour"),
    ],
)
def test_what_is_not_a_manifest_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Manifest.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_row_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    row = some_rows(2)[1]
    write_manifest(tmp_path, Header(kind="tokens"), [ShardRow(**{**vars(row), "shard": "../secret.tar"})])
    with pytest.raises(ValueError, match="not a plain file name"):
        Manifest.open(tmp_path)[0]


def test_an_index_must_be_that_of_its_shard(tmp_path: Path) -> None:
    row = write_source(tmp_path, None)
    path = tmp_path / index_name(row.shard)
    np.save(path, np.zeros(2, dtype=INDEX_DTYPE))
    with pytest.raises(ValueError, match=r"index\.npy: not an index of 4 documents"):
        open_index(tmp_path, row)
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"index\.npy: not a readable index"):
        open_index(tmp_path, row)
    path.unlink()
    for look in (open_index, check_index):
        with pytest.raises(ValueError, match=r"index\.npy: the index is missing"):
            look(tmp_path, row)
    (tmp_path / MANIFEST_NAME).unlink()
    for look in (open_index, check_index):
        with pytest.raises(FileNotFoundError):  # a folder without a manifest is a file system that is not mounted
            look(tmp_path, row)
