"""Sweeps: the family that a file stands for, its commands, and a real one from training to plot, stopped and
continued."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from finetune.method.methods import METHODS
from finetune.reinforce.config import GrpoConfig
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.config.sweep import SweepConfig, cells
from pretrain.eval.groups import trained_tasks
from pretrain.tasks.registry import make_task
from tests.support.commands import Commands
from tools.sweep import stages

ROOT = Path(__file__).parents[3]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
TINY = """
config: CONFIG
overrides: [train.steps=3, train.global_batch=8, train.micro_batch=8, model.hidden_size=16, model.num_attention_heads=2,
  model.ffn_size=16, optimizer.warmup_steps=0, validation.every=0, logging.wandb=disabled, train.precision=fp32,
  data.num_workers=0]
models: [{num_loop_layers: 1, num_loops: 2}]
baselines: false
evaluation: {num_examples: 10}
"""
TINY_METHODS = f"""
config: {ROOT}/configs/finetune/prosqa_small.yaml
overrides: [model.hidden_size=16, model.num_attention_heads=2, model.ffn_size=16, model.num_loop_layers=1,
  data.train.num_examples=16, data.validation.num_examples=4, data.test.num_examples=4, curriculum.num_stages=1,
  curriculum.first_stage_epochs=1, train.epochs=3, train.effective_batch=8, train.micro_batch=4, logging.wandb=disabled]
methods: {{coconut: [curriculum.thoughts_per_step=2], no_cot: []}}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text.replace("CONFIG", str(ROOT / "configs/tasks/p_hop_small.yaml")))
    return path


def test_a_looped_model_comes_with_its_two_baselines_and_all_seeds(tmp_path: Path) -> None:
    models = "[{num_loop_layers: 2, num_loops: 3}, {num_loop_layers: 2}]"
    text = f"{{config: CONFIG, overrides: [train.steps=9], models: {models}, seeds: [0, 7]}}"
    family = cells(read_config(write(tmp_path / "s.yaml", text), SweepConfig))
    assert [cell.name for cell in family] == [
        f"{shape}-seed{seed}" for shape in ("2x3", "6x1", "2x1") for seed in (0, 7)
    ]
    assert family[0].overrides == ("train.steps=9", "model.num_loop_layers=2", "model.num_loops=3", "run.seed=0")
    assert [cell.num_loops for cell in family[::2]] == [3, 1, 1]


def test_a_grid_multiplies_models_methods_or_the_configuration_itself(tmp_path: Path) -> None:
    """Values are those that are written, however YAML spells them; each run has its own."""
    grid = "{optimizer.lr: [1e-3, 0.00001], optimizer.name: [adamw, muon], run.seed: [3, 4]}"
    family = cells(read_config(write(tmp_path / "s.yaml", f"{{config: CONFIG, grid: {grid}}}"), SweepConfig))
    names = ["lr1e-3-nameadamw-seed3", "lr1e-3-nameadamw-seed4", "lr1e-3-namemuon-seed3"]
    assert [cell.name for cell in family[:3]] == names
    configs = [read_config(ROOT / "configs/tasks/p_hop_small.yaml", RunConfig, list(cell.overrides)) for cell in family]
    found = [(config.optimizer.lr, config.optimizer.name, config.run.seed) for config in configs]
    assert found == list(product((1e-3, 1e-5), ("adamw", "muon"), (3, 4)))
    models = "overrides: [train.steps=9], models: [{num_loop_layers: 1, num_loops: 2, overrides: [c.d=0.5]}]"
    text = f"{{config: CONFIG, {models}, grid: {{a.lr: [1], b.lr: [2, 3]}}}}"
    family = cells(read_config(write(tmp_path / "s.yaml", text), SweepConfig))
    names = [f"1x2-d0.5-a.lr1-b.lr{value}-seed0" for value in (2, 3)]
    assert [cell.name for cell in family][:2] == names and len(family) == 6
    shape = ("model.num_loop_layers=1", "model.num_loops=2")
    assert family[0].overrides == ("train.steps=9", "c.d=0.5", *shape, "a.lr=1", "b.lr=2", "run.seed=0")
    text = "{config: CONFIG, methods: {no_cot: []}, grid: {train.num_loops: [1, 2]}}"
    family = cells(read_config(write(tmp_path / "s.yaml", text), SweepConfig))
    assert [cell.name for cell in family] == ["no_cot-num_loops1-seed0", "no_cot-num_loops2-seed0"]


