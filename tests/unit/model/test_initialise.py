"""Initial weights: their scale, and that they depend on the seed and the name alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pretrain.config.model import ModelSection
from pretrain.model.gpt import LoopedGPT, Stage
from pretrain.model.initialise import initialise
from pretrain.model.modules import PLAIN, Modules

CONFIG = ModelSection(
    vocab_size=256,
    hidden_size=128,
    num_attention_heads=4,
    ffn_size=256,
    num_prelude_layers=1,
    num_loop_layers=2,
    num_coda_layers=1,
    num_loops=3,
    bias="all",
    init_std=0.05,
)


def build(config: ModelSection = CONFIG, seed: int = 0, stage: Stage | None = None) -> LoopedGPT:
    model = LoopedGPT(config, 16, stage=stage)
    initialise(model, seed)
    return model


def test_scale_of_every_tensor() -> None:
    into_stream = ("attention.output.weight", "ffn.down.weight")
    depth = 1 + 2 * 3 + 1
    for name, parameter in build().named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            std = 0.05 / math.sqrt(2 * depth) if name.endswith(into_stream) else 0.05
            assert abs(parameter.std().item() / std - 1) < 0.03, name
            assert abs(parameter.mean().item()) < 0.03 * std, name


def test_tensors_differ_from_each_other_and_by_seed() -> None:
    firsts = [
        parameter.flatten()[0].item()
        for seed in (0, 1)
        for parameter in build(seed=seed).parameters()
        if parameter.dim() == 2
    ]
    assert len(set(firsts)) == len(firsts)


def test_the_same_seed_gives_the_same_weights() -> None:
    state = build().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in build().state_dict().items())


@pytest.mark.parametrize("index", [0, 1])
def test_a_pipeline_stage_has_its_part_of_the_whole(index: int) -> None:
    whole = build().state_dict()
    part = build(stage=Stage(index=index, count=2)).state_dict()
    assert 0 < len(part) < len(whole)
    assert all(torch.equal(value, whole[name]) for name, value in part.items())


def split_modules(size: int) -> Modules:
    """Plain modules of 1/size of the width, marked the way tensor-parallel layers mark their parameters."""

    def mark(module: nn.Module, **dims: int) -> nn.Module:
        for name, dim in dims.items():
            parameter = getattr(module, name)
            if parameter is not None:
                parameter.tensor_model_parallel, parameter.partition_dim = True, dim
        return module

    return replace(
        PLAIN,
        size=size,
        column=lambda inputs, outputs, bias: mark(PLAIN.column(inputs, outputs // size, bias), weight=0, bias=0),
        row=lambda inputs, outputs, bias: mark(PLAIN.row(inputs // size, outputs, bias), weight=1),
        embedding=lambda rows, width: mark(PLAIN.embedding(rows // size, width), weight=0),
    )


@pytest.mark.parametrize("size", [2, 4])
def test_tensor_parallel_parts_make_up_the_whole(size: int) -> None:
    parts = []
    for rank in range(size):
        model = LoopedGPT(CONFIG, 16, split_modules(size))
        initialise(model, 0, rank)
        parts.append(dict(model.named_parameters()))
    for name, whole in build().named_parameters():
        dim = getattr(parts[0][name], "partition_dim", None)
        if dim is None:
            assert all(torch.equal(part[name], whole) for part in parts), name
        else:
            assert torch.equal(torch.cat([part[name] for part in parts], dim), whole), name
