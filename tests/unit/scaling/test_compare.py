"""tools/compare.py: a row a configuration, the settings that differ, mean and deviation over seeds."""

import csv
import json
from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from pretrain.config.read import read_config, resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepConfig
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.identity import RunIdentity
from pretrain.rows.jsonl import JsonLines
from tests.support.scaling_rows import FIELDS
from tests.unit.finetune.test_coconut_table import CONFIGS
from tests.unit.finetune.test_coconut_table import write_run as write_answers
from tools.compare import main

CONFIG = Path(__file__).parents[3] / "configs" / "tasks" / "p_hop_small.yaml"


def write_run(root: Path, name: str, values: dict[int, float], *overrides: str, **fields: object) -> Path:
    """A run directory whose model has these accuracies by loop count."""
    config = read_config(CONFIG, RunConfig, [f"run.name={name}", *overrides])
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(resolved_yaml(config))
    (folder / "environment.txt").write_text("git commit: x\nranks: 4 = data 4\ndevice: cpu\n")
    steps = [{"step": 2 * n, "step_time_s": 9.0, "tokens_seen": 50 * n, "loss": 1.0} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    said = vars(RunIdentity.of(config, trained_loops=(1, 2), data="d"))
    task = {"task": "p_hop", "task_group": "p_hop", "metric": "acc", "inputs": "examples=a bos=yes", "stderr": 0.01}
    JsonLines(folder / "eval" / "depth.jsonl").append(
        EvaluationRow(**(FIELDS | said | task | {"run": name, "num_loops": loops, "value": value} | fields))  # type: ignore[arg-type]
        for loops, value in values.items()
    )
    return folder


def test_seeds_are_one_row_and_what_differs_is_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "sweep"
    for seed, value in ((0, 0.5), (1, 0.7)):
        write_run(root, f"a-seed{seed}", {1: value, 2: value + 0.1}, f"run.seed={seed}")
    write_run(root, "b-seed0", {1: 0.9}, "optimizer.lr=0.002")
    write_run(root, "again", {1: 0.1}, "run.seed=0")
    assert main([str(root), "--csv", str(tmp_path / "table.csv")]) == 0
    printed = capsys.readouterr()
    assert "run again has the configuration, seed and data of run a-seed0" in printed.err or "left out" in printed.err
    assert "2 configurations" in printed.out and "0.6 ± 0.14" in printed.out and "0.9 (± 0.01)" in printed.out
    with (tmp_path / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert set(first) - {"runs", "seeds", "tokens", "device_hours"} >= {"optimizer.lr", "p_hop acc L=2 mean"}
    assert not any(key.startswith(("model.", "train.")) for key in first), "what is equal is no column"
    assert (first["optimizer.lr"], second["optimizer.lr"], first["seeds"]) == ("0.001", "0.002", "2")
    assert float(first["p_hop acc L=1 mean"]) == pytest.approx(0.6)
    assert float(first["p_hop acc L=1 sd"]) == pytest.approx(0.02**0.5)
    assert (first["tokens"], second["p_hop acc L=2 mean"]) == ("100", "")
    assert float(first["device_hours"]) == pytest.approx(4 * 4 * 9 / 3600, rel=1e-2)


def test_values_of_a_setting_stand_side_by_side_with_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nll = {"task": "validation", "task_group": "validation", "metric": "nll", "stderr": None}
    for loops, losses in ((1, (2.5, 2.25, 2.75)), (4, (2.0, 2.125, 3.0))):
        for lr, loss in zip(("9e-4", "1e-2", "1e-1"), losses, strict=True):
            name, settings = f"1x{loops}-{lr}", (f"optimizer.lr={lr}", f"model.num_loops={loops}")
            folder = write_run(tmp_path, name, {loops: loss}, *settings, **nll)
            write_run(tmp_path / "more", name, {loops: loss + 0.5}, *settings, "run.seed=1", **nll)
    assert main([str(tmp_path), str(tmp_path / "more"), "--along", "optimizer.lr"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["model.num_loops", "result", "0.0009", "0.01", "0.1", "best", "at"]
    assert [(line[0], line[-1]) for line in lines[2:4]] == [("default", "0.01"), ("4", "0.0009")]
    assert lines[2][4:7] == ["2.75", "±", "0.35"]
    figure = tmp_path / "along.svg"
    rows = tmp_path / "rows.jsonl"
    files = [path for root in (tmp_path, tmp_path / "more") for path in sorted(root.glob("1x*/eval/depth.jsonl"))]
    rows.write_bytes(b"".join(path.read_bytes() for path in files))
    drawn = []
    for runs in ([str(tmp_path), str(tmp_path / "more")], [str(rows)]):
        assert main([*runs, "--along", "optimizer.lr", "--figure", str(figure)]) == 0
        drawn.append(figure.read_bytes())
    svg = drawn[0].decode()
    assert drawn[0] == drawn[1], "published rows give the figure of the runs"
    assert all(f">{text}</text>" in svg for text in ("L=1", "L=4", "optimizer.lr", "validation nll", "filled: best"))
    assert "12 runs: " in svg
    (tmp_path / "damaged.jsonl").write_text('{"a": \n')
    assert main([str(tmp_path / "damaged.jsonl")]) == 2
    assert "damaged.jsonl:1: " in (said := capsys.readouterr().err) and "nothing to compare" in said
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--along", "optimizer.lr,model.num_loops", "--figure", str(figure)])
    assert "--figure draws along one setting" in capsys.readouterr().err
    assert main([str(folder), "--along", "optimizer.beta2"]) == 2
    assert "error: --along optimizer.beta2: the runs differ in nothing\n" in capsys.readouterr().err


def test_chance_and_the_best_shortcut_stand_beside_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "a-seed0", {1: 0.5}, chance=0.25, shortcut=0.4)
    write_run(tmp_path, "old", {1: 0.9}, "optimizer.lr=0.002")
    assert main([str(tmp_path), "--csv", str(tmp_path / "table.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("p_hop chance  p_hop best shortcut")
    assert lines[2].split()[-2:] == ["0.25", "0.4"] and lines[3].split()[-2:] == ["-", "-"]
    with (tmp_path / "table.csv").open() as file:
        assert [row["p_hop best shortcut"] for row in csv.DictReader(file)] == ["0.4", ""]


def test_other_questions_are_no_seeds_and_imported_models_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "a-seed0", {1: 0.5})
    write_run(tmp_path, "a-seed1", {1: 0.7}, "run.seed=1", inputs="examples=b bos=yes")
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "config.yaml").write_text("run: imported\nmodel: {}\n")
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "p_hop acc L=1: the runs were not asked the same questions: shown apart" in printed.err
    assert f"{tmp_path / 'imported'} was not trained here: left out" in printed.err
    assert "0.5 (± 0.01)" in printed.out and "0.7 (± 0.01)" in printed.out and "0.6 ±" not in printed.out


def test_fine_tuned_runs_are_pooled_by_the_same_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of the same seed make no other configuration, a repeated run is no seed, and what one run was asked
    twice, of other examples, is two results."""
    for name, seed, accuracy in (("a-seed0", 0, 0.5), ("a-seed1", 1, 0.7), ("again", 0, 0.9)):
        overrides = (f"run.seed={seed}", f"checkpoint.init_from=runs/before-seed{seed}")
        config = read_config(CONFIGS / "prosqa.yaml", FinetuneConfig, [f"run.name={name}", *overrides])
        said = {"config": "prosqa", "run_id": name, "inputs": "examples=a"}
        write_answers(tmp_path / name, accuracy, *overrides, **said)
        if name == "a-seed0":
            write_answers(tmp_path / name, 0.25, *overrides, **said | {"inputs": "examples=b", "num_examples": 8})
        (tmp_path / name / "config.yaml").write_text(resolved_yaml(config))
    assert main([str(tmp_path), "--csv", str(tmp_path / "table.csv")]) == 0
    assert "run again has the configuration, seed and data of run a-seed0" in capsys.readouterr().err
    with (tmp_path / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    means = {key: value for key, value in row.items() if key.endswith(" mean")}
    assert row["seeds"] == "2" and sorted(map(float, means.values())) == [0.25, pytest.approx(0.6)]
    assert {key.partition("[")[2].split()[1]: float(value) for key, value in means.items()}["examples=b]"] == 0.25


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("model: [1")
    for path, words in ((tmp_path / "absent", "no run there"), (tmp_path / "bad", "not the configuration of a run")):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "grid", ["{optimizer.lr: [1e-3, 1e-2], optimizer.beta2: [0.9, 0.99]}", "{model.norm: [rms, layer]}"]
)
def test_a_grid_is_drawn_along_one_setting_of_numbers(tmp_path: Path, grid: str) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"config: configs/pretrain/quickstart.yaml\ngrid: {grid}\n")
    (along,) = read_config(file, SweepConfig).compare_options(tmp_path)
    assert along.startswith("--along=")
