"""The loop regulariser: pulls successive blocks of an unlooped model together (Saunshi et al. 2025, section 4, eq. 3
and 4).

For each kind G of weight matrix: R_G = mean over layers i of cos(W_G^(i), W_G^(i+k)), k the block size. The paper
prints loss + λ·mean_G R_G, which would push the blocks apart; its text wants them together (λ -> ∞ is a looped model).
So the loss gains λ · mean_G mean_i (1 - cos), which is 0 for a looped model and has the gradient of -λ·mean cos.

Layers i and i+k lie on the same pipeline stage (`Recurrence.block`), so a stage sums its own pairs and only tensor
parallelism has to reduce the dot products and norms. Cost: three dot products for each pair of matrices, once a step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.model.config import ModelSection, WeightGroup
from pretrain.model.gpt import LoopedGPT
from pretrain.model.weights import layer_weights

WEIGHT_PATHS: dict[WeightGroup, str] = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "attention_output": "attention.output",
    "gate": "ffn.gate",
    "up": "ffn.up",
    "down": "ffn.down",
}
"""Module of each kind of weight matrix in a layer."""


def regularisation(model: LoopedGPT) -> Tensor:
    """This stage's part of λ · mean(1 - cosine), a scalar with gradients; the sum over stages is the whole."""
    settings, config = model.config.loop_regulariser, model.config
    present = list(matrix_paths(config, settings.groups).values())
    products = []
    for number in (number for block in range(config.num_blocks - 1) for number in model.recurrence.block(block)):
        for path in present:
            a, b = (model.get_parameter(f"loop.{n}.{path}") for n in (number, number + settings.block_size))
            products.append(dot_products(a, b))
    cosines = cosine(model.ops.all_reduce(torch.stack(products)))  # [pairs of matrices]
    num_pairs = len(present) * (config.num_loop_layers - settings.block_size)
    return settings.weight * (1 - cosines).sum() / num_pairs


def matrix_paths(config: ModelSection, groups: Sequence[WeightGroup]) -> dict[WeightGroup, str]:
    """The parameter of a layer for each of these kinds that the model has: gate is not in every one."""
    paths: dict[WeightGroup, str] = {name: f"{WEIGHT_PATHS[name]}.weight" for name in groups}
    present = layer_weights(config)
    return {name: path for name, path in paths.items() if path in present}


def dot_products(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, <a, a> and <b, b> of two tensors of one shape: [3], in fp32 or wider, with gradients. The sums over the
    shards of two matrices are those of the matrices."""
    return torch.stack([_Dot.apply(*pair) for pair in ((a, b), (a, a), (b, b))])


def cosine(products: Tensor) -> Tensor:
    """Cosines [...] from `dot_products` [..., 3]."""
    return products[..., 0] * (products[..., 1] * products[..., 2]).rsqrt()


class _Dot(torch.autograd.Function):
    """Dot product in fp32 or wider that keeps the weights themselves for the backward pass, not wide copies of them."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        wide = torch.promote_types(a.dtype, torch.float32)
        return torch.dot(a.flatten().to(wide), b.flatten().to(wide))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        return (grads[0] * b).to(a.dtype), (grads[0] * a).to(b.dtype)
