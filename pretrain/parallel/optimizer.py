"""Optimizers over ranks: how gradients are reduced, normed and applied, and what of it a checkpoint holds.

`ShardedOptimizer` is Megatron's distributed optimizer (ZeRO-1; Rajbhandari et al. 2020): gradients are reduce-scattered
over the data-parallel ranks, each updates its flat share of the fp32 weights, and the weights are all-gathered.
`ReplicatedOptimizer` updates every weight on every rank: for Adafactor, whose factored moments need whole matrices
(tensor-parallel parts are gathered first, so the result does not depend on the layout), and for fp64. Which of them:
`is_sharded` in `pretrain/optim/optimizers.py`.

Both accumulate gradients in the buffers of Megatron's DistributedDataParallel: fp32 whatever the weights, summed over
micro-batches and loops, and reduced once a step, so the number of collectives does not depend on L. Gradients are sums,
not means: the loss is already divided by the tokens of the global batch.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from pretrain.checkpoint.format import Piece
from pretrain.config.run import OptimizerSection
from pretrain.model.gpt import LoopedGPT
from pretrain.optim.make import fill_state, make_optimizer, parameter_groups, set_lr, set_num_updates
from pretrain.parallel.cpu import cuda_type_names
from pretrain.parallel.groups import Groups


class ParallelOptimizer(ABC):
    """What the engine asks of an optimizer; the order of calls in a step is that of the methods."""

    inner: torch.optim.Optimizer

    def __init__(self, model: LoopedGPT, config: TransformerConfig, groups: Groups, shard: bool) -> None:
        self.model, self.groups = model, groups
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        collection = ProcessGroupCollection(
            tp=groups.tensor, pp=groups.pipeline, dp=groups.data, dp_cp=groups.data, intra_dp_cp=groups.data,
            expt_dp=groups.alone, intra_expt_dp=groups.alone, ep=groups.alone, intra_dist_opt=groups.data,
        )  # fmt: skip
        ddp_config = DistributedDataParallelConfig(
            use_distributed_optimizer=shard,
            grad_reduce_in_fp32=config.params_dtype != torch.float64,
            overlap_grad_reduce=False,
        )
        self.ddp = DistributedDataParallel(config, ddp_config, model, pg_collection=collection)

    def zero_grad(self) -> None:
        """Start a step: all gradient buffers to zero."""
        self.ddp.zero_grad_buffer()

    def reduce_gradients(self) -> None:
        """Sum gradients over the data-parallel ranks. Collective."""
        if self.groups.data.size() > 1:  # with one rank megatron-core would copy every gradient to where it is
            self.ddp.finish_grad_sync()

    @abstractmethod
    def squared_norm(self) -> Tensor:
        """This rank's part of the squared gradient norm, fp64 scalar; the sum over all ranks is the whole, each weight
        counted once."""

    @abstractmethod
    def step(self, lr: float, gradient_scale: float) -> None:
        """Scale the gradients and update the weights. Collective."""

    @abstractmethod
    def pieces(self, for_saving: bool) -> list[Piece]:
        """The fp32 (or wider) weights and the optimizer's state as views; for saving only those that no other rank
        saves."""

    @abstractmethod
    def finish_loading(self, num_updates: int) -> None:
        """After the pieces were filled: bring the model's weights in line. Collective."""

    def is_counted(self, parameter: nn.Parameter) -> bool:
        """Whether this rank's copy of a weight is the one that counts among its tensor and pipeline ranks."""
        name = self.names[parameter]
        return name not in self.model.aliases and (
            self.model.split_dim(name) is not None or self.groups.tensor.rank() == 0
        )

    def kept(self, weight: Tensor) -> dict[str, Tensor]:
        """What a checkpoint holds of a weight that `inner` updates: "weights" and the names of its states -> tensor."""
        state = self.inner.state[weight]
        return {"weights": weight.detach()} | {name: tensor for name, tensor in state.items() if name != "step"}


