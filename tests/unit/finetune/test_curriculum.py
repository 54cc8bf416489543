"""The curriculum: stages by epoch as the papers have them, cuts that grow, and draws that depend on seed, epoch and
example alone."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.method.curriculum import CurriculumSection, Cut, cut_at, draw_cut, final_stage, num_held_back, stage_at
from finetune.method.methods import METHODS, MethodName

COCONUT, ICOT_METHOD = METHODS["coconut"], METHODS["icot"]
PROSQA = CurriculumSection()
GSM8K = CurriculumSection(num_stages=3, first_stage_epochs=6, epochs_per_stage=3, thoughts_per_step=2)
ICOT = CurriculumSection(num_stages=5, smoothing=0.5)


def test_stages_by_epoch_are_those_of_the_paper() -> None:
    assert [stage_at(PROSQA, COCONUT, epoch) for epoch in (0, 4, 5, 29, 30, 34, 35, 49)] == [0, 0, 1, 5, 6, 6, 7, 7]
    assert [stage_at(GSM8K, COCONUT, epoch) for epoch in (5, 6, 9, 12, 15, 49)] == [0, 1, 2, 3, 4, 4]


def test_each_stage_trades_steps_for_thoughts() -> None:
    assert [cut_at(GSM8K, COCONUT, stage, 5) for stage in range(5)] == [
        Cut(0, 0),
        Cut(1, 2),
        Cut(2, 4),
        Cut(3, 6),
        Cut(5, 6),
    ]
    short = [cut_at(PROSQA, COCONUT, stage, 3) for stage in (2, 3, 6, 7)]
    assert short == [Cut(2, 2), Cut(3, 3), Cut(3, 6), Cut(3, 6)]


def test_tokens_are_removed_in_lots_with_a_few_more() -> None:
    assert [cut_at(ICOT, ICOT_METHOD, stage, 100, 3).removed for stage in range(7)] == [3, 11, 19, 27, 35, 43, 100]
    extras = Counter(draw_cut(ICOT, ICOT_METHOD, 0, 5, example, 1000).removed - 8 for example in range(20_000))
    ratio = math.exp(-ICOT.smoothing)
    for extra in range(4):
        assert extras[extra] / 20_000 == pytest.approx((1 - ratio) * ratio**extra, abs=0.015)


def test_a_gradual_removal_takes_a_token_at_a_time_as_in_the_code_of_icot() -> None:
    """There: from the start, one token more every (steps of an epoch / 8) steps, all of the chain after the 39th."""
    gradual = CurriculumSection(num_stages=5, first_stage_epochs=0, epochs_per_stage=1, gradual=True, smoothing=1e9)
    steps_per_epoch = 100
    for step in range(700):
        epoch, index = divmod(step, steps_per_epoch)
        scheduled = math.floor(8 * step / steps_per_epoch + 1e-9)
        removed = draw_cut(gradual, ICOT_METHOD, 0, epoch, 0, 200, index / steps_per_epoch).removed
        assert removed == (scheduled if scheduled < 40 else 200)
    slow = CurriculumSection(num_stages=2, first_stage_epochs=3, epochs_per_stage=4, gradual=True)
    held = [num_held_back(slow, ICOT_METHOD, epoch, progress) for epoch in range(12) for progress in (0.0, 0.5)]
    assert held == [0] * 6 + [8, 7, 6, 5, 4, 3, 2, 1] * 2 + [0, 0]


def test_smoothing_removes_a_few_tokens_in_the_first_stage_too() -> None:
    cuts = Counter(draw_cut(ICOT, ICOT_METHOD, 0, 0, example, 1000).removed for example in range(20_000))
    assert cuts[0] / 20_000 == pytest.approx(1 - math.exp(-ICOT.smoothing), abs=0.015)


def test_a_uniform_stage_beyond_the_last_one_removes_all_text() -> None:
    """As in the code of Coconut: a chain of 9 steps has 10 stages to draw from, whatever num_stages is."""
    mixed = GSM8K.model_copy(update={"uniform_prob": 1.0})
    drawn = Counter(draw_cut(mixed, COCONUT, 0, 0, example, 9) for example in range(20_000))
    expected = {Cut(0, 0): 1, Cut(1, 2): 1, Cut(2, 4): 1, Cut(3, 6): 1, Cut(9, 6): 6}
    assert drawn.keys() == expected.keys()
    for cut, share in expected.items():
        assert drawn[cut] / 20_000 == pytest.approx(share / 10, abs=0.015)


@given(
    st.integers(0, 60), st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 50),
    st.sampled_from([PROSQA, GSM8K, ICOT]), st.sampled_from(sorted(METHODS)),
)  # fmt: skip
def test_a_draw_is_the_cut_of_its_stage_and_depends_on_nothing_else(
    epoch: int, seed: int, example: int, length: int, curriculum: CurriculumSection, name: MethodName
) -> None:
    method = METHODS[name]
    drawn = draw_cut(curriculum, method, seed, epoch, example, length)
    assert drawn == draw_cut(curriculum, method, seed, epoch, example, length)
    base = cut_at(curriculum, method, stage_at(curriculum, method, epoch), length)
    assert drawn.num_slots == base.num_slots and base.removed <= drawn.removed <= length
    if method.removal == "step":
        assert drawn == base


@given(st.integers(0, 60), st.integers(0, 9))
def test_methods_differ_in_stages_and_slots_alone(epoch: int, length: int) -> None:
    cuts = {name: draw_cut(PROSQA, method, 0, epoch, 7, length) for name, method in METHODS.items()}
    assert cuts["cot"] == Cut(0, 0) and cuts["no_cot"] == Cut(length, 0)
    assert cuts["pause"] == cuts["without_curriculum"] == Cut(length, 6)
    assert cuts["pause_as_thought"] == cuts["coconut"] and cuts["without_thought"] == Cut(cuts["coconut"].removed, 0)
    assert stage_at(PROSQA, METHODS["coconut"], 10**6) == final_stage(PROSQA, METHODS["coconut"]) == PROSQA.last_stage
    assert stage_at(PROSQA, METHODS["cot"], epoch) == final_stage(PROSQA, METHODS["cot"]) == 0


def test_slots_may_follow_the_length_of_the_chain() -> None:
    follows = CurriculumSection(pad_thoughts=False, thoughts_per_step=2)
    assert [cut_at(follows, COCONUT, stage, 3) for stage in (2, 5, 7)] == [Cut(2, 4), Cut(3, 6), Cut(3, 6)]


def test_mixing_draws_all_stages_that_a_chain_has() -> None:
    mixed = CurriculumSection(uniform_prob=0.3)
    cuts = [draw_cut(mixed, COCONUT, 1, 40, example, 4) for example in range(20_000)]
    share = sum(cut != Cut(4, 6) for cut in cuts) / len(cuts)
    assert share == pytest.approx(0.3, abs=0.015)
    assert {cut.num_slots for cut in cuts} == {0, 1, 2, 3, 4, 6}
    other = [draw_cut(mixed, COCONUT, 1, 41, example, 4) for example in range(20_000)]
    assert cuts != other  # another epoch, other draws


def test_without_thoughts_steps_go_all_the_same() -> None:
    bare = CurriculumSection(thoughts_per_step=0)
    assert [cut_at(bare, COCONUT, stage, 4) for stage in (0, 2, 7)] == [Cut(0, 0), Cut(2, 0), Cut(4, 0)]
