"""What the READMEs say of results, to hold it to the committed rows: lines of tables, numbers of sentences."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from finetune.answers.results import CoconutRow
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?"


@cache
def page(name: str) -> str:
    """The text of a README."""
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def rows_of(folder: str) -> list[EvaluationRow]:
    """The published evaluations of a folder below configs/."""
    return JsonLines(ROOT / "configs" / folder / "depth.jsonl").read(EvaluationRow, strict=True)


@cache
def answers_of(sweep: str) -> list[CoconutRow]:
    """The published answers of fine-tuned models."""
    file = ROOT / "configs" / "finetune" / "results" / sweep / "coconut.jsonl"
    return JsonLines(file).read(CoconutRow, strict=True)


def table(header: str, name: str = "configs/README.md") -> Iterator[tuple[str, list[str]]]:
    """The lines below the one header that begins so: what stands first, without what follows in brackets or after a
    colon where it is a remark, and the other cells."""
    _, found = page(name).split(f"\n| {header}")
    for line in found.split("\n\n")[0].splitlines()[2:]:
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        yield re.sub(r" \(\d.*|: (a quarter|half|0\.44) .*", "", first), cells


def check(cells: Sequence[str], wanted: Sequence[float], digits: int = 0) -> None:
    """Raise unless the numbers of cells are those, as they are rounded there, but to so many digits at least: 100 can
    stand for 100.0."""
    found = re.findall(NUMBER, re.sub(r"(\d),(\d{3})", r"\1\2", " ".join(cells)).replace(", ", " "))
    assert len(found) == len(wanted), (found, wanted)
    for text, number in zip(found, wanted, strict=True):
        shown = max(digits, len(text.partition(".")[2]))
        assert float(text.replace(",", "")) == pytest.approx(number, abs=0.5 * 10**-shown + 1e-9, rel=0), (text, number)


def check_said(sentence: str, wanted: Sequence[float], name: str = "configs/README.md") -> None:
    """Raise unless a page says this once, with those numbers, as they are rounded there, where # stands."""
    pattern = re.escape(" ".join(sentence.split())).replace(r"\#", f"({NUMBER})")
    (found,) = re.finditer(pattern, " ".join(page(name).split()))
    check(found.groups(), wanted)


class Scores:
    """The last values of a sweep's models, of as many examples as any."""

    def __init__(self, sweep: str) -> None:
        self.rows = rows_of(f"sweeps/results/{sweep}")

    def row(self, run: str, task: str, step: int | None = None) -> EvaluationRow:
        of_task = [row for row in self.rows if (row.run, row.task, row.is_main) == (run, task, True)]
        found = [row for row in of_task if step in (None, row.step)]
        assert found, (run, task)
        assert len({row.num_loops for row in found}) == 1
        return max(found, key=lambda row: (row.step, row.num_examples))

    def of(self, model: str, task: str = "validation", seeds: Sequence[int] = SEEDS) -> list[float]:
        """By seed: losses in nats, shares in percent."""
        rows = [self.row(f"{model}-seed{seed}", task) for seed in seeds]
        return [row.value * (1 if row.metric == "nll" else 100) for row in rows]

    def errors(self, task: str) -> list[float]:
        """Least and largest standard error of what `of` has of a task, in percent."""
        found = [100 * (self.row(row.run, task).stderr or 0) for row in self.rows if row.task == task]
        return [min(found), max(found)]
