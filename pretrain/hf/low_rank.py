"""What makes one shared block do for several: the difference of each layer from the shared one, in low rank.

    W_b ≈ W + (α/r) B A,   B = (r/α) U_r S_r,   A = V_rᵀ      from W_b - W = U S Vᵀ

the best approximation of rank r in the Frobenius norm (Bae et al. 2024, "Relaxed recursive transformers", arXiv
2410.20672, section 2.2). Scales of norms are no matrices: those before a map are multiplied into it first, and are 1 in
the loop block, so that the maps of two blocks mean the same input. A layer that equals the shared one begins as LoRA
does anywhere, with A drawn and B zero.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.model.config import ModelSection
from pretrain.model.initialise import draw
from pretrain.model.loop.per_loop.lora import LoraSection

READERS = {
    "attention_norm": ("attention.query", "attention.key", "attention.value"),
    "ffn_norm": ("ffn.gate", "ffn.up"),
}
"""The maps that read what leaves a norm."""


class Factors(NamedTuple):
    """B A in the place of a difference."""

    down: Tensor
    """A [r, inputs]."""
    up: Tensor
    """B [outputs, r]."""
    kept: float
    """Squared Frobenius norm of what is kept of the difference."""
    whole: float
    """That of the difference."""


def factors(difference: Tensor, lora: LoraSection, std: float, name: str) -> Factors:
    """The factors of a difference [outputs, inputs].

    Args:
        difference: fp32.
        lora: rank r and α.
        std: standard deviation of a drawn A.
        name: of the map, for the draw.
    """
    outputs, inputs = difference.shape
    if not difference.any():
        down = std * draw((lora.rank, inputs), 0, name)
        return Factors(down, difference.new_zeros(outputs, lora.rank), 0.0, 0.0)
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    up = lora.rank / lora.alpha * left[:, : lora.rank] * values[: lora.rank]
    kept, whole = (float(some.double().square().sum()) for some in (values[: lora.rank], values))
    return Factors(right[: lora.rank].contiguous(), up.contiguous(), kept, whole)


def folds(model: ModelSection) -> bool:
    """Whether the norms of a layer are scales before its maps, and nothing else."""
    return (model.norm, model.norm_place) == ("rms", "before")


def fold_norms(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a layer with the scales of its norms in the maps that read them; it computes the same."""
    folded = dict(layer)
    for norm, readers in READERS.items():
        scale = folded[f"{norm}.weight"]
        folded[f"{norm}.weight"] = torch.ones_like(scale)
        for path in readers:
            if f"{path}.weight" in folded:
                folded[f"{path}.weight"] = folded[f"{path}.weight"] * scale
    return folded
