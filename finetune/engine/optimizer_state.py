"""AdamW's state under DeepSpeed as slices of parameters: fp32 weights and both moments, in any ZeRO stage.

DeepSpeed flattens parameters, partitions them over the data-parallel ranks and records where each slice came from. With
these records this rank's state is a list of flat ranges of logical tensors, as in a checkpoint of this project
(`pretrain/checkpoint/format.py`): saved without gathering or pickling, read on any number of ranks and in any ZeRO
stage.
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
    """A flat range of one parameter whose state is on this rank; its tensors are views."""

    name: str
    parameter: Parameter
    start: int
    """First element of the range in the flattened parameter (of this tensor-parallel rank)."""
    master: Tensor
    """[n] fp32 weights."""
    moments: dict[str, Tensor]
    """[n] fp32 each, by their names in MOMENTS."""
    step: Tensor
    """Updates since the moments were zero; shared by the slices of a flat tensor."""


@torch.no_grad()
def state_slices(optimizer: Any, parameters: Iterable[tuple[str, Parameter]]) -> Iterator[StateSlice]:
    """The state of the named parameters on this rank; missing moments are made, of zeros. `optimizer` is DeepSpeed's
    wrapper of `torch.optim.AdamW`, or AdamW itself."""
    adamw = getattr(optimizer, "optimizer", optimizer)
    for name, parameter in parameters:
        location = _locate(optimizer, adamw, parameter)
        if location is None:
            continue
        flat, offset, start, numel = location
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
    """(fp32 tensor that AdamW updates, offset in it, offset in the parameter, elements), or None if all of it is on
    other ranks."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3: every parameter in equal slices, the last ones padded
        group, offset, numel = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = dist.get_rank(parameter.ds_process_group) * numel
        held = min(numel, parameter.ds_numel - start)
        return (optimizer.fp32_partitioned_groups_flat[group], offset, start, held) if held > 0 else None
    # ZeRO-1 and 2, and bf16 without ZeRO: slices of all parameters laid end to end
    if hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        flat, low = adamw.param_groups[mapping.param_group_index]["params"][0], mapping.lp_fragment_address
        return flat, mapping.hp_fragment_address.start, low.start, low.numel
    for low, high in zip(getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True):
        for narrow, wide in zip(low, high, strict=True):  # fp16 without ZeRO: a wide copy of each parameter
            if narrow is parameter:
                return wide, 0, 0, parameter.numel()
    return parameter, 0, 0, parameter.numel()
