"""What AdamW holds under DeepSpeed, as slices of the parameters they belong to: fp32 weights and both moments, of any
ZeRO stage.

DeepSpeed flattens parameters, cuts them over the data-parallel ranks and keeps track of where each slice came from.
Read through that bookkeeping, this rank's state is a list of flat ranges of logical tensors, which is just what a
checkpoint of this project is made of (`pretrain/checkpoint/format.py`): saved without gathering, read back on any
number of ranks and in any ZeRO stage, never pickled.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class StateSlice:
    """A flat range of one parameter that this rank keeps the state of."""

    name: str
    parameter: Parameter
    start: int
    """Where the range begins in the flattened parameter (of this tensor-parallel rank)."""
    master: Tensor
    """[n] fp32 weights, a view."""
    moments: dict[str, Tensor]
    """Name of a moment -> [n] fp32, a view."""
    step: Tensor
    """Updates since the moments began; shared by the slices of a flat tensor."""


@torch.no_grad()
def state_slices(optimizer: Any, parameters: Iterable[tuple[str, Parameter]]) -> Iterator[StateSlice]:
    """The state of this rank; moments that are not there yet are made, of zeros.

    Args:
        optimizer: DeepSpeed's wrapper of `torch.optim.AdamW`, or AdamW itself.
        parameters: named, as the model has them.
    """
    adamw = getattr(optimizer, "optimizer", optimizer)
    for name, parameter in parameters:
        found = _locate(optimizer, adamw, parameter)
        if found is None:
            continue
        flat, offset, start, numel = found
        state = adamw.state[flat]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            state.update({moment: torch.zeros_like(flat) for moment in MOMENTS})
        yield StateSlice(
            name=name,
            parameter=parameter,
            start=start,
            master=flat.detach().view(-1).narrow(0, offset, numel),
            moments={moment: state[moment].view(-1).narrow(0, offset, numel) for moment in MOMENTS},
            step=state["step"],
        )


def _locate(optimizer: Any, adamw: torch.optim.Optimizer, parameter: Any) -> tuple[Tensor, int, int, int] | None:
    """(fp32 tensor that AdamW updates, offset in it, offset in the parameter, elements), or None if other ranks keep
    all of it."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3: every parameter cut into equal slices, the last ones padded
        group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = dist.get_rank(parameter.ds_process_group) * numel
        held = min(numel, parameter.ds_numel - start)
        return (optimizer.fp32_partitioned_groups_flat[group], offset, start, held) if held > 0 else None
    # ZeRO-1 and 2, and bf16 without ZeRO: slices of all parameters laid end to end
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat = adamw.param_groups[mapping.param_group_index]["params"][0]
        return (
            flat,
            mapping.hp_fragment_address.start,
            mapping.lp_fragment_address.start,
            mapping.lp_fragment_address.numel,
        )
    for low, high in zip(getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True):
        for narrow, wide in zip(low, high, strict=True):  # fp16 without ZeRO: a wide copy of each parameter
            if narrow is parameter:
                return wide, 0, 0, parameter.numel()
    return parameter, 0, 0, parameter.numel()
