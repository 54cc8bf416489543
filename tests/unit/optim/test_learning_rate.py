"""The learning rate: bounds, end points, continuity and the shapes."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import FinetuneOptimizerSection
from pretrain.config.run import OptimizerSection
from pretrain.optim.learning_rate import learning_rate

SHAPES = ("cosine", "linear", "constant", "wsd")


@st.composite
def schedules(draw: st.DrawFn) -> tuple[OptimizerSection, int]:
    num_steps = draw(st.integers(2, 3000))
    config = OptimizerSection(
        lr=draw(st.floats(1e-5, 1.0)),
        min_lr_ratio=draw(st.floats(0, 1)),
        schedule=draw(st.sampled_from(SHAPES)),
        warmup_steps=draw(st.integers(0, num_steps - 1)),
        decay_steps=draw(st.none() | st.integers(1, 2 * num_steps)),
    )
    return config, num_steps


def rates(config: OptimizerSection, num_steps: int) -> list[float]:
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


@given(schedules())
def test_rises_to_the_peak_then_falls_to_the_floor(case: tuple[OptimizerSection, int]) -> None:
    config, num_steps = case
    values = rates(config, num_steps)
    warmup, rest = values[: config.warmup_steps], values[config.warmup_steps :]
    assert all(0 < rate <= config.lr * (1 + 1e-12) for rate in warmup)
    assert warmup == sorted(warmup)
    if warmup:
        assert warmup[-1] == pytest.approx(config.lr)
    assert rest == sorted(rest, reverse=True)
    floor = 1.0 if config.schedule == "constant" else config.min_lr_ratio
    assert rest[-1] == pytest.approx(config.lr * floor, abs=1e-12 * config.lr)


@given(schedules())
def test_no_jump_is_larger_than_the_steepest_slope(case: tuple[OptimizerSection, int]) -> None:
    config, num_steps = case
    fall = num_steps - config.warmup_steps
    if config.schedule == "wsd":
        fall = min(fall, config.decay_steps or math.ceil(num_steps / 5))
    steepest = max(1 / max(config.warmup_steps, 1), math.pi / 2 / fall)
    values = rates(config, num_steps)
    assert all(abs(after - before) <= config.lr * steepest * (1 + 1e-9) for before, after in pairwise(values))


@given(schedules(), st.floats(0.1, 10))
def test_scales_with_the_peak(case: tuple[OptimizerSection, int], factor: float) -> None:
    config, num_steps = case
    scaled = config.model_copy(update={"lr": config.lr * factor})
    step = num_steps // 2
    assert learning_rate(scaled, step, num_steps) == pytest.approx(factor * learning_rate(config, step, num_steps))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.5, 1.0, 0.55 + 0.45 * math.cos(math.pi / 4), 0.55, 0.55 - 0.45 * math.cos(math.pi / 4), 0.1]),
        ("linear", [0.5, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 0.55, 0.1]),
    ],
)
def test_values(schedule: str, expected: list[float]) -> None:
    config = OptimizerSection.model_validate(
        {"lr": 1.0, "schedule": schedule, "warmup_steps": 2, "min_lr_ratio": 0.1, "decay_steps": 2}
    )
    assert rates(config, 6) == pytest.approx(expected)


@given(st.floats(1e-6, 1.0), st.integers(0, 50))
def test_the_rate_of_fine_tuning_is_its_warm_up_and_then_constant(lr: float, warmup: int) -> None:
    schedule = FinetuneOptimizerSection(lr=lr, warmup_steps=warmup).schedule
    expected = [lr * min(1.0, (step + 1) / max(warmup, 1)) for step in range(40)]
    assert rates(schedule, 40) == expected


def test_wsd_decays_over_a_fifth_by_default() -> None:
    values = rates(OptimizerSection(lr=1.0, schedule="wsd", warmup_steps=10), 100)
    assert values[9:80] == [1.0] * 71
    assert values[80] < 1.0


def test_only_the_steps_of_the_run_have_a_rate() -> None:
    with pytest.raises(AssertionError):
        learning_rate(OptimizerSection(), 10, 10)
