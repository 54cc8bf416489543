"""Walking and packing: the samples of a set of streams, each read from where its cursor stands.

One walker per (stream, source). Its cursor names a document of the seeded order (`pretrain/data/stream/order.py`) and a
token in it; a sample is the next seq_len + 1 tokens of the documents laid end to end, the last one only as a label: the
next sample begins with it, so every token is predicted once.

1. Take the documents of the current unit in blocks of their permuted order and keep those of the split.
2. Read, check and frame the next one (`pretrain/data/stream/framing.py`); text is tokenised as it is reached.
3. Copy until the sample is full; leave the cursor on the last token copied.

The cursor is the whole state: resuming reads one document again (text up to the cursor) and continues. A walker
keeps one document and one block of index rows in memory, all walkers together a bounded number of open files, whatever
the number of shards.
"""

import math
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pretrain.config.data import DataSection
from pretrain.data.manifest import Manifest, ShardRow
from pretrain.data.mixture import Mixture
from pretrain.data.shards import DamagedDocument, check_index, open_index, read_document, require_lost
from pretrain.data.stream import order
from pretrain.data.stream.cursor import FIELDS, Cursor, Split
from pretrain.data.stream.framing import WHOLE, FramedDocument, frame_document
from pretrain.data.stream.labels import label_text
from pretrain.data.stream.long_documents import DocumentPiece, cut_fingerprint, find_long
from pretrain.data.stream.task_source import TaskSource, TaskWalker
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.schema.section import Section
from pretrain.storage import PASSING, WAITS_S

BLOCK, LARGEST_BLOCK = 256, 2**16
"""Documents whose place and split are looked up at once: of a split with few of them, as many as have one on average,
so that a start does not take minutes to find its validation sequences."""
OPEN_FILES = 32
"""Shard files that a process holds open per source."""


class StreamSpec(Section):
    """All that decides which tokens sample g holds, and how to read them."""

    data: DataSection
    split: Split
    """Which documents are served."""
    seed: int
    """Seed of every permutation and draw."""
    seq_len: int
    """Tokens of a sample."""

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Shape of the cursors of all streams: [num_streams, num_sources, len(FIELDS)]."""
        return self.data.num_streams, len(self.data.sources), len(FIELDS)


class Candidate(NamedTuple):
    """A document of the split, or a piece of one, not yet read."""

    shard: ShardRow
    place: int
    """Position in the unit's permutation; of a piece, among those that the stream is dealt."""
    number: int
    """Position in its shard."""
    index_row: np.void | None
    """Its row of the shard's index; None if that cannot be read."""
    piece: DocumentPiece = WHOLE
    """What of it is read."""


class DocumentRead(NamedTuple):
    """A document, or a piece of one, that was read, as often as it is listed."""

    folder: str
    shard: str
    number: int
    piece: int


