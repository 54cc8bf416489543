"""Loop counts: golden draws, ranges, and distributions against their closed forms."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.loop_sampling import GrowthSection, LoopSamplingSection
from pretrain.config.run import RunConfig, TrainSection
from pretrain.model.config import ModelSection
from pretrain.optim.loop_count import (
    backprop_loops_at,
    mean_loops,
    num_loops_at,
    regulariser_share_at,
    short_loops_at,
    step_loops,
)

NUM_DRAWS = 20_000


def draws(num_loops: int, sampling: LoopSamplingSection, *, seed: int = 0, count: int = NUM_DRAWS) -> list[int]:
    model, train = ModelSection(num_loops=num_loops), TrainSection(loop_sampling=sampling, steps=count)
    return [num_loops_at(model, train, seed, step) for step in range(count)]


def chi_square(observed: Counter[int], probabilities: dict[int, float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom, with cells of fewer than 5 expected draws put together."""
    total = observed.total()
    rare = [cell for cell, probability in probabilities.items() if probability * total < 5]
    cells = [([cell], probabilities[cell]) for cell in probabilities if cell not in rare]
    if rare:
        cells.append((rare, sum(probabilities[cell] for cell in rare)))
    statistic = sum((sum(observed[cell] for cell in group) - p * total) ** 2 / (p * total) for group, p in cells)
    return statistic, len(cells) - 1


def chi_square_limit(freedom: int) -> float:
    """Value that the statistic exceeds once in about a million draws (Wilson and Hilferty 1931, at 4.75 deviations)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3


def poisson_lognormal(mean: float, sigma: float, largest: int) -> dict[int, float]:
    """P(1 + Poisson(rate), cut to `largest`) with a log-normal rate of the given mean, integrated over its normal; with
    sigma 0 that of a plain Poisson."""
    probabilities = dict.fromkeys(range(1, largest + 1), 0.0)
    width = 0.01
    for cell in range(-800, 801):
        normal = cell * width
        weight = width * math.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi)
        log_rate = math.log(mean) - sigma**2 / 2 + sigma * normal
        below = 0.0
        for count in range(largest - 1):
            probability = math.exp(count * log_rate - math.exp(log_rate) - math.lgamma(count + 1))
            probabilities[count + 1] += weight * probability
            below += probability
        probabilities[largest] += weight * max(0.0, 1 - below)
    return probabilities


def test_golden_draws() -> None:
    """These values may never change: a resumed run, and a paper's run, depend on them."""
    uniform = LoopSamplingSection(distribution="uniform", minimum=1, maximum=8)
    huginn = LoopSamplingSection(distribution="poisson_lognormal", minimum=1, maximum=64)
    assert draws(4, uniform, seed=7, count=16) == [5, 6, 2, 8, 3, 1, 4, 6, 4, 4, 8, 7, 2, 1, 1, 4]
    assert draws(8, huginn, seed=7, count=16) == [19, 12, 5, 3, 7, 2, 6, 9, 12, 12, 9, 10, 8, 9, 2, 9]
    assert draws(8, huginn, seed=8, count=16) == [7, 5, 8, 4, 4, 13, 9, 5, 17, 6, 16, 4, 11, 17, 7, 9]


def test_fixed_is_the_model_s_count() -> None:
    assert set(draws(5, LoopSamplingSection(), count=50)) == {5}


@given(
    st.integers(0, 2**40),
    st.integers(0, 10**9),
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(1, 60),
    st.floats(0, 3),
)
def test_counts_stay_in_range(seed: int, step: int, minimum: int, span: int, mean: int, sigma: float) -> None:
    for distribution in ("uniform", "poisson", "poisson_lognormal"):
        sampling = LoopSamplingSection(distribution=distribution, minimum=minimum, maximum=minimum + span, sigma=sigma)
        train = TrainSection(loop_sampling=sampling)
        assert minimum <= num_loops_at(ModelSection(num_loops=mean), train, seed, step) <= minimum + span


def test_uniform_counts_are_equally_likely() -> None:
    observed = Counter(draws(1, LoopSamplingSection(distribution="uniform", minimum=2, maximum=8)))
    statistic, freedom = chi_square(observed, dict.fromkeys(range(2, 9), 1 / 7))
    assert statistic < chi_square_limit(freedom)


