"""One optimizer step of fine-tuning under DeepSpeed, and its state as pieces of a checkpoint. The only place that knows
DeepSpeed.

ZeRO 0 to 3, bf16, fp16 and fp32, on GPUs and on CPUs with gloo, with tensor parallelism by megatron-core's layers. The
optimizer is torch's AdamW; DeepSpeed cuts its state, gradients or weights over the data-parallel ranks, reduces and
clips. Checkpoints are this project's (`pretrain/checkpoint`), not DeepSpeed's: nothing is pickled, any number of ranks
and any ZeRO stage reads them.
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger

from finetune.config import FinetuneConfig
from finetune.engine.objective import Objective
from finetune.engine.optimizer_state import MOMENTS, StateSlice, state_slices
from finetune.latent.batch import StepBatch
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
from pretrain.parallel.stage import build_stage, megatron_config
from pretrain.parallel.stop_vote import StopVote, sum_over_ranks

LARGEST_BUCKET = 200_000_000
"""Elements that are reduced or gathered together at most."""
FIRST_LOSS_SCALE_POWER = 16
"""fp16 starts with gradients scaled by 2 to this power."""


@dataclass(frozen=True, kw_only=True)
class FinetuneStepResult:
    """What a step did, the same on every rank."""

    loss: float
    """Negative log-likelihood per supervised token of the effective batch, in nats."""
    grad_norm: float
    """Before clipping; NaN where DeepSpeed skipped the update."""
    skipped: bool
    """fp16 overflowed: no update, a smaller scale."""


class FinetuneEngine:
    """A model on its ranks, with its optimizer.

    Args:
        config: of the run.
        saved: the model to train, as checkpoints describe it.
        layout: how the effective batch lies on the ranks.
        groups: the process groups of this rank.

    Raises:
        ValueError: DeepSpeed does not have the precision on this device.
    """

    def __init__(self, config: FinetuneConfig, saved: SavedModel, layout: Layout, groups: Groups) -> None:
        if config.train.precision == "fp16" and groups.device.type == "cpu":
            raise ValueError("train.precision=fp16: DeepSpeed has it on GPUs alone; use bf16 or fp32")
        self.config, self.saved, self.groups = config, saved, groups
        if config.train.deterministic:
            torch.use_deterministic_algorithms(True)
        # In fp32 whatever the precision: DeepSpeed narrows the weights itself and keeps wide ones of its own.
        model = self._build(torch.float32)
        initialise(model, config.run.seed, groups.tensor.rank())
        objective = Objective(model.to(groups.device), config.method)
        self.model, self._stop = model, objective.stop
        self._named = objective.parameters_by_name()
        for name, parameter in self._named.items():  # DeepSpeed's norm counts other weights on one tensor rank alone
            parameter.tensor_model_parallel = self._split_dim(name) is not None  # type: ignore[attr-defined]
        for name, weight in model.weights.items():  # DeepSpeed would leave each rank its part of the gradient
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
        mpu = _ModelParallel(groups) if config.engine.tensor > 1 else None
        self._engine: Any = deepspeed.initialize(
            model=objective,
            optimizer=adamw,
            config=deepspeed_config(config, layout, num_parameters),
            mpu=mpu,
            dist_init_required=False,
        )[0]

    def train_step(self, step: StepBatch, lr: float, vote: StopVote | None = None) -> FinetuneStepResult:
        """One optimizer step.

        Args:
            step: the micro-batches of this rank.
            lr: learning rate.
            vote: held when the gradients are there, so that a signal during the step counts.

        Raises:
            FloatingPointError: the loss is not finite; the weights are those from before the step.
        """
        set_lr(self._engine.optimizer, lr)
        replicas = self.groups.data.size()
        nll = torch.zeros((), dtype=torch.float64, device=self.groups.device)
        for number, micro_batch in enumerate(step.micro_batches):
            loss, plain = self._engine(micro_batch.to(self.groups.device), step)
            nll += plain
            # DeepSpeed takes means over micro-batches and replicas; the loss is a sum over them.
            self._engine.backward(loss * (replicas * len(step.micro_batches)))
            if number < len(step.micro_batches) - 1:
                self._engine.step()
        share = (nll / self.groups.tensor.size()).view(1)  # tensor-parallel ranks hold the same
        (total,) = sum_over_ranks(share) if vote is None else vote.sum(share)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {total}")
        plain_norm = self._plain_norm() if isinstance(self._engine.optimizer, torch.optim.Optimizer) else None
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if plain_norm is None else plain_norm
        skipped = bool(getattr(self._engine.optimizer, "overflow", False))
        grad_norm = float("nan") if skipped else float(norm)
        return FinetuneStepResult(loss=total / step.num_targets, grad_norm=grad_norm, skipped=skipped)

    def _plain_norm(self) -> float:
        """Norm of the reduced gradients where DeepSpeed does not wrap the optimizer, and so does not compute it."""
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
        """Moments and their count of updates start from zero again."""
        for piece in self._slices():
            piece.step.zero_()
            for moment in piece.moments.values():
                moment.zero_()

    @contextmanager
    def whole_model(self) -> Iterator[tuple[LoopedGPT, StopClassifier | None]]:
        """The model to answer with, and its stop classifier: this rank's tensor-parallel part, not cut by ZeRO.
        Collective."""
        if self.config.engine.zero_stage < 3:
            yield self.model, self._stop
            return
        model = self._build(DTYPES[self.saved.precision])
        whole = Objective(model, self.config.method)
        targets = whole.parameters_by_name()
        with torch.no_grad():
            for name, parameter in self._named.items():
                with deepspeed.zero.GatheredParameters([parameter]):
                    targets[name].data = parameter.detach().clone()
        whole.to(self.groups.device)
        yield whole.model, whole.stop

    def weights(self) -> list[Piece]:
        """This rank's fp32 weights, as pieces of a checkpoint."""
        return [self._piece(_stored(piece.name), piece, piece.master) for piece in self._owned_slices()]

    def pieces(self) -> list[Piece]:
        """This rank's weights and moments, as pieces of a checkpoint."""
        moments = [
            self._piece(f"optimizer/{moment}/{piece.name}", piece, piece.moments[moment])
            for piece in self._owned_slices()
            for moment in MOMENTS
        ]
        return self.weights() + moments

    def meta(self) -> dict[str, Any]:
        """What else a resumed run needs, as JSON values."""
        step = next((float(piece.step) for piece in self._slices()), 0.0)
        counts: list[float | None] = [None] * dist.get_world_size()
        dist.all_gather_object(counts, step)
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        scale = (
            {key: value for key, value in vars(scaler).items() if isinstance(value, (int, float, bool))}
            if scaler
            else {}
        )
        return {"updates_since_reset": max(count for count in counts if count is not None), "loss_scaler": scale}

    @torch.no_grad()
    def load(self, reader: CheckpointReader, meta: dict[str, Any] | None = None) -> None:
        """Take weights and, with the `meta` of a checkpoint of fine-tuning, everything else that training goes on with.

        Raises:
            ValueError: the checkpoint is of another model.
            OSError: it cannot be read.
        """
        names = {name for name in self._named if meta is not None or not name.startswith("stop/")}
        for piece in self._slices():
            if piece.name not in names:
                continue
            reader.load([self._piece(_stored(piece.name), piece, piece.master)])
            if meta is not None:
                reader.load(
                    [
                        self._piece(f"optimizer/{moment}/{piece.name}", piece, tensor)
                        for moment, tensor in piece.moments.items()
                    ]
                )
                piece.step.fill_(meta["updates_since_reset"])
            if hasattr(piece.parameter, "ds_tensor"):
                ds_tensor = piece.parameter.ds_tensor  # type: ignore[attr-defined]
                ds_tensor.data.view(-1)[: piece.master.numel()].copy_(piece.master)
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
        """The slices that this rank saves: those of weights that all tensor-parallel or data-parallel ranks hold are
        saved once."""
        is_whole_on_all = self.config.engine.zero_stage == 0 and not hasattr(
            next(iter(self._named.values())), "_hp_mapping"
        )
        for piece in self._slices():
            if is_whole_on_all and self.groups.data.rank():
                continue
            if self.groups.tensor.rank() and self._split_dim(piece.name) is None:
                continue
            yield piece

    def _piece(self, name: str, piece: StateSlice, tensor: torch.Tensor) -> Piece:
        dim, index, count = self._part(piece.name)
        return Piece(
            name=name, tensor=tensor, shape=self._shapes[piece.name],
            partition_dim=dim, partition_index=index, partition_count=count, start=piece.start,
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
    """Set what DeepSpeed takes from the process and not from its configuration."""
    deepspeed_logger.setLevel(logging.WARNING)
    # it refuses to start without, also where no launcher has set it
    os.environ.setdefault("LOCAL_RANK", str(world_from_environment().local_rank))
    # No extensions: on CPUs it would compile one for inference, under a lock that a killed run leaves behind for all
    # others to wait on. This table of those that this machine could have is a cache of its own, filled at first use.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}


def deepspeed_config(config: FinetuneConfig, layout: Layout, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration. What it would choose by itself and changes a result is set: it would clip at 1.0.

    Args:
        config: of the run.
        layout: how the effective batch lies on the ranks.
        num_parameters: of this rank; no bucket is larger, as each is set aside whole (2 GB by default) in every
            backward pass.
    """
    train, engine = config.train, config.engine
    bucket = min(num_parameters + num_parameters % 2, LARGEST_BUCKET)  # DeepSpeed wants it even
    return {
        "train_batch_size": train.effective_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": layout.micro_batches,
        "gradient_clipping": config.optimizer.clip_grad_norm,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": 0,  # so that every weight is cut alike, and found alike
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16", "initial_scale_power": FIRST_LOSS_SCALE_POWER},
        "steps_per_print": 2**31 - 1,
    }


class _ModelParallel:
    """Our process groups as DeepSpeed asks for them: parts of it by one name, parts by the other."""

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