def test_overrides_that_end_alike_are_models_of_their_own(tmp_path: Path) -> None:
    """a.lr=1 and b.lr=1 are two; the same twice is one, and so is a baseline of two models."""
    models = "[{num_loop_layers: 1, overrides: [OVERRIDE]}, {num_loop_layers: 1, overrides: [optimizer.lr=1]}]"
    text = f"{{config: CONFIG, models: {models}}}"
    one, other = cells(read_config(write(tmp_path / "s.yaml", text.replace("OVERRIDE", "other.lr=1")), SweepConfig))
    assert one.name != other.name and all(re.fullmatch("1x1-lr1-[0-9a-f]{6}-seed0", cell.name) for cell in (one, other))
    assert (one.overrides[0], other.overrides[0]) == ("other.lr=1", "optimizer.lr=1")
    (cell,) = cells(read_config(write(tmp_path / "s.yaml", text.replace("OVERRIDE", "optimizer.lr=1")), SweepConfig))
    assert cell.name == "1x1-lr1-seed0"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = read_config(path, SweepConfig)
    for cell in cells(sweep):
        overrides = [*cell.overrides, f"run.name={cell.name}"]
        if sweep.policies:
            assert read_config(Path(sweep.config), GrpoConfig, overrides).run.name == cell.name
        elif sweep.methods:
            assert read_config(Path(sweep.config), FinetuneConfig, overrides).method.name == cell.name.split("-")[0]
        else:
            assert read_config(Path(sweep.config), RunConfig, overrides).model.num_loops == cell.num_loops


def test_several_runs_of_a_method_have_labels(tmp_path: Path) -> None:
    text = "{config: CONFIG, methods: {no_cot-2loops: [train.num_loops=2], no_cot-4loops: [train.num_loops=4]}}"
    family = cells(read_config(write(tmp_path / "s.yaml", text), SweepConfig))
    assert [cell.name for cell in family] == ["no_cot-2loops-seed0", "no_cot-4loops-seed0"]
    assert family[1].overrides == ("method.name=no_cot", "train.num_loops=4", "run.seed=0")


def test_runs_on_text_alone_are_trained_and_plotted_but_scored_on_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    planned = {}
    for name in ("regulariser_text_small", "regulariser_tasks_small"):
        sweep = read_config(ROOT / "configs" / "sweeps" / f"{name}.yaml", SweepConfig)
        planned[name] = stages(sweep, cells(sweep), Path("runs"))
    assert list(planned["regulariser_text_small"]) == ["train", "plot"]
    assert {stage: len(commands) for stage, commands in planned["regulariser_tasks_small"].items()} == {
        "train": 9, "eval": 9, "plot": 1,
    }  # fmt: skip


def test_kinds_of_tasks_are_those_that_are_trained_and_the_plot_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = read_config(ROOT / "configs" / "sweeps" / "text_and_tasks_small.yaml", SweepConfig)
    members = [task for tasks in sweep.evaluation.groups.values() for task in tasks]
    trained = trained_tasks(SavedModel.of(read_config(Path(sweep.config), RunConfig)), None)
    assert sorted(members) == sorted(task.name for task in trained)
    assert "--group=reasoning=p_hop_2,p_hop_3" in stages(sweep, cells(sweep), Path("runs"))["plot"][0]


def test_steps_of_text_and_thoughts_of_composition_are_those_that_its_names_say() -> None:
    for name in ("composition_small", "composition_small_from_prefixes"):
        for cell in cells(read_config(ROOT / "configs" / "sweeps" / f"{name}.yaml", SweepConfig)):
            config = read_config(ROOT / "configs" / "finetune" / f"{name}.yaml", FinetuneConfig, cell.overrides)
            method, label, _ = cell.name.split("-")
            sets = (config.data.train, config.data.validation, config.data.test)
            made = [make_task(one.task or "", one.parameters) for one in sets]
            num_steps = {len(task.generate(0, 0).steps) for task in made}
            assert len(num_steps) == 1 and {task.parameters.num_elements for task in made} == {9}
            if method == "no_cot":
                assert label == f"{config.train.num_loops}loops"
            else:
                assert num_steps == {int(label)}
                assert method == "cot" or config.curriculum.num_stages == int(label)
                assert config.reaches_last_stage


def test_loops_of_composition_start_from_as_many_that_learnt_its_prefixes() -> None:
    folder = ROOT / "configs" / "sweeps"
    before = {cell.name for cell in cells(read_config(folder / "composition_prefixes_small.yaml", SweepConfig))}
    file = ROOT / "configs" / "finetune" / "composition_small_from_prefixes.yaml"
    for cell in cells(read_config(folder / "composition_small_from_prefixes.yaml", SweepConfig)):
        config = read_config(file, FinetuneConfig, cell.overrides)
        start = Path(config.checkpoint.init_from or "")
        assert start.parent == Path("runs/sweeps/composition_prefixes_small") and start.name in before
        assert start.name == f"1x{config.train.num_loops}-seed{config.run.seed}"