class Source:
    """One shard folder, seen as documents in the order of the streams."""

    def __init__(self, spec: StreamSpec, number: int, folder: Path, tokenizer: Tokenizer) -> None:
        self.spec, self.folder, self.tokenizer = spec, folder, tokenizer
        self._number = number
        self.manifest = Manifest.open(folder)
        long = find_long(self.manifest, spec.data.num_streams) if spec.data.cut_documents else ()
        self._long = [each for each in long if self._is_mine(each.index_row["text_hash"])]
        self._long_numbers = {(each.shard.shard, each.number) for each in self._long}
        self._num_units = order.units_per_stream(spec.data.num_streams, len(self.manifest))
        self.units_per_stream = self._num_units + bool(self._long)
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._shards_named: set[str] = set()
        self._checked: set[str] = set()
        self.documents_read: list[DocumentRead] = []
        self.fingerprint = cut_fingerprint(self.manifest.fingerprint) if long else self.manifest.fingerprint
        self.manifest.require_tokenizer(spec.data.tokenizer, tokenizer.sha256)

    def visit(self, stream: int, cursor: Cursor) -> Iterator[Candidate]:
        """What a stream reads in the unit of a cursor, from its document on."""
        ordinal, epoch = cursor.unit, cursor.epoch
        if self._long:
            key = order.make_key(self.spec.seed, "place of pieces", self._number, epoch)
            place = order.place_of_pieces(stream, self._num_units, key)
            if ordinal == place:
                return self._pieces(stream, epoch, cursor.document)
            ordinal -= ordinal > place
        found = self.candidates(self.unit(stream, epoch, ordinal), epoch, cursor.document)
        return (each for each in found if (each.shard.shard, each.number) not in self._long_numbers)

    def unit(self, stream: int, epoch: int, ordinal: int) -> order.StreamUnit:
        """The `ordinal`-th of the units of whole documents of a stream in an epoch."""
        key = order.make_key(self.spec.seed, "units", self._number, epoch)
        num_streams, num_shards = self.spec.data.num_streams, len(self.manifest)
        return order.unit_of(ordinal, stream=stream, num_streams=num_streams, num_shards=num_shards, key=key)

    def candidates(self, unit: order.StreamUnit, epoch: int, first: int) -> Iterator[Candidate]:
        """The split's documents of a unit in the order of an epoch, from place `first` on; all if the index is lost."""
        shard = self.manifest[unit.shard]
        start, stop = unit.documents(shard.documents)
        key = order.make_key(self.spec.seed, "documents", self._number, epoch, unit.shard, unit.part)
        is_good = True
        try:
            if shard.shard not in self._checked:
                check_index(self.folder, shard)
        except ValueError:
            is_good = False
        if is_good and self.spec.split == "validation":  # it is read once, at the start, with many visits to a shard
            self._checked.add(shard.shard)
        for begin in range(first, stop - start, self._block):
            places = np.arange(begin, min(begin + self._block, stop - start))
            numbers = start + order.permute(places, stop - start, key)
            if not is_good:
                pairs = zip(places.tolist(), numbers.tolist(), strict=True)
                yield from (Candidate(shard, place, number, None) for place, number in pairs)
                continue
            rows = open_index(self.folder, shard)[numbers]  # a copy: the mapping ends here
            mine = self._is_mine(rows["text_hash"])
            for place, number, row in zip(places[mine].tolist(), numbers[mine].tolist(), rows[mine], strict=True):
                yield Candidate(shard, place, number, row)

    @property
    def _block(self) -> int:
        fraction = self.spec.data.validation_fraction
        share = fraction if self.spec.split == "validation" else 1 - fraction
        return max(BLOCK, math.ceil(1 / max(share, 1 / LARGEST_BLOCK)))

    def _is_mine(self, text_hashes: np.ndarray) -> np.ndarray:
        """Whether documents are of the split."""
        held_out = order.in_validation(text_hashes, self.spec.data.validation_fraction)
        return held_out == (self.spec.split == "validation")

    def _pieces(self, stream: int, epoch: int, first: int) -> Iterator[Candidate]:
        """A stream's pieces of the long documents in the order of an epoch, from place `first` on."""
        num_streams, ends = self.spec.data.num_streams, np.cumsum([each.num_pieces for each in self._long])
        key = order.make_key(self.spec.seed, "pieces", self._number, epoch)
        dealt = order.dealt(stream, num_streams, int(ends[-1]), key)[first:]
        for place, index in enumerate(dealt.tolist(), first):
            which = int(np.searchsorted(ends, index, side="right"))
            document = self._long[which]
            piece = DocumentPiece(index - int(ends[which]) + document.num_pieces, document.num_pieces)
            yield Candidate(document.shard, place, document.number, document.index_row, piece)

    def read(self, candidate: Candidate) -> FramedDocument | None:
        """A document or a piece; None if it is damaged and data.on_damage lets the run continue, else a ValueError that
        names shard, document and offset."""
        try:
            document = self._read_document(candidate)
        except DamagedDocument as error:
            self._accept_damage(error, candidate.shard)
            return None
        if self.spec.split == "validation":  # of which little is read
            shard, number, piece = candidate.shard.shard, candidate.number, candidate.piece.number
            self.documents_read.append(DocumentRead(str(self.folder), shard, number, piece))
        return document

    def require_document(self) -> None:
        """Raise a ValueError unless the split holds a document that can be read. Cost: as a rule, the first such
        document."""
        for number in range(len(self.manifest)):
            for candidate in self.candidates(order.StreamUnit(number, 0, 1), 0, 0):
                if self.read(candidate) is not None:
                    return
        fraction = f"data.validation_fraction={self.spec.data.validation_fraction}"
        raise ValueError(
            f"{self.folder}: none of its {self.manifest.header.num_documents} documents can be served in the "
            f"{self.spec.split} split with {fraction}: change the fraction or add documents"
        )

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def _read_document(self, candidate: Candidate) -> FramedDocument:
        path, row = self.folder / candidate.shard.shard, candidate.index_row
        which = f"{path}: document {candidate.number}"
        if row is None:
            raise DamagedDocument(f"{which} cannot be found: the shard's index is missing or damaged")
        try:
            payload = self._read_payload(path, row, candidate.number)
        except FileNotFoundError:
            require_lost(path)
            raise DamagedDocument(f"{which} at byte {row['offset']} is lost: the shard is missing") from None
        try:
            return frame_document(payload, int(row["extension"]), self.tokenizer, candidate.piece)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedDocument(f"{which} at byte {row['offset']} is not of its format: {error}") from None

    def _read_payload(self, path: Path, row: np.void, number: int) -> bytes:
        """The bytes of a document. After an error that may pass it waits, opens the shard anew, as a stale handle
        needs, and reads again: a run of weeks does not end because a server was away for a second."""
        for wait_s in WAITS_S:
            try:
                return read_document(self._open(path), row, number)
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                print(f"warning: {path}: {error.strerror}: read again in {wait_s:g} s", file=sys.stderr, flush=True)
            with suppress(OSError):
                self._files.pop(path.name).close()
            time.sleep(wait_s)
        return read_document(self._open(path), row, number)

    def _accept_damage(self, error: DamagedDocument, shard: ShardRow) -> None:
        """Raise, or name the damage on stderr, once per shard."""
        what = str(error).partition("; ")[0]
        if self.spec.data.on_damage == "stop":
            hint = "prepare the data again, or set data.on_damage=skip to continue without it"
            raise ValueError(f"{what}; {hint}") from error
        if shard.shard not in self._shards_named:
            self._shards_named.add(shard.shard)
            also = "skipped, as is every other damaged document of this shard"
            print(f"warning: {what}; {also}", file=sys.stderr, flush=True)

    def _open(self, path: Path) -> BinaryIO:
        file = self._files.pop(path.name, None) or path.open("rb", buffering=0)
        self._files[path.name] = file  # the most recently used one is last
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file


