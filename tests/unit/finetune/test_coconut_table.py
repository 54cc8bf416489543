"""The table of methods: seeds of one configuration are pooled, and nothing else is."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from finetune.answers.results import CoconutRow
from finetune.config import FinetuneConfig
from pretrain.config.read import read_config
from pretrain.rows.identity import RunIdentity
from pretrain.rows.jsonl import JsonLines
from tests.unit.finetune.test_scoring import make_row
from tools.coconut_table import main

CONFIGS = Path(__file__).parents[3] / "configs" / "finetune"


def write_run(folder: Path, accuracy: float, *overrides: str, config: str = "prosqa_small", **changes: Any) -> Path:
    """A run directory named after its folder with one test row."""
    settings = read_config(CONFIGS / f"{config}.yaml", FinetuneConfig, [f"run.name={folder.name}", *overrides])
    said = vars(RunIdentity.of(settings, trained_loops=(1, 1))) | {"run": folder.name, "method": settings.method.name}
    row = replace(make_row(), **(said | {"step": 9, "epoch": 8, "accuracy": accuracy} | changes))
    JsonLines(folder / "eval" / "coconut.jsonl").append([row])
    return folder


def table(capsys: pytest.CaptureFixture[str], *runs: Path) -> list[tuple[str, ...]]:
    """Method, run, thoughts, accuracy and number of seeds of every line."""
    assert main([str(run) for run in runs]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    return [(line[0], line[1], line[2], line[4], line[-1]) for line in lines]


def test_seeds_are_pooled_whatever_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_run(tmp_path / "a-seed0", 0.5, "run.seed=0"),
        write_run(tmp_path / "a-seed1", 0.6, "run.seed=1", "logging.wandb=disabled"),
        write_run(tmp_path / "other", 0.7, "run.seed=2"),
        write_run(tmp_path / "cot", 0.4, "method.name=cot", num_thoughts=0),
    ]
    assert table(capsys, *runs, runs[0]) == [
        ("coconut", "a, other", "2", "60.0 ± 10.0", "3"), ("cot", "cot", "0", "40.0", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize("override", ["curriculum.uniform_prob=0.3", "train.epochs=20", "method.jacobi_passes=1"])
def test_variants_of_a_method_are_lines_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    """Also where the names say that only the seed differs."""
    runs = [write_run(tmp_path / "a-seed0", 0.5), write_run(tmp_path / "a-seed1", 0.6, "run.seed=1", override)]
    lines = table(capsys, *runs)
    assert sorted(line[3:] for line in lines) == [("50.0", "1"), ("60.0", "1")]


def test_runs_of_one_name_in_two_sweeps_are_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_run(tmp_path / sweep / "coconut-seed0", accuracy, config=sweep)
        for sweep, accuracy in (("prosqa_small", 0.5), ("prontoqa_small", 0.6))
    ]
    assert sorted(line[3:] for line in table(capsys, *runs)) == [("50.0", "1"), ("60.0", "1")]


def test_other_questions_are_not_pooled_and_a_newer_checkpoint_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "a-seed0", 0.5)
    file = JsonLines(run / "eval" / "coconut.jsonl")
    (row,) = file.read(CoconutRow)
    file.append([replace(row, num_examples=99, accuracy=0.9), replace(row, step=10, accuracy=0.8)])
    assert sorted(line[3:] for line in table(capsys, run)) == [("80.0", "1"), ("90.0", "1")]


def test_rows_from_before_the_variant_are_pooled_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"variant": None, "settings": None, "run_id": None, "seed": None}
    runs = [
        write_run(tmp_path / name, accuracy, **old)
        for name, accuracy in (("a-seed0", 0.5), ("a-seed1", 0.6), ("a_mixed-seed0", 0.7))
    ]
    assert table(capsys, *runs) == [("coconut", "a", "2", "55.0 ± 7.1", "2"), ("coconut", "a_mixed", "2", "70.0", "1")]


def test_unlike_rows_are_never_averaged_and_what_differs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Names that match, of another data set, another test set, and a repeated run."""
    first = write_run(tmp_path / "a-seed0", 0.5, inputs="examples=aaa")
    runs = [
        first,
        write_run(tmp_path / "a-seed1", 0.6, "run.seed=1", inputs="examples=aaa"),
        write_run(tmp_path / "a-seed2", 0.9, "run.seed=2", inputs="examples=bbb"),
        write_run(tmp_path / "a-seed3", 0.8, "run.seed=3", "curriculum.uniform_prob=0.3", inputs="examples=aaa"),
        write_run(tmp_path / "again-seed0", 0.1, inputs="examples=aaa"),
    ]
    assert main([str(run) for run in runs]) == 0
    printed = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.out.splitlines()]
    differs = cells[0].index("differs in")
    assert sorted((line[4], line[differs], line[-1]) for line in cells[2:]) == [
        ("55.0 ± 7.1", "test set=aaa, curriculum.uniform_prob=default", "2"),
        ("80.0", "test set=aaa, curriculum.uniform_prob=0.3", "1"),
        ("90.0", "test set=bbb, curriculum.uniform_prob=default", "1"),
    ]
    assert "run again-seed0 has configuration and seed of run a-seed0: no further seed, left out" in printed.err
    assert "runs that have other test sets are not averaged" in printed.err
    row = dict(zip(cells[0], cells[2], strict=True))
    assert row["examples"] == "4" and float(row["± examples"]) > 0