def test_loop_worth_has_models_of_one_depth_with_three_widths_and_numbers_of_tokens() -> None:
    family = cells(read_config(ROOT / "configs" / "sweeps" / "loop_worth_small.yaml", SweepConfig))
    file = ROOT / "configs" / "pretrain" / "characters_small.yaml"
    configs = [read_config(file, RunConfig, list(cell.overrides)) for cell in family]
    assert {config.model.effective_depth() for config in configs} == {8}
    cells_of_law = {(config.model.num_loops, config.model.hidden_size, config.train.steps) for config in configs}
    assert cells_of_law == {(r, width, n) for r in (1, 2, 4, 8) for width in (32, 48, 64) for n in (250, 500, 1000)}


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("addition", "12x1 1x1 1x12 2x1 2x6 3x1 3x4"),
        ("p_hop_16", "6x1 1x1 1x6 2x1 2x3 3x1 3x2"),
        ("p_hop_32", "6x1 1x1 1x6 2x1 2x3 3x1 3x2"),
        ("i_gsm", "8x1 1x1 1x2 1x4 1x8 2x1 2x2 2x4 4x1 4x2"),
        ("looped_1.5b", "24x1 12x1 12x2 4+4x4+4 8x1 8x3 6x1 6x4 4x1 4x6"),
        ("depths_1.5b", "4x1 4x2 4x3 4x6 4x9 4x12 8x1 12x1 24x1 36x1 48x1"),
    ],
)
def test_the_full_size_sweeps_have_the_models_of_the_papers_tables(name: str, models: str) -> None:
    sweep = read_config(ROOT / "configs" / "sweeps" / f"{name}.yaml", SweepConfig)
    found = [read_config(ROOT / sweep.config, RunConfig, list(cell.overrides)).model for cell in cells(sweep)]
    shapes = [f"{model.num_loop_layers}x{model.num_loops}" for model in found]
    ends = [(model.num_prelude_layers, model.num_coda_layers) for model in found]
    named = [f"{a}+{shape}+{b}" if a or b else shape for shape, (a, b) in zip(shapes, ends, strict=True)]
    assert set(named) == set(models.split()) and len(set(cells(sweep))) == len(sweep.seeds) * len(set(named))


