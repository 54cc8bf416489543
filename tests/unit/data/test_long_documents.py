"""Long documents: streams share out their pieces, exactly, on any layout and through resumptions; all else stays."""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.data import DataSection
from pretrain.data.manifest import Manifest
from pretrain.data.shards import index_name
from pretrain.data.stream.cursor import Cursor, Split
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.long_documents import MOST_DOCUMENTS, PIECE_BYTES, DocumentPiece, find_long, text_range
from pretrain.data.stream.stream import Candidate, Source, StreamReader, StreamSpec
from pretrain.data.tokenizers.tokenizer import Tokenizer
from tests.support.corpus import make_data, make_texts, write_source
from tests.support.loader_child import join_ranks

SYMBOLS = "symbols:" + "".join(map(chr, range(97, 123))) + "0123456789 .\n"
TOKENIZER = Tokenizer.load(SYMBOLS)
SEQ_LEN = 32


def make_long(characters: int, seed: int = 0) -> str:
    """A text of lines of random letters: no two places in it look alike."""
    letters = np.random.default_rng(seed).integers(97, 123, characters).astype(np.uint8)
    letters[:: 1 + seed % 7 + 60] = ord("\n")
    return letters.tobytes().decode()


TEXTS = {
    "one": [make_long(200_000)],
    "twelve": [make_long(20_000 + 1_000 * number, seed=number) for number in range(12)],
    "one among many": [*make_texts(400, max_words=8), make_long(300_000)],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("long")
    kinds = {"tokens": False, "text": True}
    shards = {"one": 1, "twelve": 2, "one among many": 3}
    return {
        f"{name}, {kind}": write_source(root / f"{name} {kind}", texts, shards[name], TOKENIZER, as_text=as_text)
        for name, texts in TEXTS.items()
        for kind, as_text in kinds.items()
    }


NAMES = [f"{name}, {kind}" for name in TEXTS for kind in ("tokens", "text")]


def make_spec(folder: Path, *, split: Split = "train", seed: int = 1, **fields: Any) -> StreamSpec:
    data = make_data(Path("unused"), folder, **({"num_streams": 64} | fields)).model_copy(update={"tokenizer": SYMBOLS})
    return StreamSpec(data=data, split=split, seed=seed, seq_len=SEQ_LEN)


def open_source(spec: StreamSpec) -> Source:
    return Source(spec, 0, Path(str(spec.data.sources[0].path)), TOKENIZER)


def read(spec: StreamSpec, samples: int) -> np.ndarray:
    return StreamReader(spec, np.zeros(spec.state_shape, dtype=np.int64)).read(np.arange(samples))[1][:, 0]


def served(source: Source, epoch: int) -> Iterator[tuple[int, Candidate]]:
    """Stream and candidate of all that an epoch serves."""
    for stream in range(source.spec.data.num_streams):
        for unit in range(source.units_per_stream):
            for candidate in source.visit(stream, Cursor(epoch=epoch, unit=unit)):
                yield stream, candidate


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(num_streams=st.sampled_from([1, 2, 7, 16, 64]), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
def test_an_epoch_serves_every_token_of_the_split_once(
    folders: dict[str, Path], name: str, num_streams: int, seed: int, epoch: int
) -> None:
    found: list[str] = []
    for split in ("train", "validation"):
        spec = make_spec(folders[name], split=split, seed=seed, num_streams=num_streams, validation_fraction=0.3)
        source = open_source(spec)
        parts: dict[tuple[str, int], dict[DocumentPiece, list[int]]] = {}
        for _, candidate in served(source, epoch):
            document = source.read(candidate)
            assert document is not None
            pieces = parts.setdefault((candidate.shard.shard, candidate.number), {})
            assert candidate.piece not in pieces
            pieces[candidate.piece] = document.read(0, 10**7).tolist()
        for pieces in parts.values():
            (count,) = {piece.total for piece in pieces}
            assert len(pieces) == count
            in_order = [tokens for _, tokens in sorted(pieces.items()) if tokens]
            assert all(tokens[0] == TOKENIZER.bos_id and TOKENIZER.bos_id not in tokens[1:] for tokens in in_order)
            assert [TOKENIZER.eos_id in tokens for tokens in in_order] == [False] * (len(in_order) - 1) + [True]
            found.append(TOKENIZER.decode(token for tokens in in_order for token in tokens))
    assert sorted(found) == sorted(TEXTS[name.partition(",")[0]])


@pytest.mark.parametrize("name", NAMES)
def test_streams_do_not_read_the_same_at_once(folders: dict[str, Path], name: str) -> None:
    whole, cut = (
        len(np.unique(read(make_spec(folders[name], cut_documents=cut), 64 * 32), axis=0)) for cut in (False, True)
    )
    assert cut == 64 * 32
    assert whole < (cut if "many" in name else cut / 2)  # short ones are packed anew in every epoch


def test_a_stream_gets_its_share_and_another_piece_in_every_epoch(folders: dict[str, Path]) -> None:
    source = open_source(make_spec(folders["one, tokens"]))
    pieces = [{stream: candidate.piece.number for stream, candidate in served(source, epoch)} for epoch in range(3)]
    num_pieces = (128 + 2 * 200_000) // PIECE_BYTES
    assert num_pieces > 64
    assert all(sorted(each.values()) == list(range(64)) for each in pieces)
    assert pieces[0] != pieces[1] != pieces[2]


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    layouts=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 40)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_no_layout_and_no_resumption_changes_the_batches(
    folders: dict[str, Path], name: str, layouts: list[tuple[int, int]], seed: int
) -> None:
    data = make_spec(folders[name], num_streams=8).data
    total = sum(steps for _, steps in layouts)
    expected = list(batches(data, seed, [(1, total)]))
    assert all(map(np.array_equal, batches(data, seed, layouts), expected))


def batches(data: DataSection, seed: int, layouts: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Global batches of a run that is resumed on so many ranks for so many steps, in turn."""
    states, next_sample = None, 0
    for num_ranks, steps in layouts:
        sizes = {"seed": seed, "seq_len": SEQ_LEN, "global_batch": 24}
        loaders = [Loader(data, rank=rank, num_ranks=num_ranks, **sizes) for rank in range(num_ranks)]
        if states is not None:
            for loader in loaders:
                loader.load_state(states, next_sample)
        for _ in range(steps):
            yield join_ranks([loader.next_batch() for loader in loaders])
        states, next_sample = sum(loader.state() for loader in loaders), loaders[0].next_sample
        for loader in loaders:
            loader.close()


def test_workers_read_the_same(folders: dict[str, Path]) -> None:
    data = make_spec(folders["twelve, text"], num_streams=8).data
    with_workers = data.model_copy(update={"num_workers": 2})
    expected = batches(data, 0, [(1, 6)])
    assert all(map(np.array_equal, batches(with_workers, 0, [(2, 3), (1, 3)]), expected))


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \n"), max_size=80) | st.text(max_size=30), st.integers(1, 9))
def test_pieces_of_a_text_are_the_text_and_cut_no_word(text: str, count: int) -> None:
    ranges = [text_range(DocumentPiece(number, count), text) for number in range(count)]
    assert ranges[0][0] == 0 and ranges[-1][1] == len(text)
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    for start, stop in ranges:
        assert start <= stop
        if 0 < start < len(text):
            assert text[start].isspace() or text[start - 1] == "\n"


class TestOrdinaryDocuments:
    """Data without long documents."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_source(tmp_path / "ordinary", make_texts(300, max_words=40), 3, TOKENIZER)

    def test_their_order_is_that_of_earlier_versions(self, folder: Path) -> None:
        for cut in (True, False):
            digest = hashlib.sha256()
            for split in ("train", "validation"):
                spec = make_spec(folder, split=split, cut_documents=cut, validation_fraction=0.3)
                digest.update(read(spec, 500).tobytes())
            assert digest.hexdigest() == "edca188b121fb19363267713a6554fb9b7b178aa7bd46c424ebb24ccff17edaf"

    def test_the_source_is_the_same(self, folder: Path) -> None:
        assert open_source(make_spec(folder)).fingerprint == Manifest.open(folder).fingerprint

    def test_a_single_stream_reads_whole_documents(self, folders: dict[str, Path]) -> None:
        assert find_long(Manifest.open(folders["one, text"]), 1) == ()

    def test_few_short_documents_are_not_cut(self, tmp_path: Path) -> None:
        folder = write_source(tmp_path / "short", [make_long(PIECE_BYTES - 100)], 1, TOKENIZER)
        assert find_long(Manifest.open(folder), 64) == ()

    def test_in_a_large_source_indexes_are_not_looked_through(self, folders: dict[str, Path]) -> None:
        manifest = Manifest.open(folders["one, tokens"])
        assert len(find_long(manifest, 64)) == 1
        object.__setattr__(manifest.header, "num_documents", MOST_DOCUMENTS + 1)
        assert find_long(manifest, 64) == ()


def test_a_shard_whose_index_is_lost_has_no_long_documents(tmp_path: Path) -> None:
    folder = write_source(tmp_path / "lost", TEXTS["twelve"], 2, TOKENIZER)
    (folder / index_name("shard-000000.tar")).unlink()
    spec = make_spec(folder, on_damage="skip")
    assert len(find_long(Manifest.open(folder), 64)) == 6
    assert len(np.unique(read(spec, 64), axis=0)) == 64
    with pytest.raises(ValueError, match=r"shard-000000\.tar: document \d .* index is missing"):
        read(make_spec(folder), 640)


@pytest.mark.parametrize("cut", [False, True])
def test_a_run_goes_on_in_the_order_that_it_began_in(folders: dict[str, Path], cut: bool) -> None:
    sizes: dict[str, Any] = {"seed": 0, "seq_len": SEQ_LEN, "global_batch": 4}
    before, now = (
        Loader(make_spec(folders["one, tokens"], cut_documents=value).data, **sizes) for value in (cut, not cut)
    )
    before.require_sources(before.fingerprints)
    with pytest.raises(ValueError, match=rf"set data.cut_documents={str(cut).lower()} to go on"):
        now.require_sources(before.fingerprints)
    # what a version without the key wrote
    assert cut or before.fingerprints == (Manifest.open(folders["one, tokens"]).fingerprint,)
