"""The tables of designs, healing, exits and the quick start in configs/README.md, and what sentences and captions
repeat of them here and on the first page, say what the committed rows say, digit by digit."""

import re
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest

from pretrain.model.config import LoopSection
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from tests.support.readme_tables import ROOT, SEEDS, check, check_said, page, rows_of, table

OF_DESIGN = ("model.loop.", "model.norm_place", "train.loop_loss.", "train.loop_sampling.")
NOISE = {"model.loop.injection_at": "every", "model.loop.start": "noise"}
CONCAT = {"model.loop.injection": "concat", "model.loop.injection_at": "every"}
UNIFORM = {"train.loop_sampling.distribution": "uniform"}
DESIGNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "injection: add": {"model.loop.injection": "add"},
    "injection: add at every loop, from noise": {"model.loop.injection": "add", **NOISE},
    "injection: gated": {"model.loop.injection": "gated"},
    "injection: concat, from noise": {**CONCAT, **NOISE},
    "the same without noise": CONCAT,
    "injection: diagonal, from zeros": {
        "model.loop.injection": "diagonal", "model.loop.injection_at": "every", "model.loop.start": "zeros",
    },
    "per loop: embedding": {"model.loop.per_loop": "embedding"},
    "per loop: norm scales": {"model.loop.per_loop": "norm_scales"},
    "per loop: LoRA of rank 2": {"model.loop.per_loop": "lora", "model.loop.lora.rank": 2},
    "per loop: LoRA": {"model.loop.per_loop": "lora"},
    "per loop: adaLN": {"model.loop.per_loop": "adaln"},
    "norms before and after (both)": {"model.norm_place": "both"},
    "norms around": {"model.norm_place": "around"},
    "residual scale 1/L": {"model.loop.residual_scale": "inverse"},
    "two hyper-connected streams": {"model.loop.residual": "hyper", "model.loop.hyper.streams": 2},
    "keys of the first loop": {"model.loop.keys": "first"},
    "keys of every second loop": {"model.loop.keys": "every", "model.loop.keys_every": 2},
    "keys of the first, and a window of 16 of each": {"model.loop.keys": "first", "model.loop.keys_window": 16},
    "loss of every loop": {"train.loop_loss.over": "every", "train.loop_loss.weights": "linear"},
    "expected loss, exit gate": {"train.loop_loss.over": "expected", "model.loop.exit": "gate"},
    "short-long consistency": {"train.loop_loss.over": "consistent"},
    "loops drawn from 1 to 7": {**UNIFORM, "train.loop_sampling.maximum": 7},
    "loops drawn from 3 to 5": {**UNIFORM, "train.loop_sampling.minimum": 3, "train.loop_sampling.maximum": 5},
    "loops growing from 2 to 4": {
        "train.loop_sampling.growth.start": 2, "train.loop_sampling.growth.begin": 0.25,
        "train.loop_sampling.growth.end": 0.5,
    },
}  # fmt: skip
"""What a table calls a design, and its settings."""


class Arms:
    """The newest rows of a sweep's runs, by design, layers and loops that were trained."""

    def __init__(self, sweep: str, num_layers: int) -> None:
        self._rows, self._num_layers = rows_of(f"sweeps/results/{sweep}"), num_layers

    def rows_of(self, name: str) -> list[EvaluationRow]:
        """Those of what a table calls so."""
        layers, loops, design = self._num_layers, 4, DESIGNS.get(name, {})
        if name.startswith("rival: "):
            own = {"four layers of": 4, "eight layers o": 8}
            layers, loops = own.get(name[7:21], layers), 1
        chosen = [row for row in self._rows if self._is(row, layers, loops, design)]
        assert chosen, name
        return chosen

    def of(self, name: str) -> Callable[..., list[float]]:
        """A function of task, number of loops and step (by default each run's last): the values, by seed."""
        chosen = self.rows_of(name)

        def values(task: str, num_loops: int, step: int | None = None) -> list[float]:
            found = []
            for seed in SEEDS:
                of_seed = [row for row in chosen if row.seed == seed]
                at = max(row.step for row in of_seed) if step is None else step
                (value,) = (
                    row.value
                    for row in of_seed
                    if (row.task, row.num_loops, row.step, row.is_main) == (task, num_loops, at, True)
                )
                found.append(value)
            return found

        return values

    def _is(self, row: EvaluationRow, layers: int, loops: int, design: dict[str, Any]) -> bool:
        said = {key: value for key, value in (row.settings or {}).items() if key.startswith(OF_DESIGN)}
        trained = (row.settings or {}).get("model.num_loops", 1)
        has_all = all(said.pop(key, default(key)) == value for key, value in design.items())
        return (row.num_loop_layers, trained) == (layers, loops) and has_all and not said