def test_every_data_set_and_size_of_fine_tuning_has_a_sweep_over_all_methods() -> None:
    sweeps = {path.stem: read_config(path, SweepConfig) for path in SWEEPS}
    others = re.compile("composition.*|.*_longer")
    found = {name: sweep for name, sweep in sweeps.items() if sweep.methods and not others.fullmatch(name)}
    methods: dict[str, list[str]] = {}
    for name, sweep in found.items():
        methods.setdefault(name.removesuffix("_from_cot"), []).extend(sweep.methods)
    names = ("prosqa", "prosqa_hard", "prontoqa", "gsm8k")
    assert set(methods) == {f"{task}{size}" for task in names for size in ("", "_small")}
    assert all(sorted(of_set) == sorted(METHODS) for of_set in methods.values())
    for name, sweep in found.items():
        assert sweep.config == f"configs/finetune/{name}.yaml"
        assert not any(sweep.methods.values()), "what a method needs is in the configuration, for the command line too"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{config: CONFIG, models: []}", " a sweep compares models, methods or policies: give one"),
        (
            "{config: CONFIG, methods: {cot: []}, models: [{num_loop_layers: 1}]}",
            " a sweep compares models, methods or policies",
        ),
        ("{config: CONFIG, methods: {cot: []}, evaluation: {num_examples: 9}}", " evaluation: is for models"),
        ("{config: CONFIG, grid: {optimizer.lr: []}}", r" grid\.optimizer\.lr: needs values, each once"),
        ("{config: CONFIG, grid: {optimizer.lr: [1, 1]}}", r" grid\.optimizer\.lr: needs values, each once"),
        ("{config: CONFIG, grid: {run.seed: [1]}, seeds: [2]}", r" grid\.run\.seed: seeds are given too"),
        ("{config: CONFIG, model: [{num_loop_layers: 1}]}", "1: model: unknown key, did you mean models?"),
        (
            "config: CONFIG\nmodels:\n - {num_loop_layers: 0}",
            r"3: models\[0\]\.num_loop_layers: must be larger than 0, got 0",
        ),
        ("[", "1: not valid YAML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"s\.yaml:{message}"):
        read_config(write(tmp_path / "s.yaml", text), SweepConfig)


Sweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sweep(tmp_path: Path, commands: Commands) -> Sweep:
    """Runs the sweep of `tiny.yaml`; its runs, too, import nothing."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(ROOT / "tools" / "sweep.py", "tiny.yaml", *arguments, cwd=tmp_path, forks=True)

    return run


def test_printed_commands_are_those_of_all_runs(tmp_path: Path, sweep: Sweep) -> None:
    write(tmp_path / "tiny.yaml", TINY.replace("baselines: false", "baselines: true"))
    lines = sweep("--print").stdout.splitlines()
    assert [line.count("pretrain.train") for line in lines[:3]] == [1, 1, 1]
    assert [line.count("eval_depth.py") for line in lines[3:6]] == [1, 1, 1]
    assert "scaling_plot.py" in lines[6] and lines[6].count("depth.jsonl") == 3
    assert "--array=0-2" in lines[-3] and "aftercorr" in lines[-2] and "afterok" in lines[-1]
    assert not (tmp_path / "runs").exists()
    alone = sweep("--print", "--stage", "train", "--cell", "2").stdout.splitlines()
    assert alone[0] == lines[2]
    bad = sweep("--cell", "3")
    assert bad.returncode == 2 and "the sweep has 3 runs, numbered from 0" in bad.stderr


def test_a_grid_of_settings_ends_with_their_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of one depth are not drawn against depth: without it the sweep would end with nothing to look at."""
    monkeypatch.chdir(tmp_path)
    ends = []
    for axis in ("run.seed: [0, 1]", "optimizer.lr: [0.1, 0.2]"):
        file = write(tmp_path / "tiny.yaml", TINY.replace("models:", f"grid: {{{axis}}}\nmodels:"))
        settings = read_config(file, SweepConfig)
        ends.append(stages(settings, cells(settings), Path("runs/tiny"))["plot"])
    assert [len(commands) for commands in ends] == [1, 2], "seeds are one configuration"
    plot, table = ends[1]
    assert plot[1] == str(ROOT / "tools" / "scaling_plot.py")
    along = ["--along=optimizer.lr", "--figure=runs/tiny/along.svg"]
    assert table[1:] == [str(ROOT / "tools" / "compare.py"), "runs/tiny", *along]


def test_the_former_name_of_the_tool_does_the_same_and_says_the_new_one(tmp_path: Path, sweep: Sweep) -> None:
    write(tmp_path / "tiny.yaml", TINY)
    command = [sys.executable, ROOT / "tools" / "depth_sweep.py", "tiny.yaml"]
    old, bad = (
        subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        for options in (["--print"], ["--cell", "9"])
    )
    assert old.stdout == sweep("--print").stdout != "" and (old.returncode, bad.returncode) == (0, 2)
    assert old.stderr == "tools/depth_sweep.py is now tools/sweep.py\n"


def test_a_dry_run_plans_the_runs_and_slurm_refuses_a_cell_that_does_not_fit(tmp_path: Path, sweep: Sweep) -> None:
    write(tmp_path / "tiny.yaml", TINY.replace("baselines: false", "baselines: true"))
    planned = sweep("--dry-run").stdout.splitlines()
    runs = [f"run directory  runs/sweeps/tiny/{name}-seed0" for name in ("1x2", "2x1", "1x1")]
    assert [line for line in planned if line.startswith("run directory")] == runs
    write(tmp_path / "tiny.yaml", TINY.replace("baselines: false", "ranks: 2\nbaselines: true"))
    refused = sweep("--slurm")
    assert refused.returncode == 2 and "train.global_batch=8 is not divisible by" in refused.stderr
    write(tmp_path / "tiny.yaml", TINY.replace("[train.steps=3,", "['data.sources=[{path: none}]', train.steps=3,"))
    refused = sweep("--slurm")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: none: no manifest.jsonl; make shards there with tools/prepare_data.py")
    assert not (tmp_path / "runs").exists()


def test_a_sweep_runs_to_its_plot_and_a_second_evaluation_adds_nothing(tmp_path: Path, sweep: Sweep) -> None:
    write(tmp_path / "tiny.yaml", TINY.replace("num_loops: 2}]", "num_loops: 2}, {num_loop_layers: 1}]"))
    root = tmp_path / "runs" / "sweeps" / "tiny"
    for arguments in ([], ["--stage", "eval"]):
        done = sweep(*arguments)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (root / "1x2-seed0" / "eval" / "depth.jsonl").read_text().splitlines()]
        assert [(row["task"], row["metric"], row["num_loops"], row["step"]) for row in rows] == [("p_hop", "acc", 2, 3)]
    assert {path.suffix for path in root.glob("scaling.*")} == {".png", ".svg", ".html"}
    assert "has p_hop already" in done.stderr


