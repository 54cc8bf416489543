"""One optimizer step of fine-tuning under DeepSpeed, and its state as pieces of a checkpoint. Only this file and
`optimizer_state.py` depend on DeepSpeed.

ZeRO 0 to 3, bf16, fp16 and fp32, on GPUs and on CPUs with gloo, with tensor parallelism by megatron-core's layers. The
optimizer is torch's AdamW; DeepSpeed partitions its state, gradients or weights over the data-parallel ranks, reduces
and clips. Checkpoints are this project's (`pretrain/checkpoint`), not DeepSpeed's: nothing is pickled, and any number
of ranks and any ZeRO stage can read them.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger

from finetune.config import Precision
from finetune.engine.interface import EngineConfig, EngineObjective, EngineStep
from finetune.engine.optimizer_state import StateSlice, state_slices
from finetune.latent.stop import StopClassifier
from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.layout import Layout
from pretrain.config.saved_model import SavedModel
from pretrain.device.hardware import DTYPES
from pretrain.device.ranks import world_from_environment
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.optim.make import set_lr
from pretrain.parallel.groups import Groups
from pretrain.parallel.replicas import require_equal_replicas
from pretrain.parallel.stage import build_stage, megatron_config
from pretrain.parallel.stop_vote import StopVote, sum_over_ranks

LARGEST_BUCKETS = {"cuda": 200_000_000, "cpu": 4_000_000}
"""Largest number of elements that are reduced or gathered together, by device. Every backward pass allocates a bucket,
and a process that keeps freed memory (`pretrain/device/host_memory.py`) seldom finds room for a large one among what
batches of other lengths left: with buckets of 270 MB it grew by one a micro-batch."""
PRECISIONS: dict[Precision, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "initial_scale_power": 16}},
}
"""DeepSpeed's settings for `train.precision`."""


@dataclass(frozen=True, kw_only=True)
class FinetuneStepResult:
    """The results of a step, equal on all ranks."""

    loss: float
    """What the objective calls so, per target: of fine-tuning the negative log-likelihood of a supervised token."""
    grad_norm: float
    """Before clipping; NaN where DeepSpeed skipped the update."""
    skipped: bool
    """Whether fp16 overflowed: no update, a smaller loss scale."""


