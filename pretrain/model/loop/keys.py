"""Which loop's keys and values a loop attends to, `model.loop.keys`. No torch.

    own      its own: every loop has keys, values and a cache of its own
    first    those of the first loop, for all loops
    every    those of the newest loop that has any, which is every n-th: 0, n, 2n, ...   (n: keys_every)

Queries are always the loop's own. So loops that compute no keys save their products and their part of the cache. It is
the sharing across layers of Brandon et al. 2024 (arXiv 2405.12981), with loops for layers; `first` is the recursive
sharing of Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524).
"""


def keys_of(keys: str, keys_every: int, loop: int) -> int:
    """The loop whose keys and values loop `loop` attends to, both counted from 0."""
    return {"own": loop, "first": 0, "every": loop - loop % keys_every}[keys]
