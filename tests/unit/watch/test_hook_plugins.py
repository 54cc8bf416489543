"""A hook of the user's file, beside the built-in one, in a run that is started outside the package."""

import json
from pathlib import Path
from typing import get_args

import pytest

from pretrain.config.hooks import HookSection
from pretrain.watch.registry import HOOKS
from tests.support.commands import Commands
from tests.support.extending import write_examples

CONFIG = """
run: {name: watched}
model: {vocab_size: 20, hidden_size: 16, num_attention_heads: 2, ffn_size: 16, num_loop_layers: 1, num_loops: 3}
data:
  tokenizer: "symbols:0123456789+="
  num_workers: 0
  sources: [{task: addition, parameters: {num_operands: [2], num_digits: 2}}]
train:
  steps: 4
  seq_len: 16
  global_batch: 4
  micro_batch: 4
  precision: fp32
  hooks: [{name: loop_diagnostics, every: 2}, {name: "my_hooks:WeightSize", every: 4, parameters: {part: loop}}]
optimizer: {warmup_steps: 0}
validation: {every: 4, num_sequences: 4, num_loops: [1, 3]}
logging: {wandb: disabled}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_examples(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_hook_of_the_document_gives_rows_beside_the_diagnostics(folder: Path, commands: Commands) -> None:
    done = commands.run("-m", "pretrain.train", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "runs/watched/diagnostics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 4]
    assert "weight_norm.loop" not in rows[0] and {"gain.loop3", "weight_norm.loop", "grad_norm"} < rows[1].keys()
    losses = {
        row["num_loops"]: row["value"]
        for row in map(json.loads, (folder / "runs/watched/eval/depth.jsonl").read_text().splitlines())
    }
    assert rows[2]["worth.all_loops"] == pytest.approx(losses[1] - losses[3])
    text = (folder / "my_hooks.py").read_text().replace("def on_step(self", "def on_step(self, more")
    (folder / "my_hooks.py").write_text(text)
    wrong = commands.run("-m", "pretrain.train", "--config", "config.yaml", "run.name=wrong")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: train.hooks: my_hooks:WeightSize.on_step at step 4: ")


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("loop_diagnostic", "train.hooks[0].name: needs one of loop_diagnostics, or a name of your own file"),
        ("my_hooks:Nothing", "train.hooks=my_hooks:Nothing: "),
    ],
)
@pytest.mark.usefixtures("folder")
def test_the_dry_run_refuses_a_hook_that_is_not_there(hook: str, message: str, commands: Commands) -> None:
    done = commands.run("-m", "pretrain.train", "--config", "config.yaml", "--dry-run", f"train.hooks=[{hook}]")
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]


def test_the_configuration_knows_the_names_of_the_built_in_hooks() -> None:
    assert set(get_args(get_args(HookSection.model_fields["name"].annotation)[0])) == set(HOOKS)
