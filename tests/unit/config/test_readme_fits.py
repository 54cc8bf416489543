"""The fitted numbers of configs/README.md, worths of a loop and slopes over depth, are those of the committed rows."""

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pytest

from pretrain.config.read import read_config
from pretrain.config.sweep import SweepConfig
from pretrain.scaling.analysis import Analysis, analyse
from pretrain.scaling.law import JointLaw, fit_law
from tests.support.readme_tables import Scores, check, check_said, rows_of, table

if TYPE_CHECKING:
    from pretrain.rows.evaluation import EvaluationRow

PLAIN, STREAMS, MIXTURE = "loop_worth_small", "loop_worth_streams_small", "text_and_tasks_small"
SIZES = ("hidden_size32-ffn_size88-num_attention_heads2", "hidden_size48-ffn_size132-num_attention_heads3",
         "hidden_size64-ffn_size176-num_attention_heads4")  # fmt: skip
SHAPES = ("8x1", "4x2", "2x4", "1x8")
DESIGNS, LONG = "loop_worth_designs_small", "loop_worth_streams_long_small"
ARMS = {
    "plain": (PLAIN, "", ""),
    "two hyper-connected streams": (STREAMS, "", ""),
    "four hyper-connected streams": (DESIGNS, "residualhyper-streams4-", "streams=4, residual=hyper"),
    "injection: add": (DESIGNS, "injectionadd-", "injection=add"),
    "injection: concat, from noise": (
        DESIGNS, "injectionconcat-injection_atevery-startnoise-", "injection=concat, injection_at=every, start=noise",
    ),
    "injection: diagonal, from zeros": (
        DESIGNS, "injectiondiagonal-injection_atevery-startzeros-",
        "injection=diagonal, injection_at=every, start=zeros",
    ),
    "per loop: LoRA of rank 2": (DESIGNS, "per_looplora-rank2-", "rank=2, per_loop=lora"),
    "norms before and after (both)": (DESIGNS, "norm_placeboth-", "norm_place=both"),
    "loss of every loop": (DESIGNS, "overevery-weightslinear-", "over=every, weights=linear"),
}  # fmt: skip
"""Where the models of a design are, what their names say of it, and its variant in the laws."""


def last_rows(sweep: str) -> "list[EvaluationRow]":
    return list({row.run: row for row in sorted(rows_of(f"sweeps/results/{sweep}"), key=lambda row: row.step)}.values())


def worth(law: JointLaw | str) -> list[float]:
    assert isinstance(law, JointLaw) and not law.undetermined
    return [law.phi, *law.phi_interval]


def plain_at(num_tokens: float) -> "list[EvaluationRow]":
    """Of the plain models that were trained on so many tokens, in millions."""
    chosen = [row for row in last_rows(PLAIN) if row.tokens_seen == pytest.approx(num_tokens * 1e6, rel=0.03)]
    assert len(chosen) == 12
    return chosen


def worth_at(num_tokens: float) -> list[float]:
    """The same."""
    return worth(fit_law(plain_at(num_tokens)))


def test_worth_of_a_loop() -> None:
    (law,) = analyse(rows_of(f"sweeps/results/{PLAIN}")).laws.values()
    found = worth(law)
    assert isinstance(law, JointLaw) and len(law.runs) == 36
    check_said("Loss of # models against the loss by the law: phi = #, 95 % interval # to #.", [36, *found])
    check_said("φ = # [#, #], where the paper has 0.46 from 116 runs at depth 20", found)
    sizes = [row.num_params / 1000 for row in last_rows(PLAIN)]
    said = "these models have # to # thousand parameters, the law misses them by # nats"
    check_said(said, [min(sizes), max(sizes), law.error])
    said = "it is # [#, #] at # million and # [#, #] at # million"
    check_said(said, [*worth_at(1.0), 1.024, *worth_at(4.1), 4.096])


def test_worth_of_a_loop_with_streams() -> None:
    (law,) = analyse(rows_of(f"sweeps/results/{STREAMS}")).laws.values()
    found = worth(law)
    said = "Loss of # models with hyper-connected streams against the loss by the law: phi = #, 95 % interval # to #."
    check_said(said, [12, *found])
    said = "at # million tokens (`configs/sweeps/loop_worth_streams_small.yaml`) have # [#, #]"
    check_said(said, [1.024, *found])
    (plain,) = analyse(rows_of(f"sweeps/results/{PLAIN}")).laws.values()
    said = "Held against the # of all 36 that would be a rise; held against the plain ones of as many tokens, #,"
    check_said(said, [worth(plain)[0], worth_at(1.0)[0]])


