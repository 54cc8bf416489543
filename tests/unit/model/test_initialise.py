"""Initial weights: their scale, and that they depend on the seed and the name alone."""

import math
from dataclasses import replace

import pytest
import torch

from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loop.recurrence import WHOLE, Stage
from pretrain.model.parallel_ops import PLAIN, ParallelOps
from pretrain.model.weight_kinds import Weights

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


def build(config: ModelSection = CONFIG, seed: int = 0, stage: Stage = WHOLE) -> LoopedGPT:
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


def split_ops(size: int) -> ParallelOps:
    """Plain modules of the part that one of `size` ranks holds."""

    def held(weights: Weights) -> Weights:
        return {name: replace(weight, shape=weight.held_shape(size)) for name, weight in weights.items()}

    return replace(
        PLAIN,
        size=size,
        linear=lambda weights: PLAIN.linear(held(weights)),
        embedding=lambda weights, scale: PLAIN.embedding(held(weights), scale),
    )


@pytest.mark.parametrize("size", [2, 4])
def test_tensor_parallel_parts_make_up_the_whole(size: int) -> None:
    parts, model = [], build()
    for rank in range(size):
        part = LoopedGPT(CONFIG, 16, split_ops(size))
        initialise(part, 0, rank)
        parts.append(dict(part.named_parameters()))
    for name, whole in model.named_parameters():
        dim = model.weights[name].split
        if dim is None:
            assert all(torch.equal(part[name], whole) for part in parts), name
        else:
            assert torch.equal(torch.cat([part[name] for part in parts], dim), whole), name
