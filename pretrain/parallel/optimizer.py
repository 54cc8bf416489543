"""Optimizers over ranks: how gradients are reduced, normed and applied, and what of it a checkpoint holds.

`ShardedOptimizer` is Megatron's distributed optimizer (ZeRO-1; Rajbhandari et al. 2020): gradients are reduce-scattered
over the data-parallel ranks, each updates its flat share of the fp32 weights, and the weights are all-gathered.
`ReplicatedOptimizer` updates every weight on every rank: for Adafactor and Muon, whose factored moments and orthogonal
updates need whole matrices (tensor-parallel parts are gathered first, so the result does not depend on the layout), and
for fp64. Which of them: `is_sharded` in `pretrain/optim/optimizers.py`.

Both accumulate gradients in the buffers of Megatron's DistributedDataParallel: fp32 whatever the weights, summed over
micro-batches and loops, and reduced once a step (`gradients.py`), so the number of collectives does not depend on L.
Gradients are sums, not means: the loss is already divided by the tokens of the global batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.checkpoint.format import Piece
from pretrain.config.run import OptimizerSection, ParallelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.optim.make import fill_state, make_optimizer, parameter_groups, set_lr, set_num_updates
from pretrain.optim.probe import require_contract
from pretrain.parallel.cpu import cuda_type_names
from pretrain.parallel.gradients import GradientBuffers
from pretrain.parallel.groups import Groups
from pretrain.parallel.megatron import (
    DistributedDataParallelConfig,
    DistributedOptimizer,
    OptimizerConfig,
    TransformerConfig,
)
from pretrain.schema.plugin import is_plugin


class ParallelOptimizer(ABC):
    """What the engine asks of an optimizer; the order of calls in a step is that of the methods."""

    inner: torch.optim.Optimizer
    updated: list[tuple[nn.Parameter, Tensor]]
    """Parameters of the model, and the fp32 (or wider) weights, or shares of them, that `inner` updates for them."""

    shards: ClassVar[bool]
    """Whether state and fp32 weights are sharded over the data-parallel ranks."""

    def __init__(
        self,
        model: LoopedGPT,
        config: TransformerConfig,
        settings: OptimizerSection,
        groups: Groups,
        parallel: ParallelSection,
    ) -> None:
        self.model, self.groups = model, groups
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        ddp_config = DistributedDataParallelConfig(
            use_distributed_optimizer=self.shards,
            grad_reduce_in_fp32=config.params_dtype != torch.float64,
            overlap_grad_reduce=parallel.overlap and groups.data.size() > 1,
        )
        is_narrow = parallel.reduce_precision == "bf16"
        self.ddp = GradientBuffers(config, ddp_config, model, groups, is_narrow=is_narrow)
        self._make(config, settings)

    @abstractmethod
    def _make(self, config: TransformerConfig, settings: OptimizerSection) -> None:
        """Make `inner` and `updated`, on the gradient buffers."""

    @property
    def overlapped(self) -> GradientBuffers | None:
        """The gradient buffers, if they are sent while the backward passes run."""
        return self.ddp if self.ddp.ddp_config.overlap_grad_reduce else None

    def zero_grad(self) -> None:
        """Start a step: all gradient buffers to zero."""
        self.ddp.zero_grad_buffer()

    def reduce_gradients(self) -> None:
        """Sum gradients over the data-parallel ranks, those that are not on their way already. Collective."""
        if self.groups.data.size() > 1:  # with one rank megatron-core would copy every gradient to where it is
            self.ddp.finish()

    @abstractmethod
    def squared_norm(self) -> Tensor:
        """This rank's part of the squared gradient norm, fp64 scalar; the sum over all ranks is the whole, each weight
        counted once."""

    @abstractmethod
    def step(self, lr: float, gradient_scale: float) -> None:
        """Scale the gradients and update the weights. Collective."""

    def all_pieces(self) -> list[Piece]:
        """The updated weights and the optimizer's state, as views, which may be filled: weights that are still on their
        way, of which fp32 ones are a part, would come over them."""
        self.ddp.await_weights()
        return [piece for parameter, weight in self.updated for piece in self._pieces(parameter, weight)]

    def replicated(self) -> Iterator[tuple[str, Tensor]]:
        """What all data-parallel ranks hold alike, by name: the model's weights."""
        self.ddp.await_weights()
        return ((name, parameter.detach()) for parameter, name in self.names.items())

    def owned_pieces(self) -> list[Piece]:
        """Those of `all_pieces` that this rank alone saves."""
        owned = [(parameter, weight) for parameter, weight in self.updated if self._owns(parameter)]
        return [piece for parameter, weight in owned for piece in self._pieces(parameter, weight)]

    def finish_loading(self, num_updates: int) -> None:
        """After the pieces were filled: bring the model's weights in line. Collective."""
        set_num_updates(self.inner, num_updates)
        with torch.no_grad():
            self._copy_to_model()

    def is_counted(self, parameter: nn.Parameter) -> bool:
        """Whether this rank's copy of a weight is the one that counts among its tensor and pipeline ranks."""
        name = self.names[parameter]
        is_split = self.model.split_dim(name) is not None
        return name not in self.model.aliases and (is_split or self.groups.tensor.rank() == 0)

    def _pieces(self, parameter: nn.Parameter, weight: Tensor) -> Iterator[Piece]:
        """What a checkpoint holds of a weight that `inner` updates: the weight, and its states by their names."""
        states = {name: tensor for name, tensor in self.inner.state[weight].items() if name != "step"}
        stored = self.model.stored_name(self.names[parameter])
        for kind, tensor in ({"weights": weight.detach()} | states).items():
            yield self._piece(f"{kind}/{stored}", parameter, tensor)

    @abstractmethod
    def _owns(self, parameter: nn.Parameter) -> bool:
        """Whether this rank saves what it holds of a parameter."""

    @abstractmethod
    def _piece(self, stored: str, parameter: nn.Parameter, tensor: Tensor) -> Piece:
        """What this rank holds of a parameter, or of one of its states, as a part of the tensor `stored`."""

    @abstractmethod
    def _copy_to_model(self) -> None:
        """The updated weights, in the model's precision. Collective."""


