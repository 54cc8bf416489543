"""Parts of a forward pass with backward passes of their own: gradients of shared weights add up in fp32."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Apart(torch.autograd.Function):
    """A part of the forward pass with a backward pass of its own, `run(*inputs)`.

    Autograd adds what the uses of a weight in one backward pass give it in the type of the weight, before the sum is
    added to the fp32 buffer. Here each part adds its gradient to the buffer itself, as the chunks of several stages do.
    Wider types need none of this, as they add as the buffer does.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Sequence[Tensor]], *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.inputs = [each if each is None else each.detach().requires_grad_(each.requires_grad) for each in inputs]
        with torch.enable_grad():
            ctx.outputs = run(*ctx.inputs)
        ctx.set_materialize_grads(False)
        outputs = tuple(output.detach() for output in ctx.outputs)
        ctx.mark_non_differentiable(
            *(each for each, inner in zip(outputs, ctx.outputs, strict=True) if not inner.requires_grad)
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, outputs = ctx.inputs, ctx.outputs
        ctx.inputs = ctx.outputs = None  # what autograd keeps of the part ends with this pass
        reached = [number for number, gradient in enumerate(gradients) if gradient is not None]
        torch.autograd.backward([outputs[number] for number in reached], [gradients[number] for number in reached])
        return None, *(each if each is None else each.grad for each in inputs)
