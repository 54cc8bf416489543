"""What ranks run for the latent forward: a model split by megatron-core's layers, loss and gradients of one batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from finetune.latent.distillation import distillation_loss, watch_layers
from finetune.latent.jacobi import Jacobi
from finetune.latent.lotus import Lotus
from finetune.latent.sequential import Sequential
from pretrain.config.run import RunConfig
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.parallel.groups import make_groups
from pretrain.parallel.stage import build_stage, megatron_config
from tests.distributed.cases import Part, make_part, shake_vectors


def sequential(model: LoopedGPT, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int) -> Tensor:
    return batch.text_loss(model, Sequential().states(model, batch, num_slots, num_loops))[0]


def parallel(model: LoopedGPT, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int) -> Tensor:
    return batch.text_loss(model, Jacobi(2).states(model, batch, num_slots, num_loops))[0]


def refined(model: LoopedGPT, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int) -> Tensor:
    return batch.text_loss(model, Lotus(2).states(model, batch, num_slots, num_loops))[0]


def distilled(model: LoopedGPT, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int) -> Tensor:
    assert batch.answer is not None and teacher.answer is not None
    with watch_layers(model, batch.answer) as student:
        states = Sequential().states(model, batch, num_slots, num_loops)
    with watch_layers(model, teacher.answer) as taught:
        whole = Sequential().states(model, teacher, 0, num_loops)
    pull = distillation_loss(student, taught, batch.answer)
    return batch.text_loss(model, states)[0] + teacher.text_loss(model, whole)[0] + pull


Loss = Callable[[LoopedGPT, LatentBatch, LatentBatch, int, int], Tensor]


def loss_and_gradients(
    config: RunConfig, loss_of: Loss, batch: LatentBatch, teacher: LatentBatch, num_slots: int, num_loops: int
) -> tuple[float, list[Part]]:
    """On every rank of a world of `parallel.tensor` ranks: the loss, and this rank's part of every gradient."""
    groups, dtype = make_groups(config.parallel, torch.device("cpu")), DTYPES[config.train.precision]
    megatron = megatron_config(config.model, config.parallel, dtype)
    model = build_stage(config.model, config.train.seq_len, megatron, groups)
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
