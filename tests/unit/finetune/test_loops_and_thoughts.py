"""The figure of loops against reasoning in text and thoughts: which rows it takes, what it counts, its lines."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from finetune.config import FinetuneConfig
from pretrain.config.read import read_config, resolved_yaml
from tests.unit.finetune.test_coconut_table import CONFIGS, write_run
from tools import loops_and_thoughts

STEPS = {1: 7, 2: 3, 4: 1}
"""Steps of a chain by the elements of each, of nine."""


def finished(
    folder: Path, accuracy: float, method: str, each: int, *more: str, seed: int = 0, name: str = "composition_small",
    **changes: Any,
) -> Path:  # fmt: skip
    """A run of the sweep with its test row, one of test questions that were corrected, one of few of them, and one at a
    loop count that it was not trained at."""
    size = f"{{order: 3, num_elements: 9, elements_per_step: {each}}}"
    sizes = [f"data.{part}.parameters={size}" for part in ("train", "validation", "test")]
    overrides = [f"method.name={method}", f"run.seed={seed}", *sizes, *more]
    config = read_config(CONFIGS / f"{name}.yaml", FinetuneConfig, overrides)
    loops = config.train.num_loops or 1
    fields = {"num_thoughts": 0, "num_loops": loops, "examples_by_chain_length": {str(STEPS[each]): 9}, **changes}
    fields = {"num_examples": 2000, "data": "d", "inputs": "examples=a", **fields}
    write_run(folder, 0.99, *overrides, config=name, **{**fields, "inputs": "examples=mistaken"})
    write_run(folder, accuracy, *overrides, config=name, **fields)
    write_run(folder, 0.99, *overrides, config=name, **{**fields, "num_loops": loops + 1})
    write_run(folder, 0.99, *overrides, config=name, **{**fields, "num_examples": 60, "inputs": "examples=b"})
    (folder / "config.yaml").write_text(resolved_yaml(config))
    return folder


def test_points_are_those_trained_and_seeds_are_one_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        finished(tmp_path / "cot-7-seed0", 0.9, "cot", 1),
        finished(tmp_path / "cot-3-seed0", 0.6, "cot", 2),
        finished(tmp_path / "cot-3-seed1", 0.8, "cot", 2, seed=1),
        finished(
            tmp_path / "before-4loops-seed0", 0.7, "no_cot", 1, "train.num_loops=4",
            name="composition_small_from_prefixes",
        ),
        finished(tmp_path / "no_cot-8loops-seed0", 0.5, "no_cot", 1, "train.num_loops=8"),
        finished(tmp_path / "coconut-1-seed0", 0.4, "coconut", 4, "curriculum.num_stages=1", num_thoughts=1),
    ]  # fmt: skip
    assert loops_and_thoughts.main([*map(str, runs), "--out", str(tmp_path)]) == 0
    with (tmp_path / "loops_and_thoughts.csv").open() as file:
        found = [(row["series"], row["count"], row["accuracy_pct"], row["seeds"]) for row in csv.DictReader(file)]
    assert found == [
        ("coconut", "1", "40.0", "1"),
        ("cot", "3", "70.0", "2"),
        ("cot", "7", "90.0", "1"),
        ("loops", "4", "70.0", "1"),
        ("no_cot", "8", "50.0", "1"),
    ]
    printed = capsys.readouterr().out
    chance = float(next(line for line in printed.splitlines() if line.startswith("chance")).split()[-2])
    assert chance == pytest.approx(100 / 6, abs=1) and "best shortcut: sign" in printed, (
        "one of 6 elements, 3 of a sign"
    )
    assert (tmp_path / "loops_and_thoughts.png").stat().st_size > 1000
    assert loops_and_thoughts.BARS in (tmp_path / "loops_and_thoughts.svg").read_text()


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cot = finished(tmp_path / "cot", 0.9, "cot", 1)
    other = finished(tmp_path / "other", 0.9, "cot", 1, "data.test.parameters={order: 3, num_elements: 5}")
    pause = finished(tmp_path / "pause", 0.9, "pause", 1)
    unfinished = finished(tmp_path / "unfinished", 0.9, "coconut", 1)  # has 7 thoughts, its row has none
    slower = finished(tmp_path / "slower", 0.8, "cot", 1, "optimizer.lr=1e-4", seed=1)
    again = finished(tmp_path / "again", 0.8, "cot", 1)
    for runs, message in (
        ([cot, slower], f"{slower} and {cot} are one point, cot of 7, but differ in optimizer.lr"),
        ([cot, again], "are one point, cot of 7, but differ in nothing, the seed included"),
        ([cot, other], "its task is "),
        ([pause], "on a generated task are compared, not pause"),
        ([unfinished], "no row of split test at 7 thoughts and 1 loops; a finished run has it"),
    ):
        assert loops_and_thoughts.main(list(map(str, runs))) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_equal_points_at_one_place_have_one_name(tmp_path: Path) -> None:
    points = [
        loops_and_thoughts.ReasoningPoint("no_cot", loops, loops, (15.8,), 2.0, 1e6 * loops) for loops in (1, 2, 4)
    ]
    loops_and_thoughts.draw(points, {"chance": 16.5, "best": 33.3}, "", [tmp_path / "figure.svg"])
    texts = re.findall("<text[^>]*>(.*?)</text>", (tmp_path / "figure.svg").read_text())
    assert texts.count("1, 2, 4") == 1, "the panel of tokens; those of FLOPs are apart"
    assert loops_and_thoughts.BARS not in texts, "of one seed there are none"
