"""The tables of p-hop, addition, the mixture, the regulariser, rates, rivals and repeats in configs/README.md, and
what sentences and captions repeat of them, say what the committed rows say, digit by digit."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev

import pytest

from pretrain.rows.evaluation import EvaluationRow
from tests.support.readme_tables import ROOT, SEEDS, Scores, check, check_said, table

SHAPES = {
    "1⊗4": "1x4", "4⊗1": "4x1", "1⊗1": "1x1",
    "1+1⊗2+1, the loop in the middle": "1x2-num_prelude_layers1-num_coda_layers1",
}  # fmt: skip
MIXTURE = "text_and_tasks_small"


def floors(row: EvaluationRow) -> list[float]:
    """Chance and best shortcut, in percent."""
    assert row.chance is not None and row.shortcut is not None
    return [100 * row.chance, 100 * row.shortcut]


def check_shapes(header: str, scores: Scores, task: str, said: str, asked: Sequence[float]) -> dict[str, list[float]]:
    """A table of k⊗L against its rivals, and what its header says of the questions, with `asked` before their number;
    returns the accuracies."""
    row, found = scores.row("1x4-seed0", task), {}
    said += " | layers of weights | effective depth | accuracy %, seeds 0, 1, 2 (± # to # each, of the questions)"
    check_said(said, [*asked, row.num_examples, *floors(row), *scores.errors(task)])
    for name, cells in table(header):
        row = scores.row(f"{SHAPES[name]}-seed0", task)
        found[name] = scores.of(SHAPES[name], task)
        layers = (row.num_prelude_layers or 0) + (row.num_loop_layers or 0) + (row.num_coda_layers or 0)
        check(cells, [layers, row.effective_depth, *found[name]], digits=1)
    assert set(found) == set(SHAPES)
    return found


def test_p_hop() -> None:
    scores = Scores("p_hop_small")
    said = "| # hops in # symbols, planted; # test questions; chance # %, best shortcut # %"
    found = check_shapes("4 hops in 32 symbols", scores, "p_hop", said, [4, 32])
    _, shortcut = floors(scores.row("1x4-seed0", "p_hop"))
    assert max(found["1⊗1"]) < shortcut and min(found["4⊗1"] + found["1+1⊗2+1, the loop in the middle"]) > 90
    assert sorted(share > 90 for share in found["1⊗4"]) == [False, True, True], "as the caption says"


def test_addition() -> None:
    scores = Scores("addition_small")
    said = "two digits; # test questions, none a sum of training in another order; chance # %, best shortcut # %"
    found = check_shapes("sums of four numbers", scores, "addition", said, [])
    looped, deep, once = found["1⊗4"], found["4⊗1"], found["1⊗1"]
    below = [theirs - mine for mine, theirs in zip(looped, deep, strict=True)]
    above = [mine - theirs for mine, theirs in zip(looped, once, strict=True)]
    said = "between # and # points below four layers of their own and # to # above itself once"
    check_said(said, [min(below), max(below), min(above), max(above)])
    early = [100 * scores.row("1x4-seed0", "addition", step).value for step in (2000, 4000)]
    check_said("1⊗4 (seed 0) was at # % after 2,000 of these 6,000 steps and at # % after 4,000", early)
    good = [share for name, shares in found.items() if name != "1⊗1" for share in shares]
    said = "Sums solved against depth and parameters: # to # % by 1⊗4, 4⊗1 and the middle loop, # to # % by 1⊗1"
    check_said(said, [min(good), max(good), min(once), max(once)])
    # 63 % with AdamW, and sums of two and of three numbers: their rows are not published.


HOPS = ("p_hop", "p_hop_2", "p_hop_3")
"""One, three and eight hops."""


def test_recall_and_reasoning() -> None:
    scores, lines = Scores(MIXTURE), 0
    for name, cells in table("accuracy %, seeds 0, 1, 2 (± 0.0"):
        model = name.replace("⊗", "x")
        if name == "chance, best shortcut":
            wanted = [share for task in HOPS for share in floors(scores.row("4x1-seed0", task))]
        else:
            wanted = [share for task in HOPS for share in scores.of(model, task)]
        check(cells, wanted, digits=1)
        lines += 1
    assert lines == 10
    errors = [error for task in HOPS for error in scores.errors(task)]
    check_said("accuracy %, seeds 0, 1, 2 (± # to # each, of the questions) | one hop", [min(errors), max(errors)])


def test_eight_hops_stay_above_the_shortcut_with_loops_alone() -> None:
    scores = Scores(MIXTURE)
    floor = floors(scores.row("4x1-seed0", "p_hop_3"))[1]
    below = {
        model: sum(share < floor for share in scores.of(model, "p_hop_3"))
        for model in ("4x2", "4x3", "4x4", "4x6", "12x1", "16x1", "24x1")
    }
    assert below == {"4x2": 0, "4x3": 0, "4x4": 0, "4x6": 0, "12x1": 2, "16x1": 1, "24x1": 1}


REGULARISED = {"0": "8x1", "1": "8x1-weight1", "10": "8x1-weight10"}


def cosines(sweep: str) -> dict[str, dict[str, list[float]]]:
    """Of the pairs of layers of all seeds, by λ and group of weights."""
    found: dict[str, dict[str, list[float]]] = {weight: defaultdict(list) for weight in REGULARISED}
    with (ROOT / "configs" / "sweeps" / "results" / sweep / "block_similarity.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            (weight,) = (key for key, model in REGULARISED.items() if row["run"].rpartition("-")[0] == model)
            found[weight][row["group"]].append(float(row["cosine"]))
    assert {len(pairs) for groups in found.values() for pairs in groups.values()} == {4 * len(SEEDS)}
    return found


def mean_cosine(groups: dict[str, list[float]]) -> float:
    return fmean(cosine for pairs in groups.values() for cosine in pairs)


def test_regulariser_on_text() -> None:
    scores, found, lines = Scores("regulariser_text_small"), cosines("regulariser_text_small"), 0
    for weight, cells in table("λ | cosine of layers"):
        losses = scores.of(REGULARISED[weight])
        check(cells, [mean_cosine(found[weight]), *losses, fmean(losses)])
        lines += 1
    assert lines == 3
    means = {weight: [fmean(pairs) for pairs in groups.values()] for weight, groups in found.items()}
    said = (
        "Cosine of layers i and i + 4 by group of weights: # without the regulariser, # to # with λ = 1, # with λ = 10."
    )
    check_said(said, [max(means["0"], key=abs), min(means["1"]), max(means["1"]), min(means["10"])])
    check_said(said, [max(means["0"], key=abs), min(means["1"]), max(means["1"]), max(means["10"])])
    more = fmean(scores.of(REGULARISED["10"])) - fmean(scores.of(REGULARISED["0"]))
    check_said("four applied twice, at # nats more", [more])
    error = fmean(scores.row(f"{model}-seed{seed}", "validation").stderr or 0 for model, seed in product(
        REGULARISED.values(), SEEDS))  # fmt: skip
    check_said("one standard error of a validation is #)", [error])
    looped = Scores("loop_worth_small").of("4x2-hidden_size64-ffn_size176-num_attention_heads4-steps1000", seeds=[0])
    said = "Four layers looped twice from the start, the rival, have # where λ = 10 has # (seed 0)"
    check_said(said, [*looped, scores.of(REGULARISED["10"])[0]])


def test_regulariser_on_tasks() -> None:
    scores, found, lines = Scores("regulariser_tasks_small"), cosines("regulariser_tasks_small"), 0
    eight = {weight: scores.of(model, "p_hop_3") for weight, model in REGULARISED.items()}
    for weight, cells in table("λ | cosine, mean"):
        learnt = [share for task in HOPS[:2] for share in scores.of(REGULARISED[weight], task)]
        check(cells, [mean_cosine(found[weight]), min(learnt), *eight[weight], fmean(eight[weight])])
        lines += 1
    assert lines == 3
    chance, floor = floors(scores.row("8x1-seed0", "p_hop_3"))
    check_said("Eight hops hardly are (best shortcut # %, chance # %)", [floor, chance])
    gains = [
        sorted(mine - theirs for mine, theirs in zip(eight[weight], eight["0"], strict=True)) for weight in ("1", "10")
    ]
    said = "with λ = 1 is # to # points above the one without, and with λ = 10 # to #"
    check_said(said, [gain[at] for gain in gains for at in (0, -1)])
    rows = [scores.row(f"{model}-seed{seed}", "p_hop_3") for model, seed in product(REGULARISED.values(), SEEDS)]
    said = "# questions each, a standard error of #)"
    check_said(said, [rows[0].num_examples, 100 * fmean(row.stderr or 0 for row in rows)])


SCALES = {
    ("before (default)", "1"): "", ("before", "1/√L"): "-residual_scalesqrt",
    ("before", "1/L"): "-residual_scaleinverse",
    ("of the sum", "1"): "-norm_placesum", ("of the sum", "DeepLoop's"): "-norm_placesum-residual_scaledeep_loop",
}  # fmt: skip
RATES = {"1e-3": 0.001, "3e-3": 0.003, "1e-2": 0.01, "3e-2": 0.03, "1e-1": 0.1}


def losses_by_rate(scores: Scores, loops: int, scale: str) -> dict[float, float]:
    """Of one loop the scales that divide by the number of loops are none."""
    own = "" if loops == 1 and scale.startswith("-residual_scale") else scale
    return {rate: scores.of(f"1x{loops}{own}-lr{name}", seeds=[0])[0] for name, rate in RATES.items()}


def test_one_learning_rate_for_any_number_of_loops() -> None:
    scores, best = Scores("loop_rates_small"), {}
    for norms, (scale, rates, losses, at_one_rate) in table("norms | scale"):
        found = [losses_by_rate(scores, loops, SCALES[norms, scale]) for loops in (1, 4, 16)]
        own = [min(by_rate, key=by_rate.__getitem__) for by_rate in found]
        check([rates], own, digits=3)
        check([losses], [min(by_rate.values()) for by_rate in found])
        if at_one_rate == "the same":
            assert own == [0.01] * 3
        else:
            check([at_one_rate], [by_rate[0.01] for by_rate in found])
        best[norms, scale] = [min(by_rate.values()) for by_rate in found]
    assert list(best) == list(SCALES)
    check_said("worth nothing over one loop at any rate (# to #)", [best["before (default)", "1"][at] for at in (0, 2)])
    gains = [best[key][0] - best[key][2] for key in (("before", "1/√L"), ("before", "1/L"))]
    check_said("sixteen loops are worth # to # nats", gains)
    last = sorted(losses[2] for losses in best.values())
    check_said("the best of all at sixteen (#, by # with an error of", [last[0], last[1] - last[0]])
    lowest = min(loss for losses in best.values() for loss in losses)
    check_said("four loops with norms of the sum, scale 1 (#)", [lowest])
    assert lowest == best["of the sum", "1"][1]


ARMS = {
    "2⊗4": ("2x4-steps340", "2x4-residualhyper-steps330"),
    "the same, two loops at first, four from 0.88 of training on": ("2x4-start2-begin0.75-end0.88-steps568",),
    "8⊗1: the same depth untied, 3.6 times the weights": ("8x1-steps340", "8x1-residualhyper-steps330"),
    "2⊗1: the same weights once, 3.8 times the tokens": ("2x1-steps1305", "2x1-residualhyper-steps1268"),
}
"""Names of runs: plain, and with streams."""


def best_of(scores: Scores, model: str) -> list[float]:
    """The least loss of a model, its learning rate and its weight decay."""
    rates = {"2e-3": 0.002, "5e-3": 0.005, "1.2e-2": 0.012}
    return min(
        [scores.of(f"{model}-lr{rate}-weight_decay{decay}", seeds=[0])[0], rates[rate], float(decay)]
        for rate in rates
        for decay in ("0.1", "0.5")
    )


def test_loops_against_their_rivals() -> None:
    scores, best = Scores("loop_rivals_small"), {}
    for name, cells in table("arm | plain"):  # whose seconds, every second column, are in no row
        best[name] = [best_of(scores, model) for model in ARMS[name]]
        check(cells[0::2], [number for found in best[name] for number in found], digits=1)
    assert list(best) == list(ARMS)
    (loop, loop_streams), (growing,), (deep, deep_streams), (once, once_streams) = (
        [found[0] for found in arms] for arms in best.values()
    )
    check_said("are # nats better than two layers four times", [loop - once])
    said = "streams help loops (#) more than they help untied layers (#) or a single pass (#)"
    check_said(said, [loop - loop_streams, deep - deep_streams, once - once_streams])
    said = "leave 2⊗4 behind 8⊗1 by # where it was behind by #"
    check_said(said, [loop_streams - deep_streams, loop - deep])
    check_said("loops that grow late are # better than four from the start", [loop - growing])
    rows = [scores.row(f"{models[0]}-lr5e-3-weight_decay0.1-seed0", "validation") for models in ARMS.values()]
    check_said("8⊗1: the same depth untied, # times the weights", [rows[2].num_params / rows[0].num_params])
    check_said("2⊗1: the same weights once, # times the tokens", [rows[3].tokens_seen / rows[0].tokens_seen])
    check_said("as they see # times the text", [rows[1].tokens_seen / rows[0].tokens_seen])
    costs = [row.train_flops / rows[0].train_flops for row in rows]
    assert costs == pytest.approx([1] * 4, rel=0.02), "equal training FLOPs"
    streams = scores.row("2x4-residualhyper-steps330-lr5e-3-weight_decay0.1-seed0", "validation")
    check_said("Streams cost # % of FLOPs", [100 * (streams.eval_flops_per_token / rows[0].eval_flops_per_token - 1)])


REPEATING = {
    "loop": "2x4-steps340-lr5e-3", "growing": "2x4-start2-begin0.75-end0.88-steps568-lr5e-3-weight_decay5e-1",
    "deep": "8x1-steps340-lr5e-3-weight_decay5e-1", "once": "2x1-steps1305-lr12e-3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("sweep", "said"),
    [("loop_rates_small", "65 models; validation loss in nats, ± # of the validation):"),
     ("loop_rivals_small", "42 models; validation loss in nats, ± # of the validation; seconds")],
)  # fmt: skip
def test_errors_of_losses(sweep: str, said: str) -> None:
    check_said(said, [fmean(row.stderr or 0 for row in Scores(sweep).rows)])


def test_loops_and_rivals_on_text_that_repeats() -> None:
    scores = Scores("loop_repeats_small")
    losses = {arm: scores.of(model) for arm, model in REPEATING.items()}
    means = {arm: fmean(found) for arm, found in losses.items()}
    said = "2⊗4 # ± #, two to four loops # ± # (11 times), 8⊗1 # ± #, 2⊗1 # ± #."
    check_said(said, [number for found in losses.values() for number in (fmean(found), stdev(found))])
    said = "The single pass is still best, by # nats and #,"
    check_said(said, [means["loop"] - means["once"], means["growing"] - means["once"]])
    falls = [
        scores.row(f"{REPEATING['once']}-seed{seed}", "validation", 1190).value > losses["once"][seed] for seed in SEEDS
    ]
    assert sum(falls) == 2, "still falls at its end in two of three seeds"
    said = "Loss at equal FLOPs on text that repeats: 2⊗1 #, loops that grow #, 8⊗1 #, 2⊗4 #."
    check_said(said, [means[arm] for arm in ("once", "growing", "deep", "loop")])