class FinetuneEngine:
    """A model on its ranks, with its optimizer.

    Args:
        config: of the run.
        saved: the model, as its checkpoints describe it.
        layout: how a step lies on the ranks.
        groups: process groups of this rank.
        make_objective: what to minimise, of a model on its device.

    Raises:
        ValueError: DeepSpeed does not support the precision on this device.
    """

    def __init__(
        self, config: EngineConfig, saved: SavedModel, layout: Layout, groups: Groups,
        make_objective: Callable[[LoopedGPT], EngineObjective],
    ) -> None:  # fmt: skip
        if config.train.precision == "fp16" and groups.device.type == "cpu":
            raise ValueError("train.precision=fp16: DeepSpeed has it on GPUs only; use bf16 or fp32")
        self.config, self.saved, self.groups, self._make_objective = config, saved, groups, make_objective
        self._num_steps = self._num_begun = self._num_micro_batches = 0
        if config.train.deterministic:
            torch.use_deterministic_algorithms(True)
        # always fp32: DeepSpeed casts the weights itself and keeps its own fp32 copies
        model = self._build(torch.float32)
        initialise(model, config.run.seed, groups.tensor.rank())
        objective = make_objective(model.to(groups.device))
        self.model, self.objective, self._stop_classifier = model, objective, objective.stop_classifier
        self._named = objective.parameters_by_name()
        for name, parameter in self._named.items():  # DeepSpeed's norm counts others on one tensor rank only
            parameter.tensor_model_parallel = self._split_dim(name) is not None  # type: ignore[attr-defined]
        for name, weight in model.weights.items():  # DeepSpeed would not sum the parts of these gradients
            if weight.partial_under == "tensor" and groups.tensor.size() > 1:
                self._named[name].register_hook(self._sum_over_tensor_ranks)
        self._shapes = {
            name: model.weights[name].shape if name in model.weights else tuple(parameter.shape)
            for name, parameter in self._named.items()
        }
        settings = config.optimizer
        adamw = torch.optim.AdamW(
            objective.parameters(), lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.epsilon,
            weight_decay=settings.weight_decay, fused=True,
        )  # fmt: skip
        _prepare_deepspeed()
        num_parameters = sum(parameter.numel() for parameter in objective.parameters())
        settings_of_deepspeed = deepspeed_config(config, layout, num_parameters, groups.device.type)
        self._engine: Any = deepspeed.initialize(
            model=objective, optimizer=adamw, config=settings_of_deepspeed,
            mpu=_ModelParallel(groups) if config.engine.tensor > 1 else None, dist_init_required=False,
        )[0]  # fmt: skip

    def train_step(self, step: EngineStep, lr: float, vote: StopVote | None = None) -> FinetuneStepResult:
        """One optimizer step. The vote is held once the gradients are complete, so a signal during the step counts.

        Raises:
            FloatingPointError: the loss is not finite; the weights are unchanged.
            ReplicaError: as of `check_weights`; the weights are unchanged.
        """
        self.groups.phase.enter("forward and backward")
        set_lr(self._engine.optimizer, lr)
        replicas = self.groups.data.size()
        nll = torch.zeros((), dtype=torch.float64, device=self.groups.device)
        self._num_micro_batches = len(step.micro_batches)
        for number, micro_batch in enumerate(step.micro_batches):
            self._num_begun = number + 1
            self.groups.phase.tick(f", micro-batch {number + 1}")
            self.groups.phase.work.compute()  # forward: in backward, or after it, ZeRO waits for other ranks
            loss, plain = self._engine(micro_batch.to(self.groups.device), step)
            self.groups.phase.work.rest()
            nll += plain
            # DeepSpeed averages over micro-batches and replicas; the loss is a sum over them
            self._engine.backward(loss * (replicas * len(step.micro_batches)))
            if number < len(step.micro_batches) - 1:
                self._engine.step()
        self.groups.phase.enter("reduction")
        share = (nll / self.groups.tensor.size()).view(1)  # tensor-parallel ranks hold the same
        (total,) = sum_over_ranks(share) if vote is None else vote.sum(share)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total}")
        self.groups.phase.enter("update")
        self._num_steps += 1
        every = self.config.ranks.check_weights_every
        if every and self._num_steps % every == 0:
            self.check_weights()
        plain_norm = self._plain_norm() if isinstance(self._engine.optimizer, torch.optim.Optimizer) else None
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if plain_norm is None else plain_norm
        skipped = bool(getattr(self._engine.optimizer, "overflow", False))
        grad_norm = float("nan") if skipped else float(norm)
        return FinetuneStepResult(loss=total / step.num_targets, grad_norm=grad_norm, skipped=skipped)

    def check_weights(self) -> None:
        """Compare what the data-parallel ranks hold alike, unless the configuration says never: the weights, and, where
        nothing is partitioned, their fp32 copies and moments. Under ZeRO 3 that is nothing. Collective.

        Raises:
            ReplicaError: it is not alike; names ranks and tensors.
        """
        if self.config.ranks.check_weights_every and self.config.engine.zero_stage < 3:
            require_equal_replicas(self._replicated(), self.groups)

    def _replicated(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((name, parameter.detach()) for name, parameter in self._named.items())
        if not self._is_partitioned:
            for state in self._slices():
                if state.master.dtype != state.parameter.dtype:  # else the weights are their own copies
                    yield _stored(state.name), state.master
                yield from ((piece.name, piece.tensor) for piece in self._moment_pieces(state))

    def how_far(self) -> str:
        """How much of the step has begun, for people; any thread may ask."""
        return f"{self._num_begun:,} of {self._num_micro_batches:,} micro-batches begun"

    def _plain_norm(self) -> float:
        """Norm of the reduced gradients, which DeepSpeed does not compute where it does not wrap the optimizer."""
        squares = torch.zeros((), device=self.groups.device)
        for name, parameter in self._named.items():
            is_counted_here = self._split_dim(name) is not None or self.groups.tensor.rank() == 0
            if parameter.grad is not None and is_counted_here:
                squares += parameter.grad.float().square().sum()
        dist.all_reduce(squares, group=self.groups.tensor)
        return float(squares.sqrt())

    def _sum_over_tensor_ranks(self, gradient: torch.Tensor) -> torch.Tensor:
        whole = gradient.clone()
        dist.all_reduce(whole, group=self.groups.tensor)
        return whole

    def reset_optimizer(self) -> None:
        """Set the moments and their count of updates to zero."""
        for state in self._slices():
            state.step.zero_()
            for moment in state.moments.values():
                moment.zero_()

    @contextmanager
    def whole_model(self) -> Iterator[tuple[LoopedGPT, StopClassifier | None]]:
        """The model to answer with, and its stop classifier: this rank's tensor-parallel part, gathered where ZeRO
        partitions weights. Collective."""
        if self.config.engine.zero_stage < 3:
            yield self.model, self._stop_classifier
            return
        model = self._build(DTYPES[self.saved.precision])
        whole = self._make_objective(model)
        targets = whole.parameters_by_name()
        with torch.no_grad():
            for name, parameter in self._named.items():
                with deepspeed.zero.GatheredParameters([parameter]):
                    targets[name].data = parameter.detach().clone()
        whole.to(self.groups.device)
        yield whole.model, whole.stop_classifier

    def weights(self) -> list[Piece]:
        """This rank's fp32 weights, as pieces of a checkpoint."""
        return [self._piece(_stored(state.name), state, state.master) for state in self._owned_slices()]

    def pieces(self) -> list[Piece]:
        """This rank's weights and moments, as pieces of a checkpoint."""
        return self.weights() + [piece for state in self._owned_slices() for piece in self._moment_pieces(state)]

    def meta(self) -> dict[str, Any]:
        """What else a resumed run needs, as JSON values."""
        step = next((float(state.step) for state in self._slices()), 0.0)
        counts = [step] * dist.get_world_size()
        dist.all_gather_object(counts, step)
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        values = vars(scaler).items() if scaler else ()
        scale = {key: value for key, value in values if isinstance(value, (int, float, bool))}
        return {"updates_since_reset": max(counts), "loss_scaler": scale}

    @torch.no_grad()
    def load(self, reader: CheckpointReader, meta: dict[str, Any] | None = None) -> None:
        """Load weights and, with the `meta` of a fine-tuning checkpoint, all other state of training.

        Raises:
            ValueError: the checkpoint is of another model.
            OSError: it cannot be read.
        """
        names = {name for name in self._named if meta is not None or not name.startswith("stop/")}
        for state in self._slices():
            if state.name not in names:
                continue
            reader.load([self._piece(_stored(state.name), state, state.master)])
            if meta is not None:
                reader.load(self._moment_pieces(state))
                state.step.fill_(meta["updates_since_reset"])
            if hasattr(state.parameter, "ds_tensor"):
                ds_tensor = state.parameter.ds_tensor  # type: ignore[attr-defined]
                ds_tensor.data.view(-1)[: state.master.numel()].copy_(state.master)
        for name in names:
            parameter = self._named[name]
            if not hasattr(parameter, "ds_tensor"):
                part = self._part(name)
                parameter.data.copy_(reader.read(_stored(name), *part, 0, parameter.numel()).view_as(parameter))
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        for key, value in (meta or {}).get("loss_scaler", {}).items():
            setattr(scaler, key, value)

    def _build(self, dtype: torch.dtype) -> LoopedGPT:
        """This rank's tensor-parallel part of the model, without values."""
        config, model = self.config, self.saved.model
        megatron = megatron_config(model, config.parallel, dtype, deterministic=config.train.deterministic)
        return build_stage(model, self.saved.seq_len, megatron, self.groups)

    def _slices(self) -> Iterator[StateSlice]:
        return state_slices(self._engine.optimizer, self._named.items())

    def _owned_slices(self) -> Iterator[StateSlice]:
        """The slices that this rank saves: of copies on tensor-parallel or data-parallel ranks, one."""
        if not self._is_partitioned and self.groups.data.rank():
            return
        for state in self._slices():
            if self._split_dim(state.name) is not None or self.groups.tensor.rank() == 0:
                yield state

    @property
    def _is_partitioned(self) -> bool:
        """Whether each data-parallel rank has a part of the optimizer's state, not all of it."""
        return self.config.engine.zero_stage > 0 or hasattr(next(iter(self._named.values())), "_hp_mapping")

    def _moment_pieces(self, state: StateSlice) -> list[Piece]:
        return [self._piece(f"optimizer/{name}/{state.name}", state, moment) for name, moment in state.moments.items()]

    def _piece(self, name: str, state: StateSlice, tensor: torch.Tensor) -> Piece:
        dim, index, count = self._part(state.name)
        return Piece(
            name=name, tensor=tensor, shape=self._shapes[state.name],
            partition_dim=dim, partition_index=index, partition_count=count, start=state.start,
        )  # fmt: skip

    def _part(self, name: str) -> tuple[int | None, int, int]:
        dim = self._split_dim(name)
        return (None, 0, 1) if dim is None else (dim, self.groups.tensor.rank(), self.groups.tensor.size())

    def _split_dim(self, name: str) -> int | None:
        """The dimension along which tensor-parallel ranks share a parameter; the stop classifier is whole on each."""
        return None if name.startswith("stop/") else self.model.split_dim(name)


def _stored(name: str) -> str:
    """Name of a parameter in a checkpoint."""
    return name if name.startswith("stop/") else f"weights/{name}"


def _prepare_deepspeed() -> None:
    """Set what DeepSpeed reads from the process and not from its configuration."""
    deepspeed_logger.setLevel(logging.WARNING)
    # required even where no launcher sets it
    os.environ.setdefault("LOCAL_RANK", str(world_from_environment().local_rank))
    # No extensions: on CPUs it would compile one for inference, under a lock that a killed run would leave to block all
    # others. This table of extensions for this machine is DeepSpeed's cache, filled at first use.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}


def deepspeed_config(config: EngineConfig, layout: Layout, num_parameters: int, device: str) -> dict[str, Any]:
    """DeepSpeed's configuration, with every default set that would change a result: it would clip at 1.0. No bucket is
    larger than the parameters of this rank, or than suits the device: each backward pass allocates whole buckets (2 GB
    by default)."""
    train, engine = config.train, config.engine
    bucket = min(num_parameters + num_parameters % 2, LARGEST_BUCKETS[device])  # must be even
    return {
        "train_batch_size": train.micro_batch * layout.micro_batches * layout.data_parallel,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": layout.micro_batches,
        "gradient_clipping": config.optimizer.clip_grad_norm,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": 0,  # partition all weights alike
        },
        "zero_allow_untested_optimizer": True,
        **PRECISIONS[train.precision],
        "steps_per_print": 2**31 - 1,
    }


class _ModelParallel:
    """The process groups by the names that DeepSpeed calls; some of its parts use one name, some the other."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.tensor

    def get_model_parallel_rank(self) -> int:
        return self._groups.tensor.rank()

    def get_model_parallel_world_size(self) -> int:
        return self._groups.tensor.size()

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_tensor_model_parallel_src_rank(self) -> int:
        return dist.get_process_group_ranks(self._groups.tensor)[0]

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._groups.data

    def get_data_parallel_rank(self) -> int:
        return self._groups.data.rank()

    def get_data_parallel_world_size(self) -> int:
        return self._groups.data.size()