def default(key: str) -> Any:
    """Of a setting of the loop; others are named where they differ."""
    value: Any = LoopSection() if key.startswith("model.loop.") else None
    for part in key.removeprefix("model.loop.").split(".") if value else ():
        value = getattr(value, part)
    return value


def test_designs_on_text() -> None:
    arms, lines = Arms("loop_designs_text_small", 2), 0
    plain = arms.of("plain")("validation", 4)
    for name, cells in table("design | loss at its loops"):
        values = arms.of(name)
        own = values("validation", 1 if name.startswith("rival") else 4)
        others = [fmean(values("validation", loops)) for loops in (1, 2, 8)] if not name.startswith("rival") else []
        check(cells, [*own, fmean(own), *(mine - theirs for mine, theirs in zip(own, plain, strict=True)), *others])
        lines += 1
    assert lines == 22


def test_designs_on_two_hops() -> None:
    arms, lines = Arms("loop_designs_small", 1), 0
    for name, cells in table("design | accuracy % at 4 loops"):
        values, own = arms.of(name), 1 if name.startswith("rival") else 4
        right = [100 * value for loops in (own, 8)[:own] for value in values("p_hop", loops)]
        check(cells, [*right, *values("validation", own, 200)])
        lines += 1
    assert lines == 20


def test_extrapolation_in_depth() -> None:
    arms, lines = Arms("loop_extrapolation_small", 1), 0
    for name, cells in table("accuracy %, seeds 0, 1, 2 | trained: two hops"):
        values, is_looped = arms.of(name), not name.startswith("rival")
        asked = [("p_hop_2", 4 if is_looped else 1), *[("p_hop_2", 12)] * is_looped]
        asked += [(f"p_hop:num_hops={hops}", 8 if is_looped else 1) for hops in (3, 4, 6)]
        check(cells, [100 * value for task, loops in asked for value in values(task, loops)])
        lines += 1
    assert lines == 22


def test_parameters_of_designs() -> None:
    two_hops, hops = Arms("loop_designs_small", 1), Arms("loop_extrapolation_small", 1)
    found = re.findall(r"^\| ([^|]*?) \((\d[\d,]*)(?: parameters)?\) \|", page("configs/README.md"), re.MULTILINE)
    for name, said in found:
        for arms in (two_hops, hops):
            assert {row.num_params for row in arms.rows_of(name)} == {int(said.replace(",", ""))}, name
    assert len(found) == 10
    unsaid = {name for name, _ in table("design | accuracy % at 4 loops")} - {name for name, _ in found}
    sizes = [row.num_params for name in unsaid for row in two_hops.rows_of(name)]
    check_said("parameters # to # where nothing is said", [min(sizes), max(sizes)])


def test_what_is_said_of_designs_on_text() -> None:
    arms, plain = Arms("loop_designs_text_small", 2), Arms("loop_designs_text_small", 2).of("plain")("validation", 4)
    loops = [name for name, _ in table("design | loss at its loops") if not name.startswith("rival")]
    losses = {name: arms.of(name)("validation", 4) for name in loops}
    once = arms.of("rival: the two layers once, 3.8 times the text")("validation", 1)
    check_said("by # nats over the best loop", [min(map(fmean, losses.values())) - fmean(once)])
    changes = {
        name: [mine - theirs for mine, theirs in zip(found, plain, strict=True)] for name, found in losses.items()
    }
    below = {name: found for name, found in changes.items() if max(found) < 0}
    assert set(below) == {
        "loops growing from 2 to 4", "keys of the first loop", "two hyper-connected streams", "per loop: adaLN",
        "per loop: LoRA of rank 2", "residual scale 1/L", "keys of every second loop",
    }  # fmt: skip
    ends = [-extreme for found in below.values() for extreme in found]
    check_said("seven are below plain in each of three seeds, by # to #:", [min(ends), max(ends)])
    check_said(
        "A diagonal injection leads by # and # in two", [-x for x in changes["injection: diagonal, from zeros"][:2]]
    )
    worst = (
        "injection: concat, from noise", "norms before and after (both)", "short-long consistency",
        "loops drawn from 1 to 7",
    )  # fmt: skip
    ends = [change for name in worst for change in changes[name]]
    check_said("and drawn loop counts lose # to # in so few steps", [min(ends), max(ends)])


