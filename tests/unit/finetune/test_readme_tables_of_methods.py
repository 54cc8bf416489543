"""The tables of composition, ProsQA and rewarded answers in configs/README.md, and what sentences and captions repeat
of them, say what the committed rows say, digit by digit."""

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

from finetune.answers.results import CoconutRow
from tests.support.readme_tables import SEEDS, Scores, answers_of, check, check_said, table

COMPOSITION = {
    "steps of text": ("composition_small", "cot-{}"),
    "loops, every prefix answered before": ("composition_small_from_prefixes", "no_cot-{}loops"),
    "loops, from nothing": ("composition_small", "no_cot-{}loops"),
    "thoughts (Coconut)": ("composition_small", "coconut-{}"),
}
"""What a line counts: where its rows are, and what its runs are called."""


def scored(sweep: str, model: str, seeds: Sequence[int] = SEEDS) -> list[CoconutRow]:
    """By seed: the answers to the test questions with all thoughts that a model was trained with."""
    rows = [row for row in answers_of(sweep) if row.split == "test"]
    of_seeds = [[row for row in rows if row.run == f"{model}-seed{seed}"] for seed in seeds]
    return [max(of_seed, key=lambda row: row.num_thoughts) for of_seed in of_seeds]


def right(rows: Iterable[CoconutRow]) -> list[float]:
    return [100 * row.accuracy for row in rows]


def costs(rows: Sequence[CoconutRow]) -> list[float]:
    """Tokens and MFLOP of an answer, means over the seeds."""
    return [fmean(row.new_tokens for row in rows), fmean(row.flops_per_example for row in rows) / 1e6]


def composed(series: str, number: int) -> list[CoconutRow]:
    sweep, model = COMPOSITION[series]
    return scored(sweep, model.format(number))


def test_loops_beside_text_and_thoughts() -> None:
    shown: list[CoconutRow] = []
    for series, cells in table("what is counted | how many"):
        rows = composed(series, int(cells[0]))
        check(cells[1:], [*right(rows), *costs(rows)])
        shown += rows
    assert len(shown) == 12 * len(SEEDS)
    errors = [100 * (row.stderr or 0) for row in shown]
    said = "accuracy %, by seed (± # to # each, of # questions)"
    check_said(said, [min(errors), max(errors), shown[0].num_examples])
    looped = composed("loops, from nothing", 4)[0]  # whose questions name no products of several elements
    assert looped.chance is not None and looped.shortcut is not None
    said = "Chance is # %, the sign of the product, which needs no order, # %:"
    check_said(said, [100 * looped.chance, 100 * looped.shortcut])


def test_four_loops_and_seven_steps_of_text() -> None:
    loops, text = composed("loops, every prefix answered before", 4), composed("steps of text", 7)
    said = "four loops solve # and seven steps of text # % on average"
    check_said(said, [fmean(right(loops)), fmean(right(text))])
    said = "Four loops are at #, # and # %, seven steps of text at #, # and # %"
    check_said(said, [*right(loops), *right(text)])
    check_said("for # times the FLOPs. log2 of nine", [costs(loops)[1] / costs(text)[1]])
    before = Scores("composition_prefixes_small").of("1x4", "group_product")
    # What ten times the rate made of seeds 1 and 2 has no published rows.
    check_said("brought two of the three seeds with four loops from # and # % to the sign", before[1:])


FROM_NOTHING = {"cot", "no_cot", "pause", "without_curriculum"}
"""Methods of prosqa_hard_small.yaml; the others are of prosqa_hard_small_from_cot.yaml."""


def of_method(name: str, seeds: Sequence[int] = SEEDS) -> list[CoconutRow]:
    return scored("prosqa_hard_small" if name in FROM_NOTHING else "prosqa_hard_small_from_cot", name, seeds)


def test_methods_on_prosqa() -> None:
    shown: list[CoconutRow] = []
    for line, (thoughts, accuracies, *cost) in table("method | thoughts"):
        (name,) = re.findall("`(.*)`", line)
        rows = of_method(name)
        assert {row.num_thoughts for row in rows} == {int(thoughts.removesuffix(" pauses"))}
        assert {row.method for row in rows} == {name}
        check([accuracies, *cost], [*right(rows), *costs(rows)])
        shown += rows
    assert len({row.method for row in shown}) == 11 and len(shown) == 11 * len(SEEDS)
    errors = [100 * (row.stderr or 0) for row in shown]
    said = "All are asked the same # test questions: a standard error of # to # points."
    check_said(said, [shown[0].num_examples, min(errors), max(errors)])
    parameters = Scores("prosqa_roots_small").row("4x1-seed0", "validation").num_params / 1000
    check_said("Four layers 64 wide, # thousand parameters, one model a seed", [parameters])


def test_fewer_thoughts_and_the_rivals_of_seed_1() -> None:
    rows = [row for row in answers_of("prosqa_hard_small_from_cot") if row.split == "test"]
    fewer = {row.num_thoughts: 100 * row.accuracy for row in rows if row.run == "sim_cot-seed1"}
    assert sorted(fewer) == [0, 1, 2, 3]
    check_said("answers fall to #, # and # % (seed 1)", [fewer[number] for number in (2, 1, 0)])
    (chain, coconut) = (right(of_method(name, [1]))[0] for name in ("cot", "coconut"))
    said = "SIM-CoT with 0 to 3 thoughts, # to # %, beside # % of the chain in text and # % of Coconut"
    check_said(said, [fewer[0], fewer[3], chain, coconut])
    mixed = right(scored("prosqa_hard_small_mixed", "prosqa_hard_small_mixed", [1]))
    check_said("(`prosqa_hard_small_mixed.yaml`, seed 1) it has # %", mixed)
    parallel = right(scored("prosqa_hard_small_parallel", "sim_cot-in_parallel", [1]))
    check_said("(`prosqa_hard_small_parallel.yaml`, seed 1) have # %", parallel)
    check_said("whether they would come up to # % with more", [fewer[3]])


