"""Random numbers that are a function of the row, the position and the place in the network: a hash of counters, on
any device the same. A generator of random numbers would depend on the batch, the layout and on what has been drawn
before."""

import math

import torch
from torch import Tensor

from pretrain.keyed_hash import bits

PRIMES = (0x9E3779B1 - 2**32, 0x85EBCA77 - 2**32, 0xC2B2AE3D - 2**32, 0x27D4EB2F)
"""Odd constants as int32 (xxHash's), to spread counters over all bits."""


def mix(numbers: Tensor) -> Tensor:
    """A permutation of int32 without visible structure: two rounds of xor-shift and multiply. Overflow wraps."""
    for prime in PRIMES[1:3]:
        numbers = (numbers ^ _shift(numbers)) * prime
    return numbers ^ _shift(numbers)


def noise_salt(seed: int, num_updates: int) -> int:
    """What makes the noise of a run and a step its own: 32 bits."""
    return bits(f"{seed}/noise/{num_updates}") % 2**32


def row_keys(tokens: Tensor, salt: int) -> Tensor:
    """int32 [b]: a key of each row [b, s], from its tokens and a number."""
    places = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device)
    salted = mix(torch.full_like(places, (salt + 2**31) % 2**32 - 2**31) + places * PRIMES[3])
    return mix(mix(tokens.int() * PRIMES[0] + salted).sum(1, dtype=torch.int32))


def normal(rows: Tensor, positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers [b, s, width] of rows int32 [b] and positions [b or 1, s] (Box and Muller 1958)."""
    tokens = mix(mix(rows)[:, None] + positions.int() * PRIMES[3])[..., None]
    channels = torch.arange(width, dtype=torch.int32, device=rows.device)
    first, second = (mix(tokens + channels * prime) for prime in PRIMES[1:3])
    # the middle of one of 2^32 equal cells: never 0, so that its logarithm is finite
    uniform = ((half.double() + (2**31 + 0.5)) / 2**32 for half in (first, second))
    radius, angle = next(uniform).log().mul(-2).sqrt(), next(uniform).mul(2 * math.pi)
    return (radius * angle.cos()).to(dtype)


def _shift(numbers: Tensor) -> Tensor:
    """The upper 17 bits as a number; the shift of signed numbers alone would repeat the sign."""
    return (numbers >> 15) & 0x1FFFF
