"""Healing a published model, as configs/README.md prints it: surgery, training, evaluation by depth, thoughts."""

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.hf.surgery import Surgery, loop_model
from pretrain.run.trained_model import load_trained_model
from tests.weights.conftest import Imported
from tests.weights.test_smollm2 import DATA

pytestmark = pytest.mark.weights
ROOT = Path(__file__).parents[2]
SMALLER = {
    "pretrain.train": "train.steps=2 train.seq_len=192 optimizer.warmup_steps=1 validation.every=2 "
    "validation.num_sequences=2 checkpoint.every=0 logging.wandb=disabled",
    "tools/eval_depth.py": "--num-examples 2",
    "finetune/coconut.py": "train.epochs=3 curriculum.num_stages=1 curriculum.first_stage_epochs=1 validation.every=3 "
    "train.effective_batch=2 train.micro_batch=2 data.train.num_examples=2 data.validation.num_examples=2 "
    "data.test.num_examples=2 validation.max_new_tokens=4 logging.wandb=disabled",
}
"""What is added to the printed commands, by script."""


def printed_commands() -> list[str]:
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    lines = text.split("## Healing a published model")[1].split("\n## ")[0].splitlines()
    return [line.strip() for line in lines if line.startswith("    python ")]


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "eval" / "depth.jsonl").read_text().splitlines()]


@pytest.mark.timeout(900)
def test_the_commands_heal_a_model_and_teach_it_to_think(imported: Imported, tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    for folder in ("path/to", "text", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "path/to/SmolLM2-135M").symlink_to(imported.folder)
    (tmp_path / "data/evaluation").symlink_to(DATA)
    for folder in ("configs", "tools", "finetune"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    words = "The sea was calm in the morning, and the ship had left the harbour before anyone woke. "
    documents = [json.dumps({"text": f"Chapter {number}. " + words * 20}) for number in range(40)]
    (tmp_path / "text/sea.jsonl").write_text("\n".join(documents))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = printed_commands()
    assert len(commands) == 6
    for command in commands:
        (more,) = [SMALLER[script] for script in SMALLER if script in command] or [""]
        arguments = [sys.executable, *shlex.split(command)[1:], *shlex.split(more)]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    healed = rows(tmp_path / "runs/smollm2_healed")
    losses = {(row["step"], row["num_loops"]): row["value"] for row in healed if row["metric"] == "nll"}
    print(losses)
    assert {loops for _, loops in losses} == {1, 2, 3, 4}
    scored = {(row["task"], row["num_loops"]) for row in healed}
    names = ("lambada_openai", "piqa", "arc_easy", "winogrande")
    assert {(name, loops) for name in names for loops in (1, 2, 3, 4)} <= scored
    assert (tmp_path / "runs/prosqa_coconut_smollm2/state").read_text().startswith("complete")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 9 * 2**20, "KiB: some micro-batches fill a laptop"


@torch.no_grad()
def test_one_loop_of_a_kept_stack_is_the_published_model_and_two_are_not(imported: Imported, tmp_path: Path) -> None:
    cut = {"num_loop_layers": 6, "num_prelude_layers": 9, "merge": "none", "injection": "concat"}
    loop_model(imported.run, tmp_path / "kept", Surgery(**cut))
    kept = load_trained_model(tmp_path / "kept", torch.device("cpu"))
    tokens = torch.tensor([kept.tokenizer.encode("The capital of France is the city of")])
    ours, theirs = (model.logits(model(tokens)) for model in (kept.model, imported.ours.model))
    assert torch.equal(ours, theirs)
    assert not torch.allclose(kept.model.logits(kept.model(tokens, 2)), theirs, atol=0.1)
