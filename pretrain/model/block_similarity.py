"""How alike the blocks of a trained model are: the cosine between the weights of layers i and i + k, for each kind of
weight matrix (Saunshi et al. 2025, arXiv 2502.17416, section 4).

    R_G(k) = mean over i < N - k of cos(W_G^(i), W_G^(i+k))

with N layers between prelude and coda, in blocks of k. It is the sum that the loop regulariser pulls towards 1 (eq. 3),
for every kind of matrix by itself. The blocks of a looped model are one, so that its cosines are 1 by construction and
not asked for.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pretrain.model.config import ModelSection, WeightGroup
from pretrain.model.regulariser import WEIGHT_PATHS, cosine, dot_products, matrix_paths
from pretrain.schema.section import require_divides


class BlockSimilarity(NamedTuple):
    """Cosines of one kind of weight matrix."""

    group: WeightGroup
    cosines: tuple[float, ...]
    """Of layers i and i + k, for i = 0, 1, ..., N - k - 1."""

    @property
    def mean(self) -> float:
        """R_G(k)."""
        return sum(self.cosines) / len(self.cosines)


def block_similarities(config: ModelSection, block_size: int, read: Callable[[str], Tensor]) -> list[BlockSimilarity]:
    """The cosines between successive blocks, for each kind of weight matrix that the model has.

    Args:
        config: shape of the model.
        block_size: k, layers of a block.
        read: the weight of this name, such as loop.0.attention.query.weight.

    Raises:
        ValueError: the layers are not two or more blocks of this size.
    """
    require_divides("number of looped layers", config.num_loop_layers, "block size", block_size)
    if config.num_loop_layers == block_size:
        raise ValueError(f"its {block_size} looped layers are one block of {block_size}: there is nothing to compare")
    return layer_similarities(config, block_size, read)


def layer_similarities(config: ModelSection, distance: int, read: Callable[[str], Tensor]) -> list[BlockSimilarity]:
    """The same for layers at any distance k below their number, whole blocks or not."""
    found = []
    for group, path in matrix_paths(config, tuple(WEIGHT_PATHS)).items():
        layers = [read(f"loop.{number}.{path}") for number in range(config.num_loop_layers)]
        pairs = zip(layers, layers[distance:], strict=False)
        found.append(BlockSimilarity(group, tuple(cosine(dot_products(a, b)).item() for a, b in pairs)))
    return found
