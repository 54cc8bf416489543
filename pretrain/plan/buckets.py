"""How many weights' gradients are sent together over the data-parallel ranks (`pretrain/parallel/gradients.py`), and
with `parallel.overlap` their weights back."""

import math

BUCKET_ELEMENTS = 40_000_000
"""At least, for up to 40 ranks, as in megatron-core; for more ranks, as many times more."""


def bucket_elements(num_ranks: int) -> int:
    """Elements of a bucket at least, over so many data-parallel ranks."""
    return BUCKET_ELEMENTS * max(1, num_ranks // 40)


def num_buckets(elements: float, num_ranks: int) -> int:
    """In which so many elements are sent, at most."""
    return max(1, math.ceil(elements / bucket_elements(num_ranks)))
