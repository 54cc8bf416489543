"""Row 5: the order of the user's data is the same for two numbers of data-parallel ranks, also where it changes on the
way: the second batch is read from the state after the first by the other number of ranks."""

from collections.abc import Iterator

import numpy as np

from pretrain.config.run import RunConfig
from pretrain.data.stream.loader import Loader
from pretrain.verification.job import PlannedJob, Tick

MAX_TOKENS = 1 << 17
"""Of a batch, at most, but for two sequences a rank."""
MAX_RANKS = 8
State = tuple[np.ndarray, int]
"""Of the ranks together: cursors, and the next sample."""


def check_order(job: PlannedJob) -> Iterator[Tick]:
    """One row, if the data can be read."""
    config, num_streams = job.config, job.config.data.num_streams
    sizes = [size for size in range(2, MAX_RANKS + 1) if num_streams % size == 0]
    if not sizes:
        yield Tick("order", None, f"data.num_streams={num_streams} does not divide among 2 to {MAX_RANKS} ranks")
        return
    try:
        Loader(config.data, seed=config.run.seed, seq_len=config.train.seq_len, global_batch=1).close()
    except ValueError:
        yield Tick("order", None, "the data cannot be read, see there")
        return
    size = job.layout.data_parallel if job.layout.data_parallel in sizes else sizes[0]
    at_most = min(config.train.global_batch, MAX_TOKENS // config.train.seq_len)
    num_sequences = size * max(2, at_most // size)
    one, after_one = _read(config, num_sequences, 1, None)
    other, after_other = _read(config, num_sequences, size, None)
    difference = _first_difference(one, other, size, 0)
    if not difference:
        one, other = (_read(config, num_sequences, *way)[0] for way in ((1, after_other), (size, after_one)))
        difference = _first_difference(one, other, size, num_sequences)
    text = f"1 and {size} ranks read the same 2 × {num_sequences} sequences, the second after a change of ranks"
    yield Tick("order", not difference, difference or text)


def _read(config: RunConfig, num_sequences: int, size: int, state: State | None) -> tuple[np.ndarray, State]:
    """A batch as `size` ranks read it, [sequences, 2, seq_len] in the global order, and the state after it."""
    data = config.data.model_copy(update={"num_workers": 0})
    batch = np.empty((num_sequences, 2, config.train.seq_len), dtype=np.int64)
    cursors, following = None, 0
    for rank in range(size):
        with Loader(
            data, seed=config.run.seed, seq_len=config.train.seq_len, global_batch=num_sequences, rank=rank,
            num_ranks=size,
        ) as loader:  # fmt: skip
            if state is not None:
                loader.load_state(*state)
            batch[rank::size] = loader.next_batch()
            cursors, following = loader.state() + (0 if cursors is None else cursors), loader.next_sample
    assert cursors is not None
    return batch, (cursors, following)


def _first_difference(one: np.ndarray, other: np.ndarray, size: int, first: int) -> str:
    places = np.argwhere(one != other)
    if not len(places):
        return ""
    row, kind, place = places[0].tolist()
    what = f"{'label' if kind else 'token'} {place} of sample {first + row}"
    return f"{what} is {other[row, kind, place]} on {size} ranks, {one[row, kind, place]} on one"
