"""The order of the data: permutations, units, ownership and draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.stream import order

KEYS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.integers(1, 3000), KEYS)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    images = order.permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(images), np.arange(size))


@settings(deadline=None)
@given(st.integers(10**6, 10**15), KEYS)
def test_permutation_of_a_huge_range_is_one_to_one_and_in_range(size: int, key: int) -> None:
    elements = np.unique(
        np.concatenate([np.arange(500), size - 1 - np.arange(500), np.linspace(0, size - 1, 500, dtype=np.int64)])
    )
    images = order.permute(elements, size, key)
    assert len(np.unique(images)) == len(elements)
    assert images.min() >= 0 and images.max() < size


@settings(deadline=None)
@given(st.integers(1, 500), KEYS, st.data())
def test_an_element_alone_has_the_image_it_has_among_others(size: int, key: int, data: st.DataObject) -> None:
    element = data.draw(st.integers(0, size - 1))
    assert order.permute(np.array([element]), size, key)[0] == order.permute(np.arange(size), size, key)[element]


@pytest.mark.parametrize("size", [3, 10, 40])
def test_permutations_of_many_keys_put_every_element_everywhere_equally_often(size: int) -> None:
    keys, counts = 200 * size, np.zeros((size, size))
    for number in range(keys):
        counts[np.arange(size), order.permute(np.arange(size), size, order.make_key(number))] += 1
    chi_square = ((counts - 200) ** 2 / 200).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_keys_tell_their_words_apart() -> None:
    keys = [order.make_key(*words) for words in [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), (0, 1, 2), ()]]
    assert len(set(keys)) == len(keys)


def test_the_order_is_the_one_that_runs_were_made_with() -> None:
    """A change here changes every run that resumes."""
    key = order.make_key(7, "units", 0, 3)
    assert key == 0x503E45522DAA1B80
    assert order.permute(np.arange(10), 10, key).tolist() == [4, 2, 0, 6, 5, 1, 8, 3, 9, 7]
    assert order.draw_sources(np.arange(12), (1.0, 2.0, 3.0), 7).tolist() == [2, 2, 1, 2, 2, 0, 2, 1, 0, 2, 2, 1]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 24), st.integers(1, 30), st.integers(0, 200), KEYS)
def test_an_epoch_visits_every_document_of_every_shard_once(
    num_streams: int, num_shards: int, documents: int, key: int
) -> None:
    visits = np.zeros((num_shards, documents), dtype=int)
    for stream in range(num_streams):
        for ordinal in range(order.units_per_stream(num_streams, num_shards)):
            unit = order.unit_of(ordinal, stream=stream, num_streams=num_streams, num_shards=num_shards, key=key)
            start, stop = unit.documents(documents)
            visits[unit.shard, start:stop] += 1
    assert (visits == 1).all()


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.integers(1, 6))
def test_ranks_and_workers_share_out_the_samples(
    first: int, batches: int, num_ranks: int, num_workers: int, streams_per_rank: int
) -> None:
    last, num_streams = first + batches * num_ranks, num_ranks * streams_per_rank
    owner_of_stream: dict[int, tuple[int, int]] = {}
    seen: list[int] = []
    for rank in range(num_ranks):
        samples = order.owned_samples(first, last, rank, num_ranks)
        assert len(samples) == batches
        workers = order.worker_of(samples, num_streams, num_ranks, num_workers)
        for sample, worker in zip(samples.tolist(), workers.tolist(), strict=True):
            assert owner_of_stream.setdefault(sample % num_streams, (rank, worker)) == (rank, worker)
            assert 0 <= worker < num_workers
        seen += samples.tolist()
    assert sorted(seen) == list(range(first, last))


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 6))
@settings(deadline=None)
def test_a_ranks_workers_have_equally_many_streams(num_ranks: int, num_workers: int, rounds: int) -> None:
    num_streams = num_ranks * num_workers * rounds
    for rank in range(num_ranks):
        workers = order.worker_of(np.arange(rank, num_streams, num_ranks), num_streams, num_ranks, num_workers)
        assert np.bincount(workers).tolist() == [rounds] * num_workers


def test_sources_are_drawn_by_weight_and_sample_alone() -> None:
    drawn = order.draw_sources(np.arange(40_000), (1.0, 3.0, 4.0), seed=5)
    assert np.bincount(drawn) / 40_000 == pytest.approx([1 / 8, 3 / 8, 4 / 8], abs=0.01)
    assert np.array_equal(order.draw_sources(np.arange(1000, 1100), (1.0, 3.0, 4.0), seed=5), drawn[1000:1100])
    assert not np.array_equal(order.draw_sources(np.arange(1000), (1.0, 3.0, 4.0), seed=6), drawn[:1000])


def test_validation_is_the_asked_share_and_grows_by_adding() -> None:
    hashes = order.mix(np.arange(1, 20_001, dtype=np.uint64))
    small, large = order.in_validation(hashes, 0.01), order.in_validation(hashes, 0.1)
    assert small.mean() == pytest.approx(0.01, abs=0.003)
    assert large.mean() == pytest.approx(0.1, abs=0.01)
    assert not (small & ~large).any()
    assert not order.in_validation(hashes, 0.0).any()
