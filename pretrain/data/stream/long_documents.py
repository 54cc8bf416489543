"""Long documents: those that a stream would be busy with while the others read everything else again.

A stream walks whole documents. Where one document is a large share of a source, or there are hardly more documents than
streams, the streams that have none left go on to the next epoch and soon all of them read the same pages. So a long
document is cut into pieces, as many as there are streams (each of at least PIECE_BYTES), and in every epoch all pieces
of a source are shuffled and dealt to the streams: a function of the seed, the epoch and the documents.

A document is long if it is larger than the share of a stream in an epoch; in a source of less than FEW documents a
stream, larger than a FEW-th of that share. No document of less than two pieces is long. The order of a source without
long documents is what it would be if there were no such rule.

    tokens   piece p of P holds tokens p·n/P to (p+1)·n/P of n
    text     the same in characters, moved on to the end of a line or, without one, to a space: no word is cut
    framing  each piece begins with bos, as a document does; the last one ends with eos

Sizes come from the indexes. They are looked through in sources of at most MOST_DOCUMENTS documents and MOST_SHARDS
shards a stream: in a larger one a document is a small share, and opening a source must not take longer the larger it
is.
"""

import hashlib
import re
from typing import NamedTuple

import numpy as np

from pretrain.data.manifest import Manifest, ShardRow
from pretrain.data.shards import check_index, open_index

PIECE_BYTES = 2048
"""Smallest piece, in stored bytes."""
FEW = 4
"""Documents a stream."""
MOST_DOCUMENTS, MOST_SHARDS = 1 << 18, 16

LINE_END, SPACE = re.compile(r"\n+"), re.compile(r"\s")


class DocumentPiece(NamedTuple):
    """The `number`-th of `total` about equal pieces of a document."""

    number: int
    total: int


class LongDocument(NamedTuple):
    shard_number: int
    shard: ShardRow
    number: int
    """Position in its shard."""
    index_row: np.void
    """Its row of the shard's index."""
    num_pieces: int


def find_long(manifest: Manifest, num_streams: int) -> tuple[LongDocument, ...]:
    """The long documents of a source, in the order of the source. A shard whose index is lost has none.

    Raises:
        ValueError: a row of the manifest is damaged.
        OSError: manifest or index cannot be read.
    """
    header = manifest.header
    if num_streams == 1 or header.num_documents > MOST_DOCUMENTS or len(manifest) > MOST_SHARDS * num_streams:
        return ()
    shards = [manifest[number] for number in range(len(manifest))]
    shares = num_streams * (FEW if header.num_documents < FEW * num_streams else 1)
    limit = max(2 * PIECE_BYTES, sum(shard.bytes for shard in shards) // shares + 1)
    found = []
    for shard_number, shard in enumerate(shards):
        if shard.bytes < limit:
            continue
        try:
            check_index(manifest.folder, shard)
            index = open_index(manifest.folder, shard)
        except ValueError:
            continue  # its documents are met, and named, as damaged
        for number in np.flatnonzero(index["size"] >= limit).tolist():
            num_pieces = min(num_streams, int(index["size"][number]) // PIECE_BYTES)
            found.append(LongDocument(shard_number, shard, number, index[number].copy(), num_pieces))
    return tuple(found)


def cut_fingerprint(fingerprint: str) -> str:
    """The fingerprint of a source whose long documents are cut, given its own: the order is another one."""
    return hashlib.sha256(f"{fingerprint}\0long documents are cut".encode()).hexdigest()


def token_range(piece: DocumentPiece, num_tokens: int) -> tuple[int, int]:
    """First and one-past-last token of a piece."""
    return piece.number * num_tokens // piece.total, (piece.number + 1) * num_tokens // piece.total


def text_range(piece: DocumentPiece, text: str) -> tuple[int, int]:
    """First and one-past-last character of a piece; equal where it holds none."""
    return _border(piece.number, piece.total, text), _border(piece.number + 1, piece.total, text)


def _border(number: int, count: int, text: str) -> int:
    """Where piece `number` of a text begins: after the first line end of what would be the piece, or before the first
    space; without either, where the next one begins."""
    if number == 0:
        return 0
    for later in range(number, count):
        start, stop = token_range(DocumentPiece(later, count), len(text))
        if line_end := LINE_END.search(text, start, stop):
            return _line_end(text, line_end.end())
        if space := SPACE.search(text, start, stop):
            return space.start()
    return len(text)


def _line_end(text: str, place: int) -> int:
    """The end of the newlines that begin before `place` and may go on after it."""
    newlines = LINE_END.match(text, place)
    return newlines.end() if newlines else place