def main_grad(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter in Megatron's buffer: fp32 or wider, summed over micro-batches."""
    return parameter.main_grad  # type: ignore[attr-defined]


class ShardedOptimizer(ParallelOptimizer):
    """An optimizer of single elements, whose state and fp32 weights are sharded over the data-parallel ranks."""

    def __init__(self, model: LoopedGPT, config: TransformerConfig, settings: OptimizerSection, groups: Groups) -> None:
        super().__init__(model, config, groups, shard=True)
        inner = make_optimizer(parameter_groups(model.named_parameters(), model.weights, settings), settings)
        megatron_config = OptimizerConfig(
            optimizer="adam", lr=settings.lr, weight_decay=settings.weight_decay, bf16=config.bf16,
            params_dtype=config.params_dtype, use_distributed_optimizer=True,
        )  # fmt: skip
        for group in inner.param_groups:
            group["is_expert_parallel"] = False
        with cuda_type_names():
            self.sharded = DistributedOptimizer(
                inner, megatron_config, None, None,  # type: ignore[arg-type]
                model_chunks=[self.ddp], per_model_buffers={0: self.ddp.buffers},  # type: ignore[dict-item]
                data_parallel_group=groups.data,
                data_parallel_group_gloo=None, data_parallel_group_idx=0, distributed_optimizer_instance_id=0,
            )  # fmt: skip
        self.inner = self.sharded.optimizer
        self.shards = [
            (parameter, shard)
            for parameters, shards in (
                (self.sharded.model_fp32_groups, self.sharded.shard_fp32_groups),
                (self.sharded.model_float16_groups, self.sharded.shard_fp32_from_float16_groups),
            )
            for parameter_group, shard_group in zip(parameters, shards, strict=True)
            for parameter, shard in zip(parameter_group, shard_group, strict=True)
        ]
        fill_state(self.inner, settings)

    def squared_norm(self) -> Tensor:
        self.sharded.prepare_grads()
        return _squared_norm(
            [shard.grad for parameter, shard in self.shards if self.is_counted(parameter)], self.groups.device
        )

    def step(self, lr: float, gradient_scale: float) -> None:
        if gradient_scale != 1.0:
            torch._foreach_mul_([shard.grad for _, shard in self.shards], gradient_scale)  # type: ignore[attr-defined]
        set_lr(self.inner, lr)
        self.sharded.step_with_ready_grads()

    def pieces(self, for_saving: bool) -> list[Piece]:
        found = []
        for parameter, shard in self.shards:
            if for_saving and not self.is_counted(parameter):
                continue
            start = self.sharded._get_model_param_range_map(parameter)["param"].start
            found += [self._part_piece(prefix, parameter, tensor, start) for prefix, tensor in self.kept(shard).items()]
        return found

    def finish_loading(self, num_updates: int) -> None:
        set_num_updates(self.inner, num_updates)
        with torch.no_grad():
            self.sharded._copy_main_params_to_model_params()
            self.ddp.start_param_sync()

    def _part_piece(self, prefix: str, parameter: nn.Parameter, tensor: Tensor, start: int) -> Piece:
        """A flat range of a parameter, or of a state of its shape, as a piece of the logical tensor."""
        name, tensor_group = self.names[parameter], self.groups.tensor
        stored, shape = f"{prefix}/{self.model.stored_name(name)}", self.model.weights[name].shape
        dim = self.model.split_dim(name)
        if dim is None:
            return Piece(name=stored, tensor=tensor, shape=shape, start=start)
        return Piece(
            name=stored, tensor=tensor, shape=shape, start=start,
            partition_dim=dim, partition_index=tensor_group.rank(), partition_count=tensor_group.size(),
        )  # fmt: skip


class ReplicatedOptimizer(ParallelOptimizer):
    """Any torch optimizer, run by every rank on whole fp32 (or fp64) matrices."""

    def __init__(self, model: LoopedGPT, config: TransformerConfig, settings: OptimizerSection, groups: Groups) -> None:
        super().__init__(model, config, groups, shard=False)
        wide = torch.promote_types(config.params_dtype, torch.float32)
        self.wholes = [
            (parameter, nn.Parameter(self._gather(name, parameter.detach()).to(wide)))
            for parameter, name in self.names.items()
        ]
        named = ((self.names[parameter], whole) for parameter, whole in self.wholes)
        self.inner = make_optimizer(parameter_groups(named, model.weights, settings), settings)
        fill_state(self.inner, settings)

    def squared_norm(self) -> Tensor:
        grads = [main_grad(parameter) for parameter in self.names if self.is_counted(parameter)]
        return _squared_norm(grads, self.groups.device) / self.groups.data.size()

    def step(self, lr: float, gradient_scale: float) -> None:
        set_lr(self.inner, lr)
        with torch.no_grad():
            for parameter, whole in self.wholes:
                whole.grad = self._gather(self.names[parameter], main_grad(parameter)) * gradient_scale
            self.inner.step()
            self._copy_to_model()

    def pieces(self, for_saving: bool) -> list[Piece]:
        if for_saving and (self.groups.tensor.rank() or self.groups.data.rank()):
            return []
        found = []
        for parameter, whole in self.wholes:
            if for_saving and not self.is_counted(parameter):
                continue
            stored = self.model.stored_name(self.names[parameter])
            found += [Piece.whole(f"{prefix}/{stored}", tensor) for prefix, tensor in self.kept(whole).items()]
        return found

    def finish_loading(self, num_updates: int) -> None:
        set_num_updates(self.inner, num_updates)
        with torch.no_grad():
            self._copy_to_model()

    def _copy_to_model(self) -> None:
        for parameter, whole in self.wholes:
            dim = self.model.split_dim(self.names[parameter])
            part = whole if dim is None else whole.chunk(self.groups.tensor.size(), dim)[self.groups.tensor.rank()]
            parameter.copy_(part)

    def _gather(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of a tensor that is split like the parameter `name`, as a copy."""
        dim = self.model.split_dim(name)
        if dim is None:
            return tensor.clone()
        parts = [torch.empty_like(tensor) for _ in range(self.groups.tensor.size())]
        dist.all_gather(parts, tensor.contiguous(), group=self.groups.tensor)
        return torch.cat(parts, dim=dim)


def _squared_norm(gradients: list[Any], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(gradients)).to(torch.float64).square().sum()  # type: ignore[attr-defined]