class Walker:
    """One stream's way through one source."""

    def __init__(self, source: Source, stream: int, cursor: Cursor) -> None:
        self.cursor = cursor
        self._source, self._stream = source, stream
        self._ahead: Iterator[Candidate] | None = None
        self._document: FramedDocument | None = None
        if cursor.offset or cursor.unit >= source.units_per_stream:
            self._document = self._resume()

    def next_sample(self) -> np.ndarray:
        """The next seq_len tokens and their labels, int64 [2, seq_len]."""
        return label_text(self.next_tokens(), self._source.tokenizer.separators)

    def next_tokens(self) -> np.ndarray:
        """The next tokens, int64 [seq_len + 1]; leaves the cursor on the last one."""
        cursor, filled = self.cursor, 0
        tokens = np.empty(self._source.spec.seq_len + 1, dtype=np.int64)
        while filled < len(tokens):
            if self._document is None:
                self._document = self._next_document()
            piece = self._document.read(cursor.offset, len(tokens) - filled)
            tokens[filled : filled + len(piece)] = piece
            filled += len(piece)
            cursor.offset += len(piece)
            if filled < len(tokens):
                self._leave_document()
        cursor.offset -= 1
        cursor.samples += 1
        return tokens

    def _resume(self) -> FramedDocument:
        """The document that a saved cursor stands inside; the one after it if that was damaged since."""
        saved = replace(self.cursor)
        if saved.unit < self._source.units_per_stream:
            document = self._next_document()
            if self.cursor.damaged != saved.damaged or (self.cursor == saved and len(document.read(saved.offset, 1))):
                return document
        changed = "the shards, run.seed or the data section changed"
        raise ValueError(f"{self._source.folder}: the saved data state does not fit it: {changed}")

    def _next_document(self) -> FramedDocument:
        """The first document at or after the cursor that is of the split and can be read; the cursor moves to it."""
        cursor, damaged_before = self.cursor, self.cursor.damaged
        while True:
            if self._ahead is None:
                self._ahead = self._source.visit(self._stream, cursor)
            for candidate in self._ahead:
                cursor.document = candidate.place
                document = self._source.read(candidate)
                if document is not None:
                    return document
                cursor.damaged += 1
                self._leave_document()
            self._leave_unit()
            if cursor.unit == 0 and cursor.damaged != damaged_before:
                self._source.require_document()  # else a source that is lost as a whole would be searched forever

    def _leave_document(self) -> None:
        self._document = None
        self.cursor.document += 1
        self.cursor.offset = 0

    def _leave_unit(self) -> None:
        cursor, self._ahead = self.cursor, None
        cursor.unit, cursor.document, cursor.offset = cursor.unit + 1, 0, 0
        if cursor.unit == self._source.units_per_stream:
            cursor.epoch, cursor.unit = cursor.epoch + 1, 0