def test_what_eight_loops_do_to_designs_on_text() -> None:
    arms = Arms("loop_designs_text_small", 2)
    loops = [name for name, _ in table("design | loss at its loops") if not name.startswith("rival")]
    lost = {name: fmean(arms.of(name)("validation", 8)) - fmean(arms.of(name)("validation", 4)) for name in loops}
    least = {
        "two hyper-connected streams", "injection: concat, from noise", "loops drawn from 1 to 7", "injection: add",
        "short-long consistency", "loss of every loop", "expected loss, exit gate",
    }  # fmt: skip
    found = [lost[name] for name in least]
    check_said("the losses over every loop and add (# to #)", [min(found), max(found)])
    assert max(found) < min(change for name, change in lost.items() if name not in least)


def test_what_is_said_of_designs_on_two_hops() -> None:
    arms = Arms("loop_designs_small", 1)
    loops = [name for name, _ in table("design | accuracy % at 4 loops") if not name.startswith("rival")]
    at = {name: [[100 * x for x in arms.of(name)("p_hop", number)] for number in (4, 8)] for name in loops}
    lost = {name: [four - eight for four, eight in zip(*found, strict=True)] for name, found in at.items()}
    check_said("which it never trained, it loses at most # points in any seed", [max(lost["plain"])])
    said = "So do gated (#), norm scales, adaLN, a loss of every loop (#)"
    check_said(said, [max(lost["injection: gated"]), max(lost["loss of every loop"])])
    far = ("injection: diagonal, from zeros", "injection: concat, from noise", "two hyper-connected streams")
    ends = [points for name in far for points in lost[name]]
    check_said("(but one seed of concat) and lose # to # points at eight", [min(ends), max(ends)])
    assert (len(loops), sum(min(found[1]) > 90 for found in at.values())) == (18, 10), "as the caption says"


def test_what_is_said_of_more_hops() -> None:
    arms = Arms("loop_extrapolation_small", 1)

    def share(name: str, hops: int, loops: int) -> list[float]:
        return [100 * value for value in arms.of(name)(f"p_hop:num_hops={hops}", loops)]

    plain, deep = share("plain", 3, 8), share("rival: four layers of their own, once", 3, 1)
    ends = [min(plain), max(plain), min(deep), max(deep)]
    check_said("it answers three hops that it never saw at # to # %.", ends[:2])
    check_said("answer them at # to # %, below chance", ends[2:])
    looped = [x for loops in (2, 3, 4, 6, 8, 12) for x in share("rival: four layers of their own, once", 3, loops)]
    check_said("Looping these four layers gives # to # %.", [min(looped), max(looped)])
    noise = share("injection: concat, from noise", 6, 8)
    check_said("six hops at # and # % in two seeds", sorted(noise, reverse=True)[:2])
    said = "from noise, reaches six hops at #, # and # %"
    check_said(said, share("injection: add at every loop, from noise", 6, 8))
    floor = {row.task: 100 * (row.shortcut or 0) for row in arms.rows_of("plain") if row.task.startswith("p_hop:")}
    known = [floor[f"p_hop:num_hops={hops}"] for hops in (3, 4, 6)]
    check_said("the best shortcut of three, four and six hops #, # and # %", known)
    said = "at # to # % with eight loops (best shortcut # %; four layers of their own # to # %)"
    check_said(said, [*ends[:2], known[0], *ends[2:]], "README.md")
    said = "answers six hops at #, # and # % in three seeds (best shortcut # %)"
    check_said(said, [*sorted(noise, reverse=True), known[2]], "README.md")
    few = [share("plain", hops, loops) for hops, loops in ((3, 3), (3, 4), (4, 4), (4, 6))]
    said = "(three hops # to # % with three loops, # to # % with four; four hops # to # % with four, # to # % with six)"
    check_said(said, [end for found in few for end in (min(found), max(found))])


