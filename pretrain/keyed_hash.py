"""Random numbers as pure functions of a text: the same on every rank, on every layout and after a resume.

The byte order and rounding of each caller are part of every existing run, so they stay as they are.
"""

import hashlib
from typing import Literal


def bits(key: str, byteorder: Literal["big", "little"] = "big") -> int:
    """64 uniform bits."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), byteorder)


def uniform(key: str) -> float:
    """A number in [0, 1), a multiple of 2^-53."""
    return (bits(key) >> 11) / 2**53


def open_uniform(key: str) -> float:
    """A number strictly between 0 and 1: the middle of one of 2^52 equal cells, so that its logarithm is finite."""
    return ((bits(key) >> 12) + 0.5) / 2**52