def main_grad(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter in Megatron's buffer: fp32 or wider, summed over micro-batches."""
    return parameter.main_grad  # type: ignore[attr-defined]


class ShardedOptimizer(ParallelOptimizer):
    """An optimizer of single elements, whose state and fp32 weights are sharded over the data-parallel ranks."""

    shards = True

    def _make(self, config: TransformerConfig, settings: OptimizerSection) -> None:
        model = self.model
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
                data_parallel_group=self.groups.data,
                data_parallel_group_gloo=None, data_parallel_group_idx=0, distributed_optimizer_instance_id=0,
            )  # fmt: skip
        self.inner = self.sharded.optimizer
        self.updated = [
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
        grads = [shard.grad for parameter, shard in self.updated if self.is_counted(parameter)]
        return _squared_norm(grads, self.groups.device)

    def step(self, lr: float, gradient_scale: float) -> None:
        if gradient_scale != 1.0:
            torch._foreach_mul_([shard.grad for _, shard in self.updated], gradient_scale)  # type: ignore[attr-defined]
        set_lr(self.inner, lr)
        self.ddp.await_weights()
        self.sharded.step_with_ready_grads()

    def _owns(self, parameter: nn.Parameter) -> bool:
        return self.is_counted(parameter)

    def _piece(self, stored: str, parameter: nn.Parameter, tensor: Tensor) -> Piece:
        """A flat range of a parameter, or of a state of its shape."""
        name, tensor_group = self.names[parameter], self.groups.tensor
        dim = self.model.split_dim(name)
        index, count = (0, 1) if dim is None else (tensor_group.rank(), tensor_group.size())
        return Piece(
            name=stored, tensor=tensor, shape=self.model.weights[name].shape,
            start=self.sharded._get_model_param_range_map(parameter)["param"].start,
            partition_dim=dim, partition_index=index, partition_count=count,
        )  # fmt: skip

    def _copy_to_model(self) -> None:
        self.ddp.await_weights()
        self.sharded._copy_main_params_to_model_params()
        self.ddp.start_param_sync()


class ReplicatedOptimizer(ParallelOptimizer):
    """Any torch optimizer, run by every rank on whole fp32 (or fp64) matrices."""

    shards = False

    def _make(self, config: TransformerConfig, settings: OptimizerSection) -> None:
        model = self.model
        if is_plugin(settings.name):
            require_contract(settings)
        wide = torch.promote_types(config.params_dtype, torch.float32)
        wholes = {
            name: nn.Parameter(self._gather(parameter, parameter.detach()).to(wide))
            for parameter, name in self.names.items()
        }
        self.updated = [(parameter, wholes[name]) for parameter, name in self.names.items()]
        self.inner = make_optimizer(parameter_groups(wholes.items(), model.weights, settings), settings)
        fill_state(self.inner, settings)

    def squared_norm(self) -> Tensor:
        grads = [main_grad(parameter) for parameter in self.names if self.is_counted(parameter)]
        return _squared_norm(grads, self.groups.device) / self.groups.data.size()

    def step(self, lr: float, gradient_scale: float) -> None:
        set_lr(self.inner, lr)
        with torch.no_grad():
            for parameter, whole in self.updated:
                whole.grad = self._gather(parameter, main_grad(parameter)) * gradient_scale
            self.inner.step()
            self._copy_to_model()

    def replicated(self) -> Iterator[tuple[str, Tensor]]:
        """Those, and what they are copies of, with its state."""
        yield from super().replicated()
        yield from ((piece.name, piece.tensor) for piece in self.all_pieces())

    def _owns(self, parameter: nn.Parameter) -> bool:
        return self.is_counted(parameter) and not (self.groups.tensor.rank() or self.groups.data.rank())

    def _piece(self, stored: str, parameter: nn.Parameter, tensor: Tensor) -> Piece:
        return Piece.whole(stored, tensor)

    def _copy_to_model(self) -> None:
        for parameter, whole in self.updated:
            dim = self.model.split_dim(self.names[parameter])
            part = whole if dim is None else whole.chunk(self.groups.tensor.size(), dim)[self.groups.tensor.rank()]
            parameter.copy_(part)

    def _gather(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """The whole of a tensor that is split like `parameter`, as a copy."""
        dim = self.model.split_dim(self.names[parameter])
        if dim is None:
            return tensor.clone()
        parts = [torch.empty_like(tensor) for _ in range(self.groups.tensor.size())]
        dist.all_gather(parts, tensor.contiguous(), group=self.groups.tensor)
        return torch.cat(parts, dim=dim)


def _squared_norm(gradients: list[Any], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(gradients)).to(torch.float64).square().sum()  # type: ignore[attr-defined]