def test_which_designs_keep_two_hops() -> None:
    arms, lost, apart = Arms("loop_extrapolation_small", 1), {}, []
    for name, _ in table("accuracy %, seeds 0, 1, 2 | trained: two hops"):
        if name.startswith("rival"):
            continue
        values = arms.of(name)
        ends = zip(*([100 * value for value in values("p_hop_2", loops)] for loops in (4, 12)), strict=True)
        lost[name] = [before - after for before, after in ends]
        beyond = [values(f"p_hop:num_hops={hops}", 8) for hops in (3, 4, 6)]
        apart += [100 * (max(found) - min(found)) for found in beyond]
    kept = {"loss of every loop", "expected loss, exit gate", "loops drawn from 3 to 5", "loops growing from 2 to 4",
            "per loop: adaLN", "plain"}  # fmt: skip
    assert {name for name, points in lost.items() if max(points) < 4} == kept, "within 4 points"
    check_said("Seeds of one design differ by up to # points at eight loops beyond what was trained", [max(apart)])


def test_the_quick_start() -> None:
    rows = JsonLines(ROOT / "tools" / "figures" / "quickstart.jsonl").read(EvaluationRow, strict=True)
    losses = {row.num_loops: row.value for row in rows if row.step == max(row.step for row in rows)}
    said = "Validation loss of the quick start at #, #, #, # and # loops: #, #, #, #, # nats per token."
    check_said(said, [*sorted(losses), *(losses[loops] for loops in sorted(losses))])
    rows = JsonLines(ROOT / "tools" / "figures" / "quickstart_depth.jsonl").read(EvaluationRow, strict=True)
    right = {row.num_loops: row for row in rows if row.task == "p_hop"}
    floor = [100 * (number or 0) for number in (right[1].shortcut, right[1].chance)]
    said = "Two hops with 1, 2, 3 and 4 loops of one layer: #, #, #, # % right, the best shortcut # %, chance # %;"
    for name in ("configs/README.md", "README.md"):
        check_said(said, [*(100 * right[loops].value for loops in (1, 2, 3, 4)), *floor], name)
    check_said("with a loss after every loop, seed 0, # questions.", [right[1].num_examples])


HEALED = {
    "rival: uncut, trained alike": "uncut", "healed 9+6⊗L+15": "healed", "": "healed",
    "merged 12+7⊗2+4, seven layers fewer": "merged", "rival: 12+7+4, seven layers removed": "removed",
}  # fmt: skip
"""Runs that were trained, by the names that their lines begin with."""


def test_healing() -> None:
    lines = 0
    for name, (loops, depth, losses, perplexity, *right) in table("model | loops | depth | loss"):
        if name not in HEALED:
            continue
        rows = [row for row in rows_of(f"pretrain/results/smollm2_{HEALED[name]}") if row.num_loops == int(loops)]
        found = {(row.task, row.metric, row.step): row.value for row in rows}
        check([losses], [found["validation", "nll", 0], found["validation", "nll", 200]])
        check(right, [found[task, "acc", 200] for task in ("lambada_openai", "piqa", "arc_easy", "winogrande")])
        wanted = found["lambada_openai", "perplexity", 200]
        assert float(perplexity.replace(",", "")) == pytest.approx(wanted, abs=0.5, rel=0.002)
        assert {row.effective_depth for row in rows} == {int(depth)}
        lines += 1
    assert lines == 7


def test_what_is_said_of_healing() -> None:
    def loss(run: str, loops: int, step: int) -> float:
        rows = rows_of(f"pretrain/results/smollm2_{run}")
        (value,) = (x.value for x in rows if (x.task, x.num_loops, x.step) == ("validation", loops, step))
        return value

    more = [loss("healed", loops, step) - loss("healed", 1, step) for step in (200, 0) for loops in (2, 4)]
    check_said("# nats above one loop at two, # at four, where it was # and #.", more)
    check_said("better than the uncut model after the same training (#)", [loss("uncut", 1, 200)])
    check_said(
        "in the place of seven removed layers is worth # nats", [loss("removed", 1, 200) - loss("merged", 2, 200)]
    )


def test_accuracies_of_exits() -> None:
    rows = rows_of("tasks/results/multiplication_exits_small")
    last = {row.num_loops: 100 * row.value for row in rows if row.task == "multiplication"}
    named = {"four for all, as trained": 4, "three for all": 3, "cheapest rival: two for all": 2, "one for all": 1}
    found = {named[name]: cells[0] for name, cells in table("loops of a token") if name in named}
    assert set(found) == {1, 2, 3, 4}
    for loops, text in found.items():
        check([text.partition(" ±")[0]], [last[loops]])
