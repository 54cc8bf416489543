"""The optimizer of the document, outside the package: trained with, resumed, refused where it is wrong."""

import json
from pathlib import Path

import pytest

from tests.support.commands import Commands
from tests.support.extending import write_examples

CONFIG = """
run: {name: whole}
model: {vocab_size: 20, hidden_size: 16, num_attention_heads: 2, ffn_size: 16, num_loop_layers: 1, num_loops: 2}
data:
  tokenizer: "symbols:0123456789+="
  num_workers: 0
  sources: [{task: addition, parameters: {num_operands: [2], num_digits: 2}}]
train: {steps: 6, seq_len: 16, global_batch: 4, micro_batch: 4, precision: fp32, deterministic: true}
optimizer: {name: "my_optimizers:LION", lr: 1e-3, warmup_steps: 0, beta2: 0.99}
validation: {every: 0}
checkpoint: {every: 3}
logging: {wandb: disabled}
"""


def test_the_optimizer_of_the_document_trains_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    write_examples(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    train = ("-m", "pretrain.train", "--config", "config.yaml")
    dry = commands.run(*train, "--dry-run")
    assert dry.returncode == 0 and "my_optimizers:LION" in dry.stdout, dry.stderr
    whole = commands.run(*train)
    assert whole.returncode == 0, whole.stderr
    rows = [json.loads(line) for line in Path("runs/whole/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    back = commands.run(*train, "checkpoint.resume=3")
    assert back.returncode == 0 and "step 3 of 6: resumed" in back.stderr, back.stderr
    again = [json.loads(line) for line in Path("runs/whole/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]
    text = Path("my_optimizers.py").read_text()
    Path("my_optimizers.py").write_text(text.replace('lambda shape: {"momentum": shape}', "lambda shape: {}"))
    wrong = commands.run(*train, "run.name=wrong")
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith(
        "error: optimizer.name=my_optimizers:LION"
    )
    unknown = commands.run(*train, "run.name=wrong", "optimizer.name=adam")
    assert unknown.returncode == 2 and "such as my_module:Thing, got adam" in unknown.stderr
    assert not Path("runs/wrong").exists()