class StreamReader:
    """The samples of some streams, in one process."""

    def __init__(self, spec: StreamSpec, states: np.ndarray) -> None:
        """Args: spec: what to read; states: cursors of all streams, int64 [*spec.state_shape]."""
        tokenizer = Tokenizer.load(spec.data.tokenizer)
        self._spec, self._states = spec, states
        self._sources = [
            Source(spec, number, Path(source.path), tokenizer)
            if source.path is not None
            else TaskSource(source, spec.split, spec.seed, spec.seq_len, tokenizer)
            for number, source in enumerate(spec.data.sources)
        ]
        self._walkers: dict[tuple[int, int], Walker | TaskWalker] = {}
        sizes = [source.manifest.header.num_tokens if isinstance(source, Source) else None for source in self._sources]
        is_training = spec.split == "train"
        self._mixture = Mixture(spec.data, sizes, is_training=is_training, seed=spec.seed, seq_len=spec.seq_len)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """What each source holds, as one hash."""
        return tuple(source.fingerprint for source in self._sources)

    @property
    def documents_read(self) -> list[DocumentRead]:
        """Of all folders in the validation split."""
        return [each for source in self._sources if isinstance(source, Source) for each in source.documents_read]

    def check_manifests(self) -> None:
        """Raise a ValueError that names the source whose manifest is not the one written; reads all of each."""
        for source in self._sources:
            if isinstance(source, Source):
                source.manifest.check_rows()

    def require_documents(self) -> None:
        """Raise a ValueError that names the source whose split is empty, if there is one."""
        for source in self._sources:
            source.require_document()

    def read(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prepare global samples, int64 [n], ascending, which must be the next ones of their streams.

        Returns:
            Records int64 [n, 2 + len(FIELDS)]: stream, source and the cursor after each sample; tokens and labels
            int64 [n, 2, seq_len].
        """
        data = self._spec.data
        records = np.empty((len(samples), 2 + len(FIELDS)), dtype=np.int64)
        batch = np.empty((len(samples), 2, self._spec.seq_len), dtype=np.int64)
        for row, (sample, drawn) in enumerate(zip(samples.tolist(), self._mixture.draw(samples), strict=True)):
            place = sample % data.num_streams, self._mixture.within_budget(sample, drawn, self._cursor)
            walker = self._walkers.get(place) or self._start(place)
            batch[row] = walker.next_sample()
            records[row] = *place, *walker.cursor.row()
        return records, batch

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _cursor(self, stream: int, source: int) -> Cursor:
        walker = self._walkers.get((stream, source))
        return walker.cursor if walker else Cursor(*self._states[stream, source].tolist())

    def _start(self, place: tuple[int, int]) -> Walker | TaskWalker:
        stream, number = place
        cursor, source = self._cursor(*place), self._sources[number]
        is_text = isinstance(source, Source)
        num_streams = self._spec.data.num_streams
        walker = Walker(source, stream, cursor) if is_text else TaskWalker(source, stream, num_streams, cursor)
        self._walkers[place] = walker
        return walker
