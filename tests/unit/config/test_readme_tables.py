"""The tables of configs/README.md say what the committed rows say, digit by digit."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from pretrain.model.config import LoopSection
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
SEEDS = (0, 1, 2)
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


def rows_of(folder: str) -> list[EvaluationRow]:
    return list(JsonLines(ROOT / "configs" / folder / "depth.jsonl").read(EvaluationRow, strict=True))


def table(header: str) -> Iterator[tuple[str, list[str]]]:
    """The lines below a header that begins so: what stands first, without what follows in brackets or after a colon
    where it is a remark, and the other cells."""
    lines = TEXT.split(f"\n| {header}")[1].split("\n\n")[0].splitlines()[2:]
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        yield re.sub(r" \(\d.*|: (a quarter|half|0\.44) .*", "", name), cells


def check(cells: Sequence[str], wanted: Sequence[float]) -> None:
    """Raise unless the numbers of cells are those, as they are rounded there."""
    found = re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?", re.sub(r"(\d),(\d{3})", r"\1\2", " ".join(cells)).replace(", ", " "))
    assert len(found) == len(wanted), (found, wanted)
    for text, number in zip(found, wanted, strict=True):
        digits = len(text.partition(".")[2])
        assert float(text) == pytest.approx(number, abs=0.5 * 10**-digits + 1e-9, rel=0), (text, number)


class Arms:
    """The newest rows of a sweep's runs, by design, layers and loops that were trained."""

    def __init__(self, sweep: str, num_layers: int) -> None:
        rows = rows_of(f"sweeps/results/{sweep}")
        self._rows, self._num_layers, self._last = rows, num_layers, max(row.step for row in rows)

    def of(self, name: str) -> Callable[..., list[float]]:
        """A function of task, number of loops and step (by default each run's last): the values, by seed."""
        layers, loops, design = self._num_layers, 4, DESIGNS.get(name, {})
        if name.startswith("rival: "):
            own = {"four layers of": 4, "eight layers o": 8}
            layers, loops = own.get(name[7:21], layers), 1
        chosen = [row for row in self._rows if self._is(row, layers, loops, design)]
        assert chosen, name

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


def test_accuracies_of_exits() -> None:
    rows = rows_of("tasks/results/multiplication_exits_small")
    last = {row.num_loops: 100 * row.value for row in rows if row.task == "multiplication"}
    named = {"four for all, as trained": 4, "three for all": 3, "cheapest rival: two for all": 2, "one for all": 1}
    found = {named[name]: cells[0] for name, cells in table("loops of a token") if name in named}
    assert set(found) == {1, 2, 3, 4}
    for loops, text in found.items():
        check([text.partition(" ±")[0]], [last[loops]])