def test_runs_side_by_side_are_those_of_one_after_the_other(tmp_path: Path, sweep: Sweep) -> None:
    """Two at a time; a bad one stops the sweep and is named, a signal lets runs save."""
    write(tmp_path / "tiny.yaml", TINY.replace("models:", "grid: {run.seed: [0, 1]}\nmodels:"))
    root = tmp_path / "runs" / "sweeps" / "tiny"
    done = sweep("--jobs", "2", "--stage", "train")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "1x2-seed1 began" in line] and "train 2/2" in done.stderr
    assert "step 3/3" in (root / "logs" / "train-1x2-seed1.log").read_text()

    damaged = root / "1x2-seed1" / "checkpoints"
    for shard in damaged.rglob("*.safetensors"):
        shard.write_bytes(b"")
    failed = sweep("--jobs", "2", "--stage", "eval")
    assert failed.returncode == 1 and "1x2-seed1 ended with exit code" in failed.stderr.splitlines()[-1]
    row = json.loads((root / "1x2-seed0" / "eval" / "depth.jsonl").read_text())
    assert row["seed"] == 0, "the other one was scored"


SAVING = """
import pathlib, signal, sys, time
try:
    print("up", flush=True)
    signal.pause()
except KeyboardInterrupt:
    time.sleep(1)  # a save that takes longer than the patience of subprocess.run
    pathlib.Path(sys.argv[1]).touch()
    sys.exit(130)
"""


def test_a_run_has_time_to_save_when_the_sweep_is_interrupted(tmp_path: Path) -> None:
    program = (
        "import sys; from tools.sweep import run_to_its_end; run_to_its_end([sys.executable, '-c', *sys.argv[1:]])"
    )
    words = [sys.executable, "-c", program, SAVING, str(tmp_path / "saved")]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == b"up\n"
        os.killpg(run.pid, signal.SIGINT)
        run.communicate()
    assert (tmp_path / "saved").exists()


def test_a_sweep_over_methods_trains_and_compares_them(tmp_path: Path, sweep: Sweep) -> None:
    write(tmp_path / "tiny.yaml", TINY_METHODS)
    lines = sweep("--print").stdout.splitlines()
    assert [line.count("finetune/coconut.py --config") for line in lines[:2]] == [1, 1]
    assert all("tools/eval_coconut.py --run" in line and line.endswith("--latents all") for line in lines[2:4])
    assert "coconut_table.py" in lines[4] and "--array=0-1" in lines[-2] and "afterok" in lines[-1]
    done = sweep()
    assert done.returncode == 0, done.stderr
    root = tmp_path / "runs" / "sweeps" / "tiny"
    files = [root / f"{method}-seed0" / "eval" / "coconut.jsonl" for method in ("coconut", "no_cot")]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    for file, of_run in zip(files, rows, strict=True):
        steps = map(json.loads, (file.parents[1] / "metrics.jsonl").read_text().splitlines())
        assert {(step["run_id"], step["config"]) for step in (*steps, *of_run)} == {
            (of_run[-1]["run_id"], of_run[-1]["config"])
        }
    found = [(row["method"], row["num_thoughts"]) for of_run in rows for row in of_run if row["split"] == "test"]
    assert found == [("coconut", 2), ("coconut", 0), ("coconut", 1), ("no_cot", 0)]  # each once, the first in training
    table = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| coconut", "| no_cot"))]
    assert [(line[0], line[2]) for line in table] == [
        ("| coconut", "0"), ("| coconut", "1"), ("| coconut", "2"), ("| no_cot", "0")
    ]  # fmt: skip
    assert "no rows with" not in done.stderr and "nothing beside coconut with without_thought," in done.stderr


@pytest.mark.parametrize(
    ("before", "after", "arguments", "message"),
    [
        ("no_cot", "no_cott", ["--print"], "method.name: needs one of coconut, cot"),
        ("no_cot", "no_cot", ["--stage", "plot"], "--stage plot: the stages of this sweep are train, eval, table"),
        ("methods:", "ranks: 4\nmethods:", ["--slurm"], "train.effective_batch=8 is not divisible by"),
    ],
)
def test_what_a_sweep_over_methods_cannot_train_is_refused_first(
    tmp_path: Path, sweep: Sweep, before: str, after: str, arguments: list[str], message: str
) -> None:
    write(tmp_path / "tiny.yaml", TINY_METHODS.replace(before, after))
    refused = sweep(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "") and message in refused.stderr