def test_worth_of_a_loop_in_other_designs() -> None:
    plain, lines = Scores(PLAIN), 0
    for name, (phi, changes) in table("one design of twelve models | φ"):
        sweep, arm, variant = ARMS[name]
        scores = Scores(sweep)
        law = fit_law(plain_at(1.0)) if name == "plain" else analyse(rows_of(f"sweeps/results/{sweep}")).laws[variant]
        assert isinstance(law, JointLaw) and len(law.runs) == 12
        if law.undetermined:
            assert phi == "not determined"
        else:
            check([phi], worth(law))
        end = "-steps250" if name == "plain" else ""
        models = [[f"{shape}-{arm}{size}" for size in SIZES] for shape in SHAPES]
        losses = [fmean(scores.of(model + end, seeds=[0])[0] for model in some) for some in models]
        before = [fmean(plain.of(f"{shape}-{size}-steps250", seeds=[0])[0] for size in SIZES) for shape in SHAPES]
        wanted = losses if name == "plain" else [ours - theirs for ours, theirs in zip(losses, before, strict=True)]
        check([changes], wanted)
        lines += 1
    assert lines == len(ARMS)


def test_parameters_that_lora_adds_where_loops_were_weighed() -> None:
    plain, lora = Scores(PLAIN), Scores(DESIGNS)
    more = [
        100 * lora.row(f"{shape}-{ARMS['per loop: LoRA of rank 2'][1]}{size}-seed0", "validation").num_params
        / plain.row(f"{shape}-{size}-steps250-seed0", "validation").num_params - 100
        for shape in SHAPES
        for size in SIZES
    ]  # fmt: skip
    check_said("LoRA helps everywhere, for # to # % more parameters", [min(more), max(more)])


def test_worth_of_a_loop_with_four_streams_and_more_tokens() -> None:
    said = "At # million tokens four streams have # [#, #], where plain has # [#, #]"
    check_said(said, [4.096, *worth(fit_law(last_rows(LONG))), *worth_at(4.1)])


def test_what_streams_change_where_loops_were_weighed() -> None:
    plain, streams = Scores(PLAIN), Scores(STREAMS)
    changes = {
        (shape, size): streams.of(f"{shape}-{size}", seeds=[0])[0] - plain.of(f"{shape}-{size}-steps250", seeds=[0])[0]
        for shape in SHAPES
        for size in SIZES
    }
    check_said("streams change a loss by # to # nats", [min(changes.values()), max(changes.values())])
    better = {key for key, change in changes.items() if change < 0}
    assert better == {("4x2", SIZES[-1]), ("1x8", SIZES[-1])}, "for the better with 64 and two or eight loops alone"


def of_kinds() -> Analysis:
    sweep = read_config(Path(__file__).parents[3] / "configs" / "sweeps" / f"{MIXTURE}.yaml", SweepConfig)
    return analyse(rows_of(f"sweeps/results/{MIXTURE}"), kinds=sweep.evaluation.groups)


def test_slopes_of_reasoning_and_recall() -> None:
    analysis = of_kinds()
    slopes = {
        (curve.task_group, curve.family): [fit.alpha, *fit.alpha_interval]
        for curve, fit in zip(analysis.curves, analysis.fits, strict=True)
        if fit
    }
    reasoning = [*slopes["reasoning", "looped"], *slopes["reasoning", "baseline"]]
    check_said("rises by # [#, #] for 4⊗L and by # [#, #] for layers of their own on reasoning", reasoning)
    for family in ("looped", "baseline"):
        _, low, high = slopes["recall", family]
        assert low < 0 < high
    gaps = {found.curve.family: [found.fit.alpha, *found.fit.alpha_interval] for found in analysis.differences}
    check_said("the differences, # [#, #] and # [#, #], leave 0 out", [*gaps["looped"], *gaps["baseline"]])


def test_slope_of_loss_in_the_mixture() -> None:
    analysis = analyse(rows_of(f"sweeps/results/{MIXTURE}"))
    fits = [fit for curve, fit in zip(analysis.curves, analysis.fits, strict=True) if curve.task_group == "validation"]
    intervals = [fit.alpha_interval for fit in fits if fit]
    assert len(intervals) == 2 and all(low < 0 < high for low, high in intervals)
    scores = Scores(MIXTURE)
    by_model = [scores.of(model) for model in {row.run.rpartition("-")[0] for row in scores.rows}]
    apart = [max(losses) - min(losses) for losses in by_model]
    check_said("differs by # to # nats between seeds", [min(apart), max(apart)])


def test_the_step_that_slopes_rest_on() -> None:
    scores = Scores(MIXTURE)
    at_eight = [fmean(scores.of(model, "p_hop_2")) for model in ("4x2", "8x1")]
    assert min(at_eight) > 99
    check_said(
        "three hops from # % on average at depth 4 to above 99 % at depth 8", [fmean(scores.of("4x1", "p_hop_2"))]
    )