GRPO, LONGER = "prosqa_hard_small_grpo", "prosqa_hard_small_longer"
REWARDED = {
    "the chain in text": ("cot", "text", "cot-longer"),
    "three thoughts of SIM-CoT, the gradient through them": ("sim_cot", "thoughts", "sim_cot-longer"),
    "the same, each thought an action with a likelihood": ("sim_cot", "thoughts-likelihood", None),
}
"""A line of the table: where its models began, what rewards and what more labels made of them."""


def gains(name: str) -> tuple[list[float], list[float]]:
    """Of rewards, in points by seed: over what the models were before, and over more labels."""
    start, policy, longer = REWARDED[name]
    after, before = right(scored(GRPO, policy)), right(of_method(start))
    labels = right(scored(LONGER, longer)) if longer else []
    return [mine - theirs for mine, theirs in zip(after, before, strict=True)], [
        mine - theirs for mine, theirs in zip(after, labels, strict=bool(labels))
    ]


def test_rewarded_answers_on_prosqa() -> None:
    lines = 0
    for name, cells in table("answers | before"):
        start, policy, longer = REWARDED[name]
        labels = right(scored(LONGER, longer)) if longer else []
        check(cells, [*right(of_method(start)), *right(scored(GRPO, policy)), *labels])
        lines += 1
    assert lines == 3


def test_what_rewards_gain_on_prosqa() -> None:
    (text, over_text), (thoughts, over_thoughts), (actions, _) = (gains(name) for name in REWARDED)
    raised = [row for policy in ("text", "thoughts") for row in scored(GRPO, policy)]
    raised += [row for start in ("cot", "sim_cot") for row in of_method(start)]
    errors = [100 * (row.stderr or 0) for row in raised]
    said = "in all three seeds, by # to # points (a standard error of # to # each)."
    check_said(said, [min(text + thoughts), max(text + thoughts), min(errors), max(errors)])
    said = "where there are labels: # to # points above them in text, # below to # above in thoughts"
    check_said(said, [min(over_text), max(over_text), -min(over_thoughts), max(over_thoughts)])
    check_said("lost # to # points in the same steps at the same rate", [-max(actions), -min(actions)])


def test_flops_of_rewards_and_labels_on_prosqa() -> None:
    rewarded = [row.train_flops or 0 for _, policy, _ in REWARDED.values() for row in scored(GRPO, policy)]
    said = "# steps of 256 answers, # to # TFLOP, from the models of the section before"
    check_said(said, [100, min(rewarded) / 1e12, max(rewarded) / 1e12])
    labelled = []
    for model, last, steps in (("cot-longer", 1536, 512), ("sim_cot-longer", 2048, 512)):
        found = {row.step: row.train_flops or 0 for row in answers_of(LONGER) if row.run == f"{model}-seed0"}
        labelled.append((found[last] - found[last - steps]) / 1e12)
    check_said("for # TFLOP in text and # in thoughts", labelled)


def validated(sweep: str, policy: str, step: int) -> float:
    """Mean share over seeds, in percent, of the questions that are asked while rewards are given."""
    rows = [row for row in answers_of(sweep) if (row.split, row.step) == ("validation", step)]
    of_seeds = [[row for row in rows if row.run == f"{policy}-seed{seed}"] for seed in SEEDS]
    return fmean(100 * max(of_seed, key=lambda row: row.num_thoughts).accuracy for of_seed in of_seeds)


def test_captions_of_rewards() -> None:
    shares = [
        validated(GRPO, policy, step) for policy in ("thoughts", "text", "thoughts-likelihood") for step in (0, 100)
    ]
    said = "the gradient through them go from # to # %, chains in text from # to #, thoughts as actions from # to #;"
    check_said(said, shares)
    for policy in ("last", "every"):
        shares = [validated("p_hop_grpo", policy, step) for step in (0, 200)]
        check_said("mean and range of three seeds: # to # %, by the last loop and by every loop alike", shares)


TWO_HOPS = {"the prediction of the last loop": "last", "that of every loop (RLTT)": "every"}


def test_rewarded_answers_on_two_hops() -> None:
    start = [row for row in answers_of("p_hop_grpo") if (row.split, row.step) == ("validation", 0)]
    before = right(row for seed in SEEDS for row in start if row.run == f"last-seed{seed}")
    labels, lines = Scores("p_hop_longer_small"), 0
    for name, cells in table("rewarded | before"):
        policy = TWO_HOPS.get(name)
        check(cells, [*before, *(right(scored("p_hop_grpo", policy)) if policy else labels.of("1x4", "p_hop"))])
        lines += 1
    assert lines == 3
    asked, labelled = scored("p_hop_grpo", "last")[0], labels.row("1x4-seed0", "p_hop")
    flops = [(row.train_flops or 0) / 1e12 for row in (asked, labelled)]
    said = "# steps of 512 answers of one symbol, # TFLOP (the labels #); # questions, best shortcut # %, chance # %:"
    assert asked.shortcut is not None and asked.chance is not None
    check_said(said, [200, *flops, asked.num_examples, 100 * asked.shortcut, 100 * asked.chance])
    check_said("rival: labelled answers for # times the FLOPs", [flops[1] / flops[0]])
    check_said("| before, %, seeds 0, 1, 2 (# questions) |", [start[0].num_examples])
