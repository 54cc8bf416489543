"""Walking and packing of one process: epochs, cursors, the split, text shards, damage."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.config.data import DataSection, SourceSection
from pretrain.data.manifest import Manifest
from pretrain.data.shards import index_name, open_index
from pretrain.data.stream import stream
from pretrain.data.stream.cursor import FIELDS, Cursor
from pretrain.data.stream.stream import Source, StreamReader, StreamSpec, Walker
from pretrain.data.tokenizers.tokenizer import Tokenizer
from tests.support.corpus import make_texts, make_tokenizer, write_source

NUM_STREAMS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream")


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Tokenizer:
    return make_tokenizer(root / "tokenizer.model")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return make_texts(150, max_words=30)


@pytest.fixture(scope="module")
def source(root: Path, tokenizer: Tokenizer, texts: list[str]) -> Path:
    return write_source(root / "tokens", texts, 3, tokenizer)


def make_spec(
    root: Path, *folders: Path, split: Any = "train", seed: int = 1, seq_len: int = 40, **fields: Any
) -> StreamSpec:
    values = {"validation_fraction": 0.0, "num_streams": NUM_STREAMS, "tokenizer": str(root / "tokenizer.model")}
    data = DataSection(sources=tuple(SourceSection(path=str(folder)) for folder in folders), **(values | fields))
    return StreamSpec(data=data, split=split, seed=seed, seq_len=seq_len)


def fresh(spec: StreamSpec) -> np.ndarray:
    return np.zeros(spec.state_shape, dtype=np.int64)


def open_source(spec: StreamSpec, tokenizer: Tokenizer) -> Source:
    return Source(spec, 0, Path(str(spec.data.sources[0].path)), tokenizer)


def read(spec: StreamSpec, samples: int) -> tuple[np.ndarray, np.ndarray]:
    return StreamReader(spec, fresh(spec)).read(np.arange(samples))


def documents_of(walker: Walker, tokenizer: Tokenizer, last_epoch: int) -> Iterator[str]:
    """Texts of the whole documents that a walker packs, until it is past `last_epoch`."""
    flow: list[int] = []
    while walker.cursor.epoch <= last_epoch:
        sample = walker.next_tokens()
        assert not flow or flow[-1] == sample[0]
        flow += sample[1 if flow else 0 :].tolist()
    borders = [place for place, token in enumerate(flow) if token == tokenizer.bos_id]
    for start, stop in pairwise(borders):
        assert flow[stop - 1] == tokenizer.eos_id
        yield tokenizer.decode(flow[start:stop])


@pytest.mark.parametrize(("split", "fraction"), [("train", 0.0), ("train", 0.3), ("validation", 0.3)])
def test_every_epoch_serves_every_document_of_the_split_once(
    root: Path, source: Path, tokenizer: Tokenizer, texts: list[str], split: str, fraction: float
) -> None:
    spec = make_spec(root, source, split=split, validation_fraction=fraction)
    reader = open_source(spec, tokenizer)
    per_epoch: list[Counter[str]] = [Counter(), Counter()]
    orders = []
    for number in range(NUM_STREAMS):
        for epoch, served in enumerate(per_epoch):
            walker = Walker(reader, number, Cursor(epoch=epoch))
            documents = list(documents_of(walker, tokenizer, epoch))
            # The last sample reaches into the next epoch: count what this epoch's units hold.
            held = sum(
                len(list(reader.candidates(reader.unit(number, epoch, unit), epoch, 0)))
                for unit in range(reader.units_per_stream)
            )
            assert len(documents) >= held
            served.update(documents[:held])
            orders.append(documents[:held])
    assert orders[0] != orders[1]
    assert per_epoch[0] == per_epoch[1]
    assert set(per_epoch[0].values()) == {1}
    other = make_spec(root, source, split="validation" if split == "train" else "train", validation_fraction=fraction)
    held_back = (
        0
        if fraction == 0
        else sum(len(list(open_source(other, tokenizer).candidates(unit, 0, 0))) for unit in whole_shards(source))
    )
    assert len(per_epoch[0]) + held_back == len(texts)
    assert set(per_epoch[0]) <= set(texts)


def whole_shards(folder: Path) -> list[stream.order.StreamUnit]:
    return [stream.order.StreamUnit(number, 0, 1) for number in range(len(Manifest.open(folder)))]


@given(st.integers(1, 90), st.integers(1, 20), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cursor_is_all_that_is_needed_to_go_on(root: Path, source: Path, seq_len: int, stop: int, seed: int) -> None:
    spec = make_spec(root, source, seq_len=seq_len, seed=seed)
    through = StreamReader(spec, fresh(spec))
    _, expected = through.read(np.arange(stop + 12))
    states = fresh(spec)
    records, first = StreamReader(spec, states).read(np.arange(stop))
    states[records[:, 0], records[:, 1]] = records[:, 2:]
    _, second = StreamReader(spec, states).read(np.arange(stop, stop + 12))
    assert np.array_equal(np.concatenate([first, second]), expected)


def test_raw_text_gives_the_samples_of_its_tokenised_twin(
    root: Path, source: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    twin = write_source(root / "text", texts, 3, tokenizer, as_text=True)
    for split in ("train", "validation"):
        made = [read(make_spec(root, folder, split=split, validation_fraction=0.2), 60) for folder in (source, twin)]
        assert np.array_equal(made[0][0], made[1][0])
        assert np.array_equal(made[0][1], made[1][1])


def test_a_text_is_on_the_same_side_of_the_split_wherever_it_lies(
    root: Path, source: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    other = write_source(root / "reversed", texts[::-1], 5, tokenizer, as_text=True)
    sides = []
    for folder in (source, other):
        spec = make_spec(root, folder, split="validation", validation_fraction=0.2)
        reader = open_source(spec, tokenizer)
        found = [candidate for unit in whole_shards(folder) for candidate in reader.candidates(unit, 0, 0)]
        sides.append({reader.read(candidate).read(0, 1_000).tobytes() for candidate in found})  # pyright: ignore[reportOptionalMemberAccess]
    assert sides[0] == sides[1] and 0 < len(sides[0]) < len(texts)


def test_a_split_without_documents_is_an_error_that_names_the_source(root: Path, source: Path) -> None:
    for split, fraction in (("validation", 0.0), ("validation", 1e-9), ("train", 1 - 1e-9)):
        spec = make_spec(root, source, split=split, validation_fraction=fraction)
        with pytest.raises(
            ValueError, match=rf"{source}.*150 documents.*{split} split.*validation_fraction={fraction}"
        ):
            StreamReader(spec, fresh(spec)).require_documents()


def test_a_row_of_the_state_names_its_fields() -> None:
    cursor = Cursor(epoch=1, unit=2, document=3, offset=4, damaged=5)
    assert dict(zip(FIELDS, cursor.row(), strict=True)) == asdict(cursor)


def test_few_documents_and_many_streams(root: Path, tokenizer: Tokenizer) -> None:
    folder = write_source(root / "two", make_texts(2), 1, tokenizer)
    _, tokens = read(make_spec(root, folder, num_streams=16), 64)
    assert len(np.unique(tokens[::16], axis=0)) > 1


def test_tokens_of_another_tokenizer_are_refused(root: Path, source: Path, tokenizer: Tokenizer) -> None:
    other = root / "other.model"
    # an unknown field: same pieces, other file
    other.write_bytes((root / "tokenizer.model").read_bytes() + b"\xf2\x3f\x00")
    spec = make_spec(root, source, tokenizer=str(other))
    with pytest.raises(
        ValueError, match=f"another tokenizer.*{tokenizer.sha256[:12]}.*{Tokenizer.load(other).sha256[:12]}"
    ):
        StreamReader(spec, fresh(spec))


@pytest.mark.parametrize("saved", [Cursor(unit=999), Cursor(document=999, offset=1), Cursor(offset=10**6)])
def test_a_cursor_of_other_data_is_an_error(root: Path, source: Path, saved: Cursor) -> None:
    spec = make_spec(root, source)
    states = fresh(spec)
    states[0, 0] = saved.row()
    with pytest.raises(ValueError, match="saved data state does not fit"):
        StreamReader(spec, states).read(np.array([0]))


class TestDamage:
    """A flipped byte, a cut tar, a lost tar, a lost index: named and stopped at, or named, counted and skipped."""

    @pytest.fixture
    def folder(self, tmp_path: Path, tokenizer: Tokenizer, texts: list[str]) -> Path:
        return write_source(tmp_path / "damaged", texts, 3, tokenizer)

    def damage(self, folder: Path, kind: str) -> int:
        """Damage shard 1; return how many documents that costs."""
        shard = Manifest.open(folder)[1]
        index, path = np.array(open_index(folder, shard)), folder / shard.shard
        if kind == "flipped":
            data = bytearray(path.read_bytes())
            data[int(index[7]["offset"]) + int(index[7]["size"]) - 1] ^= 1
            path.write_bytes(data)
            return 1
        if kind == "cut":
            path.write_bytes(path.read_bytes()[: int(index[30]["offset"]) + 1])
            return shard.documents - 30
        if kind == "lost":
            path.unlink()
        else:
            path.with_name(index_name(shard.shard)).write_bytes(b"")
        return shard.documents

    @pytest.mark.parametrize("kind", ["flipped", "cut", "lost", "index"])
    def test_stop_names_shard_and_document(self, root: Path, folder: Path, kind: str) -> None:
        self.damage(folder, kind)
        with pytest.raises(ValueError, match=r"shard-000001\.tar: document \d+ .*data\.on_damage=skip") as caught:
            read(make_spec(root, folder), 400)
        assert "\n" not in str(caught.value)
        if kind == "flipped":
            assert "document 7 at byte" in str(caught.value)

    @pytest.mark.parametrize("kind", ["flipped", "cut", "lost", "index"])
    def test_skip_counts_names_once_and_serves_the_rest(
        self, root: Path, folder: Path, tokenizer: Tokenizer, kind: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lost = self.damage(folder, kind)
        reader = open_source(make_spec(root, folder, on_damage="skip"), tokenizer)
        served: Counter[str] = Counter()
        damaged = 0
        for number in range(NUM_STREAMS):
            walker = Walker(reader, number, Cursor())
            documents = list(documents_of(walker, tokenizer, 1))
            served.update(documents)
            damaged += walker.cursor.damaged
        assert damaged >= 2 * lost  # both epochs, and what a stream's last sample met of the third
        assert damaged < 3 * lost
        assert len(served) == 150 - lost
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == 1 and "shard-000001.tar: document" in warnings[0]

    def test_a_document_lost_since_the_state_was_saved_is_skipped(self, root: Path, folder: Path) -> None:
        spec = make_spec(root, folder, on_damage="skip")
        states = fresh(spec)
        records, _ = StreamReader(spec, states).read(np.arange(8))
        states[records[:, 0], records[:, 1]] = records[:, 2:]
        for number in range(2):
            (folder / f"shard-{number:06d}.tar").unlink()
        records, _ = StreamReader(spec, states).read(np.arange(8, 40))
        assert records[:, 2 + FIELDS.index("damaged")].max() > 0

    def test_an_index_that_is_not_the_one_written_is_noticed(self, root: Path, folder: Path) -> None:
        """A flipped bit in the hash of a text would move the document to the other side of the split."""
        shard = Manifest.open(folder)[1]
        path = folder / index_name(shard.shard)
        content = bytearray(path.read_bytes())
        content[128 + 16] ^= 1  # after the header of .npy, offset and size
        path.write_bytes(content)
        with pytest.raises(ValueError, match="the shard's index is missing or damaged"):
            read(make_spec(root, folder), 400)

    def test_rows_that_are_not_those_written_are_noticed(self, folder: Path) -> None:
        manifest = Manifest.open(folder)
        manifest.check_rows()
        path = folder / "manifest.jsonl"
        path.write_bytes(path.read_bytes()[:-5] + b"1   \n")
        with pytest.raises(ValueError, match="its rows are not those that were written"):
            Manifest.open(folder).check_rows()

    def test_a_source_lost_as_a_whole_is_an_error_under_skip_too(self, root: Path, folder: Path) -> None:
        spec = make_spec(root, folder, on_damage="skip")
        reader = StreamReader(spec, fresh(spec))
        reader.read(np.arange(4))
        reader.close()
        for path in folder.glob("*.tar"):
            path.unlink()
        with pytest.raises(ValueError, match="none of its 150 documents can be served"):
            reader.read(np.arange(4, 400))


def test_a_process_holds_a_bounded_number_of_files_open(root: Path, tokenizer: Tokenizer) -> None:
    folder = write_source(root / "many", make_texts(200, max_words=3), 100, tokenizer)
    spec = make_spec(root, folder, num_streams=80)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = StreamReader(spec, fresh(spec))
    reader.read(np.arange(400))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= stream.OPEN_FILES
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("choice", [{"split": "test"}, {"on_damage": "ignore"}])
def test_an_unknown_choice_is_refused_and_not_taken_for_the_other_one(root: Path, choice: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(choice))):
        make_spec(root, root / "tokens", **choice)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_how_many_documents_are_looked_up_at_once_changes_no_sample(
    root: Path, source: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an index is compared with its hash once where little of it is read, as a visit would hash all of it for a
    document or none."""

    def samples(fraction: float, block: int) -> tuple[np.ndarray, int]:
        hashed: list[str] = []
        monkeypatch.setattr(stream, "check_index", lambda _, row: hashed.append(row.shard))
        monkeypatch.setattr(stream, "BLOCK", block)
        spec = make_spec(root, source, split=split, validation_fraction=fraction)
        return StreamReader(spec, fresh(spec)).read(np.arange(24))[1], len(hashed)

    for fraction in (0.04, 0.5):
        (one, _), (several, num_hashed) = samples(fraction, 1), samples(fraction, 256)
        assert np.array_equal(one, several)
        assert split == "train" or num_hashed <= 3  # shards
