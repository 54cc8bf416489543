"""DeepNorm's and DeepLoop's residual scale against their definition, norm(α·x + f(x)), and their first weights."""

import math

import pytest
import torch

from pretrain.hf.modeling_looped_gpt import LoopedGPTConfig, LoopedGPTForCausalLM
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loop.per_loop.this import ALIKE
from pretrain.model.loop.recurrence import Application
from tests.unit.model.test_model import LLAMA, SEQ, build, random_tokens

EXPONENTS = pytest.mark.parametrize(("scale", "exponent"), [("deep_norm", 0.25), ("deep_loop", 0.5)])
SHAPE = {"num_prelude_layers": 1, "num_loop_layers": 2, "num_loops": 4, "norm_place": "sum"}


@EXPONENTS
def test_a_layer_is_that_of_the_papers(scale: str, exponent: float) -> None:
    model = build(LLAMA, **SHAPE, loop={"residual_scale": scale}, norm_epsilon=1e-30)
    context, states = model.context(random_tokens()), torch.randn(3 * SEQ, LLAMA.hidden_size, dtype=torch.float64)
    layer, application = model.loop["1"], Application(2, 0)
    alpha = (2 * 2 * 4) ** exponent  # N = k·L; prelude and coda do not count
    middle = layer.attention_norm(alpha * states + layer.attention(states, context, application, ALIKE))
    expected = layer.ffn_norm(alpha * middle + layer.ffn(middle, ALIKE))
    torch.testing.assert_close(layer(states, context, application), expected, rtol=1e-12, atol=1e-12)


@EXPONENTS
def test_its_first_weights_are_smaller(scale: str, exponent: float) -> None:
    """In training and in the exported class: β of what makes the update; but not of gates, nor outside the loop."""
    wide = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "ffn_size": 256, "vocab_size": 512}
    shape = {**wide, **SHAPE, "loop": {"residual_scale": scale}, "init_std": 0.02}
    ours = LoopedGPT(ModelSection.model_validate(shape), SEQ)
    initialise(ours, seed=0)
    beta, usual = (8 * 2 * 4) ** -exponent, 1 / math.sqrt(2 * 9)
    factors = {"value": beta, "output": beta, "up": beta, "down": beta}
    for model in (ours, LoopedGPTForCausalLM(LoopedGPTConfig(**shape))):
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                matrix = name.split(".")[-2]
                outside = usual if matrix in ("output", "down") else 1.0
                factor = factors.get(matrix, 1.0) if name.startswith("loop.") else outside
                assert math.isclose(parameter.std().item(), 0.02 * factor, rel_tol=0.05), name


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_it_needs_a_norm_of_the_sum(place: str) -> None:
    values = LLAMA.model_dump() | {"norm_place": place, "loop": {"residual_scale": "deep_loop"}}
    with pytest.raises(ValueError, match=rf"residual_scale=deep_loop is for .*norm_place={place} does not"):
        ModelSection.model_validate(values)