def test_a_run_that_was_rewarded_is_not_asked_for_the_controls_of_a_curriculum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewarded = write_run(tmp_path / "a-seed0", 0.5, settings={"rollout.thought_noise": 0.2}, variant="other")
    assert main([str(rewarded)]) == 0
    assert "its controls" not in capsys.readouterr().err


def test_what_tells_whether_thoughts_help_is_asked_for_where_it_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of fewer thoughts, and the controls on the same questions."""

    def said(*runs: Path) -> list[str]:
        assert main([str(run) for run in runs]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "test sets" not in line]

    runs = [write_run(tmp_path / "a-seed0", 0.5), write_run(tmp_path / "a-seed1", 0.6, "run.seed=1")]
    config = f"--config {runs[0] / 'config.yaml'}"
    controls = "nothing beside coconut with without_thought, pause_as_thought, without_curriculum, its controls: "
    controls += f"python finetune/coconut.py {config} method.name=without_thought run.name=without_thought"
    assert said(*runs) == [
        f"warning: no rows with 0, 1 thoughts of {runs[0]}, {runs[1]}: "
        f"python tools/eval_coconut.py --run {runs[0]} --latents all",
        f"warning: {controls}",
    ]
    for run in runs:
        file = JsonLines(run / "eval" / "coconut.jsonl")
        (row,) = file.read(CoconutRow)
        file.append([replace(row, num_thoughts=0), replace(row, num_thoughts=1)])
    others = [
        write_run(tmp_path / name, 0.5, f"method.name={name}", num_thoughts=0)
        for name in ("without_thought", "without_curriculum", "cot")
    ]
    elsewhere = write_run(tmp_path / "b", 0.5, "method.name=pause_as_thought", inputs="examples=bbb", num_thoughts=0)
    (line,) = said(*runs, *others, elsewhere)
    assert line.startswith("warning: nothing beside coconut with pause_as_thought, its controls: ")
    beside = write_run(tmp_path / "c", 0.5, "method.name=pause_as_thought", num_thoughts=0)
    assert said(*runs, *others, beside) == []


def shipped(name: str) -> list[CoconutRow]:
    """The test rows of a folder of results."""
    file = JsonLines(CONFIGS / "results" / name / "coconut.jsonl")
    return [row for row in file.read(CoconutRow, strict=True) if row.split == "test"]


def test_the_table_of_prosqa_is_that_of_the_shipped_rows() -> None:
    """Every method with its thoughts, the accuracies by seed, the tokens and FLOPs of an answer; and its rivals."""
    section = (CONFIGS.parent / "README.md").read_text(encoding="utf-8").split("\n## ProsQA\n")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    rows = [*shipped("prosqa_hard_small"), *shipped("prosqa_hard_small_from_cot")]
    told: set[str] = set()
    for name, thoughts, *cells in lines[2:]:
        method = name.split("`")[1]
        told.add(method)
        mine = [row for row in rows if row.method == method and row.num_thoughts == int(thoughts.split()[0])]
        mine.sort(key=lambda row: row.seed or 0)
        accuracies = ", ".join(f"{100 * row.accuracy:.1f}" for row in mine)
        tokens, flops = fmean(row.new_tokens for row in mine), fmean(row.flops_per_example for row in mine) / 1e6
        assert cells == [accuracies, f"{tokens:.1f}", f"{flops:.1f}"], method
    assert told == {row.method for row in rows}
    for rival in ("prosqa_hard_small_mixed", "prosqa_hard_small_parallel"):
        (row,) = shipped(rival)
        assert f"{rival}.yaml" in section and f"{100 * row.accuracy:.1f} %" in section