@pytest.mark.parametrize(
    ("distribution", "mean", "sigma"),
    [("poisson_lognormal", 4, 0.5), ("poisson_lognormal", 32, 0.5), ("poisson_lognormal", 6, 0.0), ("poisson", 6, 0.0)],
)
def test_poisson_counts_follow_their_law(distribution: str, mean: int, sigma: float) -> None:
    largest = 8 * mean
    given = {"distribution": distribution, "maximum": largest, "sigma": sigma}
    observed = Counter(draws(mean, LoopSamplingSection.model_validate(given)))
    law = poisson_lognormal(mean - 1, sigma, largest)
    assert sum(law.values()) == pytest.approx(1, abs=1e-6)
    assert sum(count * probability for count, probability in law.items()) == pytest.approx(mean, rel=1e-3)
    statistic, freedom = chi_square(observed, law)
    assert statistic < chi_square_limit(freedom)


def test_a_mean_of_one_loop_is_one_loop() -> None:
    assert set(draws(1, LoopSamplingSection(distribution="poisson_lognormal"), count=50)) == {1}


@pytest.mark.parametrize("distribution", ["uniform", "poisson", "poisson_lognormal"])
def test_neighbouring_steps_and_seeds_are_unrelated(distribution: str) -> None:
    sampling = LoopSamplingSection.model_validate({"distribution": distribution, "minimum": 1, "maximum": 64})
    here, other_seed = draws(8, sampling), draws(8, sampling, seed=1)
    for left, right in ((here[:-1], here[1:]), (here, other_seed)):
        assert abs(correlation(left, right)) < 5 / math.sqrt(NUM_DRAWS)


def correlation(left: list[int], right: list[int]) -> float:
    left_mean, right_mean = sum(left) / len(left), sum(right) / len(right)
    products = sum((x - left_mean) * (y - right_mean) for x, y in zip(left, right, strict=True))
    return products / math.sqrt(sum((x - left_mean) ** 2 for x in left) * sum((y - right_mean) ** 2 for y in right))


# --- growth over the steps --------------------------------------------------------------------------------------------


def test_a_count_grows_between_two_shares_of_the_steps() -> None:
    growth = GrowthSection(start=2, begin=0.5, end=0.8)
    counts = draws(4, LoopSamplingSection(growth=growth), count=100)
    assert counts == [2] * 58 + [3] * 15 + [4] * 27  # a line from 2 at step 50 to 4 at step 80, rounded
    assert draws(4, LoopSamplingSection(growth=GrowthSection(start=1, begin=0.5, end=0.5)), count=4) == [1, 1, 4, 4]


