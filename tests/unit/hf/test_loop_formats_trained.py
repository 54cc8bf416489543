"""Published looped models as runs that training goes on from: over their loops, and in latent thoughts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.run.trained_model import load_trained_model
from tests.support.commands import Commands
from tests.support.published_loops import PublishedModel, huginn, nanbeige, ouro
from tests.unit.hf.test_convert import byte_level  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[3]
TOOL = ROOT / "tools" / "convert_checkpoint.py"
LENGTH = 96
MODELS: dict[str, PublishedModel] = {
    "nanbeige": nanbeige(max_position_embeddings=LENGTH), "ouro": ouro(max_position_embeddings=LENGTH),
    "huginn": huginn(block_size=LENGTH),
}  # fmt: skip
TASK = {"task": "multiplication", "parameters": {"num_left_digits": 1, "num_right_digits": 2}}
EXAMPLES = TASK | {"num_examples": 4}


def run_of(folder: Path, name: str, run: Path, **sections: Any) -> Path:
    """A configuration in a file, JSON being YAML."""
    path = folder / f"{name}.yaml"
    shared = {
        "run": {"name": name, "root": str(folder / "runs")}, "checkpoint": {"init_from": str(run)},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip
    path.write_text(json.dumps(shared | sections))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_it_is_trained_on_learns_to_think_and_goes_back_into_its_form(
    tmp_path: Path,
    byte_level: Path,  # noqa: F811
    commands: Commands,
    name: str,
) -> None:
    folder, run = MODELS[name].write(tmp_path / "published", byte_level), tmp_path / "run"
    assert commands.run(TOOL, "import", "--model", folder, "--run", run).returncode == 0
    model = load_trained_model(run, torch.device("cpu")).model.config
    config = run_of(
        tmp_path, "on", run, model=model.model_dump(mode="json"),
        data={"tokenizer": str(run / "tokenizer.json"), "sources": [TASK], "num_workers": 0},
        train={
            "steps": 2, "seq_len": LENGTH, "global_batch": 2, "micro_batch": 2, "precision": "fp32",
            "loop_sampling": {"distribution": "uniform", "minimum": 1, "maximum": 4},
        },
        optimizer={"warmup_steps": 0}, validation={"every": 2, "num_loops": [1, 2, 3], "num_sequences": 2},
    )  # fmt: skip
    done = commands.run("-m", "pretrain.train", "--config", config)
    assert done.returncode == 0, done.stderr
    scored = [json.loads(line) for line in (tmp_path / "runs" / "on" / "eval" / "depth.jsonl").read_text().splitlines()]
    assert len({row["value"] for row in scored if row["step"] == 2}) == 3
    config = run_of(
        tmp_path, "thinks", tmp_path / "runs" / "on", data={"train": EXAMPLES, "validation": EXAMPLES},
        method={"name": "coconut"}, curriculum={"num_stages": 1, "first_stage_epochs": 1, "epochs_per_stage": 1},
        train={"epochs": 2, "effective_batch": 4, "micro_batch": 4, "precision": "fp32", "num_loops": 2},
        validation={"every": 2, "max_new_tokens": 4},
    )  # fmt: skip
    done = commands.run(ROOT / "finetune" / "coconut.py", "--config", config)
    assert done.returncode == 0, done.stderr
    out, more = tmp_path / "out", ("--run", tmp_path / "runs" / "thinks", "--format", name)
    done = commands.run(TOOL, "export", "--out", out, *more)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["model_type"] == MODELS[name].config["model_type"]
