"""The global order of the data as pure functions: who owns a sample, where it comes from, in which order a stream
visits documents.

Nothing here reads a file or keeps a state; every answer is a function of the seed and of counters, so it is the same on
any number of ranks and workers and after any number of restarts.

    sample g   -> stream g mod S, source = weighted draw by a hash of (seed, g)
    source     -> units: every shard cut into the same number of contiguous parts, so many that S
                  divides the number of units
    epoch e    -> stream s visits units π(s), π(s + S), π(s + 2S), ... with π the seeded permutation of epoch e
    unit       -> its documents in a seeded permutation of their own
    long documents are in no unit: a stream visits its pieces of them as one unit more, at a seeded place of each epoch

A permutation is evaluated element by element, in O(1) memory and time: a Feistel network on a grid of rows x columns >=
size whose rounds shift one coordinate by a hash of the other, walked again while the image falls outside (Black and
Rogaway 2002, "Ciphers with arbitrary finite domains"). The grid exceeds the size by less than one row, so a second walk
is rare. The hash is SplitMix64 (Steele, Lea and Flood 2014). Cost: about 2 µs per element in blocks of hundreds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from pretrain.keyed_hash import bits

Item = TypeVar("Item")
ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class StreamUnit(NamedTuple):
    """A contiguous range of the documents of one shard: the `part`-th of `parts` equal ones."""

    shard: int
    part: int
    parts: int

    def documents(self, num_documents: int) -> tuple[int, int]:
        """First and one-past-last document of this unit in a shard of `num_documents`."""
        return self.part * num_documents // self.parts, (self.part + 1) * num_documents // self.parts


def make_key(*words: int | str) -> int:
    """A 64-bit key from integers and names; different words give unrelated keys."""
    text = "\0".join(f"{type(word).__name__}:{word}" for word in words)
    return bits(text, "little")


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64 whose output bits look independent of the input's."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniform(counters: np.ndarray, key: int) -> np.ndarray:
    """Numbers in [0, 1), one per counter: float64 of the counters' shape, a function of (counter, key) alone."""
    bits = mix(np.uint64(key) + (counters.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(elements: np.ndarray, size: int, key: int) -> np.ndarray:
    """Images of `elements`, integers [n] below `size`, under the permutation of range(size) that `key` (`make_key`)
    chooses: int64 [n]; over all of range(size) each value appears once."""
    rows = np.uint64(math.isqrt(size - 1) + 1)
    columns = np.uint64(math.ceil(size / int(rows)))
    round_keys = mix(np.uint64(key) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * GOLDEN)
    image = np.array(elements, dtype=np.uint64)
    outside = np.arange(len(image))
    while len(outside):
        row, column = np.divmod(image[outside], columns)
        for number, round_key in enumerate(round_keys):
            if number % 2:
                column = (column + mix(row ^ round_key) % columns) % columns
            else:
                row = (row + mix(column ^ round_key) % rows) % rows
        walked = row * columns + column
        image[outside] = walked
        outside = outside[walked >= size]
    return image.astype(np.int64)


def owned_samples(first: int, last: int, rank: int, num_ranks: int) -> np.ndarray:
    """Global samples g in [first, last) with g mod num_ranks = rank, ascending, int64."""
    return np.arange(first + (rank - first) % num_ranks, last, num_ranks, dtype=np.int64)


def owned_items(of_samples: Sequence[Item], first: int, rank: int, num_ranks: int) -> Sequence[Item]:
    """Of what there is for each global sample from `first` on, that of the samples that a rank owns, in their order."""
    return of_samples[(rank - first) % num_ranks :: num_ranks]


def worker_of(samples: np.ndarray, num_streams: int, num_ranks: int, num_workers: int) -> np.ndarray:
    """Worker of the owning rank that prepares each sample: a rank's streams are dealt to its workers in turn."""
    return samples % num_streams // num_ranks % num_workers


def draw_sources(samples: np.ndarray, weights: tuple[float, ...], seed: int) -> np.ndarray:
    """Source of each global sample: a weighted draw by a hash of (seed, sample), int64."""
    borders = np.cumsum(np.array(weights, dtype=np.float64))
    drawn = np.searchsorted(borders[:-1], uniform(samples, make_key(seed, "source")) * borders[-1], side="right")
    return drawn.astype(np.int64)


def units_per_stream(num_streams: int, num_shards: int) -> int:
    """Units that every stream visits in an epoch of a source.

    Shards are cut into S / gcd(S, num_shards) parts, the fewest for which every stream gets the same number of units.
    So streams stay in step: a document comes a second time before another's first only by the unevenness of the shards.
    """
    return num_shards // math.gcd(num_streams, num_shards)


def unit_of(ordinal: int, *, stream: int, num_streams: int, num_shards: int, key: int) -> StreamUnit:
    """The `ordinal`-th of the units_per_stream units that a stream visits in the epoch that `key` stands for."""
    parts = num_streams // math.gcd(num_streams, num_shards)
    place = np.array([stream + ordinal * num_streams])
    shard, part = divmod(int(permute(place, num_shards * parts, key)[0]), parts)
    return StreamUnit(shard, part, parts)


def place_of_pieces(stream: int, num_units: int, key: int) -> int:
    """Where among its `num_units` units of an epoch a stream reads its pieces of long documents: 0 is before all."""
    return int(uniform(np.array([stream]), key)[0] * (num_units + 1))


def dealt(stream: int, num_streams: int, size: int, key: int) -> np.ndarray:
    """What a stream gets of range(size), shuffled and dealt to the streams in turn: int64, in the order it is read."""
    return permute(np.arange(stream, size, num_streams), size, key)


def in_validation(text_hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Whether each document is held out: its text's hash, read as a number in [0, 1), is below `fraction`."""
    return text_hashes < np.uint64(int(fraction * 2.0**64))