@pytest.mark.parametrize("distribution", ["fixed", "uniform", "poisson", "poisson_lognormal"])
def test_the_mean_that_is_planned_is_that_of_the_draws(distribution: str) -> None:
    given = {"distribution": distribution, "maximum": 64, "growth": {"start": 2, "begin": 0.25, "end": 0.75}}
    sampling = LoopSamplingSection.model_validate(given)
    counts = draws(16, sampling)
    train = TrainSection(loop_sampling=sampling, steps=NUM_DRAWS)
    assert mean_loops(ModelSection(num_loops=16), train) == pytest.approx(sum(counts) / NUM_DRAWS, rel=0.02)
    early, late = counts[: NUM_DRAWS // 4], counts[-NUM_DRAWS // 4 :]
    assert sum(late) > 7 * sum(early)
    full = draws(16, sampling.model_copy(update={"growth": GrowthSection()}))
    assert counts[-NUM_DRAWS // 4 :] == full[-NUM_DRAWS // 4 :]


@pytest.mark.parametrize(
    ("sampling", "line"),
    [
        ({"growth": {"start": 4}}, r"train\.loop_sampling\.growth\.start=4 must be below model\.num_loops=4"),
        (
            {"distribution": "uniform", "maximum": 8, "growth": {"start": 8}},
            r"train\.loop_sampling\.growth\.start=8 must be below train\.loop_sampling\.maximum=8",
        ),
        (
            {"distribution": "uniform", "minimum": 3, "maximum": 8, "growth": {"start": 2}},
            r"train\.loop_sampling\.growth\.start=2 is below minimum=3",
        ),
        ({"growth": {"start": 1, "begin": 0.9, "end": 0.1}}, r"begins at 0\.9 of the steps, after its end at 0\.1"),
    ],
)
def test_growth_that_cannot_be_is_refused(sampling: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        RunConfig.model_validate({"model": {"num_loops": 4}, "train": {"loop_sampling": sampling}})


# --- how far back gradients go ----------------------------------------------------------------------------------------


def test_the_backward_depth_is_warmed_up_as_the_loops_are() -> None:
    assert backprop_loops_at(TrainSection(), 0) is None
    assert backprop_loops_at(TrainSection(backprop_loops=3), 0) == 3
    growing = TrainSection(backprop_loops=3, backprop_growth=GrowthSection(start=1, end=0.5), steps=8)
    assert [backprop_loops_at(growing, step) for step in range(8)] == [1, 2, 2, 3, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("model", "train", "line"),
    [
        ({}, {}, r"train\.backprop_loops=2 with up to 4 loops leaves prelude and embedding .*injection=none"),
        ({"loop": {"injection": "add", "injection_at": "first"}}, {}, r"model\.loop\.injection_at=first: let"),
        (
            {"loop": {"injection": "add"}},
            {"backprop_growth": {"start": 2}},
            r"train\.backprop_growth\.start=2 must be below train\.backprop_loops=2",
        ),
        (
            {"num_loops": 1, "num_loop_layers": 4, "loop_regulariser": {"weight": 1.0, "block_size": 2}},
            {},
            r"train\.backprop_loops=2: a block-regularised model has no loops",
        ),
    ],
)
def test_a_cut_that_leaves_weights_alone_is_refused(model: dict, train: dict, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        RunConfig.model_validate({"model": {"num_loops": 4, **model}, "train": {"backprop_loops": 2, **train}})


# --- the weight of the loop regulariser -------------------------------------------------------------------------------


def test_the_weight_of_the_regulariser_grows_over_a_share_of_the_steps() -> None:
    def shares(warmup: float, steps: int) -> list[float]:
        model = ModelSection.model_validate(
            {"num_loop_layers": 4, "loop_regulariser": {"weight": 2.0, "block_size": 2, "warmup": warmup}}
        )
        train = TrainSection(steps=steps)
        found = [regulariser_share_at(model, train, step) for step in range(steps)]
        assert found == [step_loops(model, train, 0, step, 0).regulariser_share for step in range(steps)]
        return found

    assert shares(0.5, 8) == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert shares(1.0, 4) == [0, 0.25, 0.5, 0.75]
    assert shares(0.1, 3) == [0, 1, 1]  # less than a step
    assert shares(0.0, 3) == [1, 1, 1]


# --- a count of its own for each sequence -----------------------------------------------------------------------------


def test_a_sequence_keeps_its_count_whatever_the_batch() -> None:
    """It is that of a sample of the run, so neither ranks nor the size of the batch matter."""
    sampling = LoopSamplingSection(distribution="uniform", maximum=8, per="sequence")
    model = ModelSection(num_loops=4)

    def counts(global_batch: int, first_sample: int) -> list[int]:
        train = TrainSection(loop_sampling=sampling, global_batch=global_batch)
        loops = step_loops(model, train, 7, 0, first_sample)
        assert loops.mean == sum(loops.counts) / global_batch
        return list(loops.counts)

    assert counts(16, 0) == [5, 6, 2, 2, 3, 7, 5, 8, 4, 5, 3, 6, 8, 6, 4, 3]  # may never change, as golden draws above
    assert counts(8, 0) + counts(8, 8) == counts(16, 0)
    per_step = step_loops(model, TrainSection(global_batch=4), 7, 0, 12)
    assert (per_step.counts, per_step.mean) == ([4] * 4, 4)


def test_a_short_run_has_fewer_loops_than_its_step() -> None:
    """Each count equally likely; by seed and step alone."""
    drawn = [short_loops_at(4, 7, step) for step in range(3000)]
    assert [drawn.count(loops) / 3000 for loops in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert [short_loops_at(loops, 7, 0) for loops in (1, 2)] == [1, 1]
    step = step_loops(ModelSection(num_loops=4), TrainSection(), 7, 11, 0)
    assert step.short_loops == drawn[11] == short_loops_at(4, 7, 11)


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"backprop_loops": 2}, r"train\.backprop_loops=2 counts back from the last loop of a step"),
        ({"loop_loss": {"over": "every"}}, r"train\.loop_loss\.over=every needs the same loops for all sequences"),
        ({"loop_loss": {"over": "consistent"}}, r"train\.loop_loss\.over=consistent needs the same loops"),
    ],
)
def test_what_needs_one_count_for_all_sequences_is_refused(train: dict, line: str) -> None:
    sampling = {"distribution": "uniform", "maximum": 8, "per": "sequence"}
    with pytest.raises(ValueError, match=line):
        RunConfig.model_validate(
            {"model": {"loop": {"injection": "add"}}, "train": {"loop_sampling": sampling, **train}}
        )
