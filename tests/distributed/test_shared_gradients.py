"""Gradients of a weight that is used several times are added in fp32 on one stage, whatever the type of the weights."""

from functools import partial

import numpy as np
import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.parallel.optimizer import main_grad
from tests.distributed.cases import Reference, make_engine, make_rows, tiny_config
from tests.distributed.pool import RankPool
from tests.support.learned_injection import learned_injection, with_learned_injection

LOOPS = 6
LAYERS = 2
ENDS = {"num_prelude_layers": 1, "num_coda_layers": 1}


def gradients(config: RunConfig, num_loops: int) -> dict[str, np.ndarray]:
    """By parameter, after one micro-batch forward and backward. Layer i of the loop block starts as layer i modulo
    LAYERS, and the head as the embedding."""
    engine, _ = make_engine(config)
    named = dict(engine.model.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            part, _, rest = name.partition(".")
            number, _, inner = rest.partition(".")
            if part == "loop":
                parameter.copy_(named[f"loop.{int(number) % LAYERS}.{inner}"])
        if "head.weight" in named:
            named["head.weight"].copy_(named["embedding.weight"])
    engine.optimizer.zero_grad()
    inputs = engine.split_rows(make_rows(1))
    engine.ring.run(inputs, num_loops, num_supervised=torch.tensor(1.0))
    return {name: main_grad(parameter).numpy() for name, parameter in named.items()}


def looped_and_copied(tied: bool, recompute: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gradients of a looped model, and of one with a layer of its own for each application."""
    train = {"precision": "bf16", "recompute": recompute}
    looped = tiny_config(model={**ENDS, "num_loop_layers": LAYERS, "num_loops": LOOPS, "tied_head": tied}, train=train)
    copied = tiny_config(model={**ENDS, "num_loop_layers": LAYERS * LOOPS, "num_loops": 1}, train=train)
    return gradients(looped, LOOPS), gradients(copied, 1)


@pytest.mark.parametrize(
    ("tied", "recompute"),
    [(False, "none"), (True, "none"), (False, "loop"), (False, "layer"), (True, "segment"), (False, "segment")],
)
def test_uses_are_added_in_fp32(pool: RankPool, tied: bool, recompute: str) -> None:
    """Bitwise the sum of what the same layers, copied, get; loop weights from the last loop to the first."""
    ((ours, copies),) = pool.run(looped_and_copied, tied, recompute, world_size=1)
    for name, gradient in ours.items():
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        wanted = copies[name]
        if part == "loop":
            wanted = np.zeros_like(gradient)
            for loop in reversed(range(LOOPS)):
                wanted += copies[f"loop.{LAYERS * loop + int(number)}.{inner}"]
        elif tied and name == "embedding.weight":
            wanted = copies["head.weight"] + wanted
        assert gradient.dtype == np.float32
        assert gradient.any(), name
        assert np.array_equal(gradient, wanted), name


def with_an_injection(backprop_loops: int | None, keys: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gradients by the engine and by one backward pass of autograd, in bf16, of a model whose injection has weights,
    used in every loop, and brings the input back into each; through the last loops, or all."""
    with learned_injection():
        unclipped = {"clip_grad_norm": 0.0}
        model = {**ENDS, "loop": {"keys": keys}}
        config = with_learned_injection(tiny_config(model=model, train={"precision": "bf16"}, optimizer=unclipped))
        engine, _ = make_engine(config)
        engine.train_step(make_rows(1), LOOPS, 0.0, backprop_loops=backprop_loops)
        ours = {name: main_grad(parameter).numpy() for name, parameter in engine.model.named_parameters()}
        reference = Reference(config=config)
        reference.model.forward = partial(reference.model.forward, backprop_loops=backprop_loops)
        reference.backward(make_rows(1), LOOPS)
        return ours, {name: gradient.float().numpy() for name, gradient in reference.gradients().items()}


@pytest.mark.parametrize(
    ("backprop_loops", "keys"), [(None, "own"), (1, "own"), (2, "own"), (None, "first"), (None, "every"), (2, "every")]
)
def test_what_is_used_in_later_loops_gets_its_gradient(pool: RankPool, backprop_loops: int | None, keys: str) -> None:
    """What is carried into every loop, and keys and values of an earlier one; to some roundings of bf16, which are
    0.4 % each."""
    ((ours, plain),) = pool.run(with_an_injection, backprop_loops, keys, world_size=1)
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        assert np.linalg.norm(ours[name] - gradient) <= 0.02 * np.linalg.norm(gradient), name
