"""Committed results belong to the committed configurations, and tools/publish.py takes no others."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from finetune.answers.results import CoconutRow
from finetune.examples.examples import load_examples
from finetune.kinds import kind_of
from pretrain.checkpoint.counters import Counters
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.config.sweep import SweepConfig, cells
from pretrain.rows.evaluation import ScoredModel
from pretrain.rows.identity import RunIdentity, config_of, digest, parse_inputs
from pretrain.rows.jsonl import JsonLines
from tests.support.shipped import schema_of
from tools import publish

ROOT = Path(__file__).parents[3]
RESULTS = sorted(folder for folder in (ROOT / "configs").glob("*/results/*") if folder.is_dir())


def name_of(folder: Path) -> str:
    return folder.relative_to(ROOT / "configs").as_posix()


def rows_in(folder: Path) -> list[RunIdentity]:
    return [row for path in sorted(folder.glob("*.jsonl")) for row in JsonLines(path).read(RunIdentity, strict=True)]


def committed(folder: Path, rows: list[RunIdentity]) -> set[str]:
    """Hashes of the runs that the files of today give: of the sweep of that name, or, where there is none, of the
    configuration of that name with the seeds of the rows."""
    sweep = ROOT / "configs" / "sweeps" / f"{folder.name}.yaml"
    if sweep.is_file():
        return set(publish.configurations(read_config(sweep, SweepConfig)).values())
    file = folder.parents[1] / f"{folder.name}.yaml"
    schema = schema_of(file)
    return {config_of(read_config(file, schema, [f"run.seed={row.seed}"])) for row in rows}


@pytest.mark.parametrize("folder", RESULTS, ids=name_of)
def test_rows_are_of_the_configuration_of_today(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = rows_in(folder)
    assert rows, "no rows"
    assert {row.config for row in rows} <= committed(folder, rows)


TUNED = [folder for folder in RESULTS if folder.parents[1].name == "finetune"]


def configs_of(folder: Path) -> dict[str, Any]:
    """Of a folder of results of fine-tuning, by `RunIdentity.config`."""
    sweep_file, file = ROOT / "configs" / "sweeps" / f"{folder.name}.yaml", folder.parents[1] / f"{folder.name}.yaml"
    runs = [[f"run.seed={row.seed}"] for row in rows_in(folder)]
    if sweep_file.is_file():
        sweep = read_config(sweep_file, SweepConfig)
        file, runs = ROOT / sweep.config, [list(cell.overrides) for cell in cells(sweep)]
    found = [read_config(file, schema_of(file), overrides) for overrides in runs]
    return {config_of(config): config for config in found}


def test_answers_are_to_the_test_questions_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """data.test may be corrected after training, so a row's configuration does not say what was asked; its inputs do.
    Questions that take long to draw are held to be the same in all results of one data.test."""
    monkeypatch.chdir(ROOT)
    asked: dict[str, str] = {}
    checked = set()
    for folder in TUNED:
        configs = configs_of(folder)
        for row in JsonLines(folder / "coconut.jsonl").read(CoconutRow, strict=True):
            section, seed = configs[row.config or ""].data.test, row.seed or 0
            if (row.split, row.num_examples) == ("test", section.num_examples):
                examples = parse_inputs(row.inputs)["examples"]
                key = f"{section} {seed if section.seed is None else ''}"
                if key not in asked and not (section.task or "").startswith("prosqa"):
                    asked[key] = digest(repr(load_examples(section, "test", seed, needs_steps=False)))
                assert asked.setdefault(key, examples) == examples, (folder.name, row.run)
                checked.add(folder)
    assert checked == set(TUNED)


SWEEP = f"""
config: {ROOT}/configs/tasks/p_hop_small.yaml
overrides: [train.steps=STEPS]
models: [{{num_loop_layers: 1, num_loops: 2}}]
seeds: [0, 1]
"""


def make_runs(folder: Path, sweep: Path) -> None:
    """Rows and figures, as the sweep of a file leaves them."""
    settings, root = read_config(sweep, SweepConfig), folder / "runs" / "sweeps" / sweep.stem
    kind = kind_of(settings)
    for number, cell in enumerate(cells(settings)):
        config = read_config(Path(settings.config), kind.schema, list(cell.overrides))
        said = RunIdentity.of(config, trained_loops=(1, 2))
        row: dict[str, Any] = {**vars(said), "run": cell.name, "value": 0.5}
        if isinstance(config, RunConfig):
            saved = SavedModel.of(config).model_copy(update={"run": cell.name})
            subject = ScoredModel(saved=saved, counters=Counters(step=1), identity=said)
            num_loops = cell.num_loops or 1
            made = subject.row("p_hop", "p_hop", "acc", 0.2 + number / 10, num_loops=num_loops, num_examples=100)
            row = asdict(made)
        file = root / cell.name / "eval" / kind.rows
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(row) + "\n")
        (file.parents[1] / "state").write_text("complete\n")
        (file.parents[1] / "environment.txt").write_text("git commit: abc\ntorch: 2\nhost: here\n")
    (root / "scaling.svg").write_text("of fewer rows")


def test_a_finished_sweep_is_published_whole_and_one_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP.replace("STEPS", "200"))
    make_runs(tmp_path, file)
    assert publish.main(["tiny.yaml"]) == 0
    out = tmp_path / "configs" / "sweeps" / "results" / "tiny"
    names = [json.loads(line)["run"] for line in (out / "depth.jsonl").read_text().splitlines()]
    assert names == [f"{shape}-seed{seed}" for shape in ("1x2", "2x1", "1x1") for seed in (0, 1)]
    drawn = (out / "scaling.svg").read_text()
    assert "6 runs: 1x1, 2x1 and 1x2, seeds 0, 1 of each; p_hop 100 questions" in drawn, "of all rows, drawn anew"
    said = "# git commit: abc\n# torch: 2\npython tools/sweep.py tiny.yaml\npython tools/publish.py tiny.yaml\n"
    assert (out / "commands.txt").read_text() == said
    (out / "law.svg").write_text("of older rows, that had a law")
    assert publish.main(["tiny.yaml"]) == 0
    assert not (out / "law.svg").exists(), "a figure that is not drawn from these rows"
    before = (out / "depth.jsonl").read_bytes()
    torn = tmp_path / "runs/sweeps/tiny/1x2-seed0/eval/depth.jsonl"
    torn.write_text(torn.read_text() + '{"run": "1x2-se')
    assert publish.main(["tiny.yaml"]) == 0
    assert (out / "depth.jsonl").read_bytes() == before and "depth.jsonl:2: " in capsys.readouterr().err
    file.write_text(SWEEP.replace("STEPS", "300"))
    assert publish.main(["tiny.yaml"]) == 2
    assert "1 of 1 rows are of another configuration than the sweep's today" in capsys.readouterr().err
    (tmp_path / "runs/sweeps/tiny/1x1-seed1/eval/depth.jsonl").unlink()
    file.write_text(SWEEP.replace("STEPS", "200"))
    assert publish.main(["tiny.yaml"]) == 2
    assert "1x1-seed1/eval/depth.jsonl: no rows: end the sweep first" in capsys.readouterr().err
    assert (out / "depth.jsonl").read_bytes() == before, "a sweep that is refused replaces nothing"


def test_a_sweep_is_published_in_parts_from_several_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        publish, "draw", lambda sweep, file, root: (root / "scaling.svg").write_bytes(file.read_bytes())
    )
    file, runs = tmp_path / "tiny.yaml", tmp_path / "runs" / "sweeps" / "tiny"
    file.write_text(SWEEP.replace("STEPS", "200"))
    assert publish.main(["tiny.yaml", "--partial"]) == 2
    assert "no complete run of the sweep has rows" in capsys.readouterr().err
    out = tmp_path / "configs" / "sweeps" / "results" / "tiny"

    def here(*names: str) -> None:
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        make_runs(tmp_path, file)
        for run in [run for run in runs.iterdir() if run.is_dir() and run.name not in names]:
            shutil.rmtree(run)

    def shown() -> list[str]:
        return [json.loads(line)["run"] for line in (out / "depth.jsonl").read_text().splitlines()]

    here("1x2-seed0", "2x1-seed1")
    assert publish.main(["tiny.yaml", "--partial"]) == 0
    assert "without 4 runs" in capsys.readouterr().out
    here("1x1-seed0", "2x1-seed1")
    assert publish.main(["tiny.yaml", "--partial"]) == 0
    assert shown() == ["1x2-seed0", "2x1-seed1", "1x1-seed0"], "in the order of the sweep, no row twice"
    assert (out / "scaling.svg").read_bytes() == (out / "depth.jsonl").read_bytes(), "the figure is of all rows"
    said = (out / "commands.txt").read_text()
    assert "# still to come: 1x2-seed1\n" in said
    assert "python tools/publish.py tiny.yaml --partial\n" in said

    assert "# git commit: abc\n" in said
    here()
    assert publish.main(["tiny.yaml", "--partial"]) == 0
    assert (out / "commands.txt").read_text() == said, "with no run here all stays as it was published"
    before = (out / "depth.jsonl").read_bytes()
    here("1x2-seed0", "1x2-seed1")
    for name in ("1x2-seed0", "1x2-seed1"):  # both have rows of their validations
        (runs / name / "state").write_text("stopped by SIGINT\n")
    (runs / "1x2-seed0" / "eval" / "depth.jsonl").write_text("")
    assert publish.main(["tiny.yaml", "--partial"]) == 0
    assert (out / "depth.jsonl").read_bytes() == before, (
        "a run that is not at its end replaces nothing and adds nothing"
    )
    assert publish.main(["tiny.yaml"]) == 2
    assert "1x2-seed0: is not complete: end the sweep first" in capsys.readouterr().err

    file.write_text(SWEEP.replace("STEPS", "300"))
    here("1x2-seed0")
    assert publish.main(["tiny.yaml", "--partial"]) == 0
    assert shown() == ["1x2-seed0"], "rows of another configuration do not stay"


def test_a_sweep_over_methods_is_published_beside_the_other_results_of_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(f"{{config: {ROOT}/configs/finetune/prosqa_small.yaml, methods: {{coconut: [], cot: []}}}}")
    make_runs(tmp_path, file)
    assert publish.main(["tiny.yaml"]) == 0
    rows = (tmp_path / "configs/finetune/results/tiny/coconut.jsonl").read_text().splitlines()
    assert [json.loads(row)["run"] for row in rows] == ["coconut-seed0", "cot-seed0"]
