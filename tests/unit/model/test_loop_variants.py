"""What must hold for every variant of the loop on one device; on many: `tests/distributed/test_loop_variants.py`."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model.config import ModelSection
from pretrain.model.count import count_parameters, count_shared, forward_flops_per_token
from pretrain.model.gpt import LoopedGPT
from pretrain.model.hashed_numbers import normal, row_keys
from pretrain.model.initialise import initialise
from pretrain.model.layers import KeyValueCache
from pretrain.model.loop.recurrence import Stage
from pretrain.model.loop.tables import PER_LOOP
from pretrain.model.loss import loss_sums
from pretrain.model.weights import loop_design
from tests.support.loop_designs import DESIGNS, MODELS, NEUTRAL, SAME_LOGITS
from tests.unit.model.test_model import LLAMA, OLMO2, SEQ, assert_same, build, gradients, random_tokens

ENDS: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 2}
designs = pytest.mark.parametrize("name", DESIGNS)
num_loops = pytest.mark.parametrize("num_loops", [1, 3])  # 3 is beyond the loops that have weights of their own


def shaken(name: str, family: ModelSection = LLAMA) -> LoopedGPT:
    """A model of a design whose weights have all left their initial values."""
    model = build(family, **ENDS, **MODELS[name])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 2 and model.weights[key].init in ("zeros", "ones"):
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@designs
@num_loops
def test_cached_equals_uncached_with_gradients(name: str, num_loops: int) -> None:
    model, tokens = shaken(name), random_tokens()
    whole = model(tokens, num_loops)
    cache, parts = KeyValueCache(), []
    for first, last in ((0, 5), (5, 6), (6, SEQ)):
        parts.append(model(tokens[:, first:last], num_loops, cache=cache).view(3, last - first, -1))
    pieces = torch.cat(parts, dim=1).flatten(0, 1)
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-10)
    labels = tokens.roll(-1, 1)
    assert_same(
        gradients(model, loss_sums(model, pieces, labels)[0]), gradients(model, loss_sums(model, whole, labels)[0])
    )


@designs
def test_all_depths_of_one_pass_are_those_of_passes_alone(name: str) -> None:
    model, tokens = shaken(name), random_tokens()
    context = model.context(tokens)
    states, carried = model.begin(tokens, context)
    for loop in range(4):
        states = model.run_loop(model.enter(states, carried, loop), context, loop)
        torch.testing.assert_close(
            model.finish(states, context, loop + 1), model(tokens, loop + 1), rtol=1e-12, atol=1e-12
        )


@designs
def test_a_row_is_the_same_in_any_batch(name: str) -> None:
    model, tokens = shaken(name), random_tokens()
    whole = model(tokens, 3).view(3, SEQ, -1)
    for row in range(3):
        torch.testing.assert_close(model(tokens[row : row + 1], 3), whole[row], rtol=1e-10, atol=1e-10)


@designs
@pytest.mark.parametrize("family", [LLAMA, OLMO2], ids=["llama", "olmo2"])
def test_it_differs_from_the_plain_loop_in_what_it_says(name: str, family: ModelSection) -> None:
    """With random weights every variant matters; those that begin neutral equal the plain loop before."""
    plain, tokens = build(family, **ENDS), random_tokens()
    if name in NEUTRAL:
        model = build(family, **ENDS, **MODELS[name])
        shared = plain.state_dict()
        model.load_state_dict(shared, strict=False)
        assert torch.equal(model(tokens, 3), plain(tokens, 3))
    model = shaken(name, family)
    model.load_state_dict(plain.state_dict(), strict=False)
    assert torch.allclose(model(tokens, 3), plain(tokens, 3)) == (name in SAME_LOGITS)


@designs
def test_what_all_loops_apply_is_no_more_with_more_loops(name: str) -> None:
    """And is what the layers hold, where no loop has weights for itself."""
    given = LLAMA.model_dump() | ENDS | MODELS[name]
    few, many = (ModelSection.model_validate(given | {"num_loops": loops}) for loops in (2, 5))
    assert count_shared(few, SEQ) == count_shared(many, SEQ) <= count_parameters(few, SEQ)["loop"]
    if count_parameters(few, SEQ) == count_parameters(many, SEQ):
        assert count_shared(few, SEQ) == count_parameters(few, SEQ)["loop"]


@designs
@num_loops
def test_parameters_and_flops_are_those_of_the_module(name: str, num_loops: int) -> None:
    model, tokens = shaken(name), random_tokens()
    assert sum(count_parameters(model.config, SEQ).values()) == sum(each.numel() for each in model.parameters())
    mask = torch.ones(1, 1, SEQ, SEQ, dtype=torch.bool).tril()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(tokens, num_loops, mask=mask))
    attention = 4 * SEQ * model.config.num_attention_heads * model.config.head_dim
    counted = forward_flops_per_token(model.config, SEQ, num_loops)
    kernel = attention * model.config.effective_depth(num_loops)  # the fused kernel is not seen on a CPU
    windows = [model.config.window_of(loop) for loop in range(num_loops)]
    kernel += sum(2 * window / SEQ * attention for window in windows if window) * model.config.num_loop_layers
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(counted - kernel, rel=1e-9)


@designs
def test_another_default_loop_count_leaves_the_model_as_it_was_made(name: str) -> None:
    model, tokens = shaken(name), random_tokens()
    moved = LoopedGPT(model.config.at_loops(5), SEQ).double()
    moved.load_state_dict(model.state_dict())
    assert moved.config.num_loops == 5 and torch.equal(moved(tokens, 3), model(tokens, 3))


@pytest.mark.parametrize("name", [name for name in PER_LOOP if name != "none"])
def test_beyond_the_trained_loops_the_last_repeats_or_a_wave_goes_on(name: str) -> None:
    """As the variants say: a pass has the weights of the last loop that has any, for each loop after it."""
    model, tokens = shaken(name), random_tokens()  # of two loops
    context = model.context(tokens)
    states, carried = model.begin(tokens, context)
    first, last, later = (model.run_loop(model.enter(states, carried, n), context, n) for n in (0, 1, 4))
    assert not torch.allclose(first, last)
    assert torch.equal(last, later) == (name != "adaln")


def test_scales_and_weights_are_for_the_loops_that_it_was_made_for() -> None:
    loop = {"residual_scale": "inverse", "per_loop": "embedding", "made_for": 7}
    design = loop_design(ModelSection.model_validate(LLAMA.model_dump() | {"num_loops": 2, "loop": loop}))
    factored = ModelSection.model_validate(
        LLAMA.model_dump() | {"num_loops": 3, "num_loop_layers": 4, "loop": {"residual_scale": "factored"}}
    )
    assert loop_design(factored).update_scale == 1 / (3 * 2)
    assert design.update_scale == 1 / 7 and design.weights()["per_loop.embedding"].shape == (7, LLAMA.hidden_size)


@designs
def test_the_start_of_a_stage_alone_is_that_of_the_whole(name: str) -> None:
    """Weights are drawn by their names: a stage of two has those of the whole model."""
    config = ModelSection.model_validate(LLAMA.model_dump() | ENDS | MODELS[name])
    whole = LoopedGPT(config, SEQ)
    initialise(whole, seed=1)
    for index in range(2):
        stage = LoopedGPT(config, SEQ, stage=Stage(index=index, count=2))
        initialise(stage, seed=1)
        for key, parameter in stage.named_parameters():
            assert torch.equal(parameter, whole.get_parameter(key)), key


def test_the_diagonal_state_stays_bounded() -> None:
    """However often it loops, without layers between: a weighted mean of the start and of a constant input."""
    design = loop_design(ModelSection.model_validate(LLAMA.model_dump() | {"loop": DESIGNS["diagonal"]}))
    rate = torch.tensor([-30.0, -1.0, 0.0, 4.0, 60.0], dtype=torch.float64)
    held = {"rate": rate, "gain": torch.ones(5, dtype=torch.float64)}
    states, carried = torch.full((1, 5), 3.0, dtype=torch.float64), torch.full((1, 5), -1.0, dtype=torch.float64)
    for loop in range(1000):
        states = design.injection.enter(held, states, carried, loop)
        assert (states >= -1).all() and (states <= 3).all()
    torch.testing.assert_close(states[0, 1:], torch.full((4,), -1.0, dtype=torch.float64))


@pytest.mark.parametrize("drive", ["scaled", "free"])
def test_a_pass_of_the_diagonal_system_is_its_solution(drive: str) -> None:
    """exp of [[-r, c], [0, 0]] takes (x, e) over one unit of time of dx/dt = -r x + c e with e held."""
    loop = {"injection": "diagonal", "diagonal": {"drive": drive}}
    design = loop_design(ModelSection.model_validate(LLAMA.model_dump() | {"loop": loop}))
    rate = torch.tensor([-30.0, -2.0, 0.0, 3.0, 40.0], dtype=torch.float64)
    gain = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    x, e = (torch.randn(5, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (0, 1))
    weights: Any = {"rate": rate, "gain": gain}
    entered = design.injection.enter(weights, x[None], e[None], 1)[0]
    for r, g, before, held, after in zip(torch.nn.functional.softplus(rate), gain, x, e, entered, strict=True):
        drives = g * r if drive == "scaled" else g
        system = torch.tensor([[-r, drives], [0.0, 0.0]], dtype=torch.float64)
        solution = torch.linalg.matrix_exp(system) @ torch.stack((before, held))
        torch.testing.assert_close(after, solution[0], rtol=1e-10, atol=1e-12)


def test_noise_that_is_cut_off_is_what_is_left_of_a_normal_distribution() -> None:
    """Its numbers keep their order, and have the moments of the truncated one."""
    loop = {"start": "noise", "injection": "concat", "injection_at": "every", "noise": {"std": 0.5, "within": 1.5}}
    design = loop_design(ModelSection.model_validate(LLAMA.model_dump() | {"loop": loop}))
    drawn = normal(torch.arange(64, dtype=torch.int32), torch.arange(64)[None], 64, torch.float64)
    begun = design.start.begin(drawn, lambda like: like)
    assert begun.abs().max() < 0.75 and torch.equal(begun.flatten().argsort(), drawn.flatten().argsort())
    density, share = math.exp(-(1.5**2) / 2) / math.sqrt(2 * math.pi), math.erf(1.5 / math.sqrt(2))
    assert begun.std() / 0.5 == pytest.approx(math.sqrt(1 - 3 * density / share), rel=0.005)


def test_noise_is_normal_and_a_function_of_row_and_position() -> None:
    tokens = torch.randint(100, (64, 32), generator=torch.Generator().manual_seed(0))
    rows, positions = row_keys(tokens, salt=5), torch.arange(32)[None]
    assert len(set(rows.tolist())) == 64 and not torch.equal(rows, row_keys(tokens, salt=6))
    noise = normal(rows, positions, 128, torch.float64)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1  # the kurtosis of a normal distribution
    for one, other in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]), (noise[..., 1:], noise[..., :-1])):
        assert abs((one * other).mean()) < 0.01
    assert torch.equal(normal(rows[3:4], positions[:, 7:9], 128, torch.float64), noise[3:4, 7:9])
