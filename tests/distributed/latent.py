"""What ranks run for the latent forward: a model split by megatron-core's layers, loss and gradients of one batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.latent.distillation import distillation_loss, watch_layers
from finetune.latent.forward import LatentBatch, latent_states
from finetune.latent.jacobi import jacobi_states
from pretrain.config.run import RunConfig
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loss import loss_sums
from pretrain.parallel.groups import make_groups
from pretrain.parallel.stage import build_stage, megatron_config
from tests.distributed.cases import Part, make_part, shake_vectors


def supervised_loss(model: LoopedGPT, batch: LatentBatch, states: Tensor) -> Tensor:
    return loss_sums(model, states.flatten(0, 1)[batch.supervised], batch.labels.flatten()[batch.supervised])[0]


def sequential(model: LoopedGPT, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int) -> Tensor:
    return supervised_loss(model, batch, latent_states(model, batch, num_slots, num_loops))


def parallel(model: LoopedGPT, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int) -> Tensor:
    return supervised_loss(model, batch, jacobi_states(model, batch, num_slots, 2, num_loops))


def distilled(model: LoopedGPT, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int) -> Tensor:
    assert batch.answer is not None and teacher.answer is not None
    with watch_layers(model, batch.answer) as student:
        states = latent_states(model, batch, num_slots, num_loops)
    with watch_layers(model, teacher.answer) as taught:
        whole = latent_states(model, teacher, 0, num_loops)
    pull = distillation_loss(student, taught, batch.answer)
    return supervised_loss(model, batch, states) + supervised_loss(model, teacher, whole) + pull


Loss = Callable[[LoopedGPT, LatentBatch, LatentBatch, int, int], Tensor]


def loss_and_gradients(
    config: RunConfig, loss_of: Loss, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int
) -> tuple[float, list[Part]]:
    """On every rank of a world of `parallel.tensor` ranks: the loss, and this rank's part of every gradient."""
    groups, dtype = make_groups(config.parallel, torch.device("cpu")), DTYPES[config.train.precision]
    model = build_stage(config, megatron_config(config, dtype), groups)
    rank, size = groups.tensor.rank(), groups.tensor.size()
    initialise(model, config.run.seed, rank)
    model.to(dtype)
    shake_vectors(model, rank, size)
    loss = loss_of(model, batch, teacher, num_slots, num_loops)
    loss.backward()
    parts = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        parts.append(make_part(model, groups, name, parameter.grad))
    return loss.item(), parts
