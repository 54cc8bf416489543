"""A whole run on the device of this machine, by its commands: training, a save with its staging, going back to a
checkpoint, text, and all depths in one pass. Without a GPU: on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.corpus import make_texts, make_tokenizer, write_source

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
STEPS, BACK = 6, 3


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of six steps, saved at the third and the last."""
    folder = tmp_path_factory.mktemp("gpu")
    write_source(folder / "shards", make_texts(120), 3, make_tokenizer(folder / "tokenizer.model"))
    (folder / "run.yaml").write_text(
        f"""
run: {{name: small, root: {folder}}}
model: {{vocab_size: 512, hidden_size: 64, num_attention_heads: 4, ffn_size: 128, num_loop_layers: 2, num_loops: 2}}
data: {{tokenizer: {folder}/tokenizer.model, sources: [{{path: {folder}/shards}}], num_streams: 8, num_workers: 0}}
train: {{steps: {STEPS}, seq_len: 32, global_batch: 8, micro_batch: 4, precision: bf16, deterministic: true}}
optimizer: {{warmup_steps: 2}}
validation: {{every: {BACK}, num_sequences: 8, num_loops: [1, 2, 3]}}
checkpoint: {{every: {BACK}}}
logging: {{wandb: disabled}}
""",
        encoding="utf-8",
    )
    command("-m", "pretrain.train", "--config", str(folder / "run.yaml"))
    return folder / "small"


def test_it_trains_and_scores_every_depth_in_one_pass(trained: Path) -> None:
    assert [row["step"] for row in rows(trained)] == list(range(1, STEPS + 1))
    assert all(0 < row["loss"] < 8 for row in rows(trained)) and (trained / "state").read_text().startswith("complete")
    scored = {(row["step"], row["num_loops"]) for row in rows(trained, "eval/depth.jsonl")}
    assert {(BACK, 1), (BACK, 2), (BACK, 3)} <= scored


def test_going_back_to_a_checkpoint_repeats_the_run_bit_for_bit(trained: Path) -> None:
    before = [(row["step"], row["loss"], row["grad_norm"]) for row in rows(trained)]
    command("-m", "pretrain.train", "--config", str(trained.parent / "run.yaml"), f"checkpoint.resume={BACK}")
    assert [(row["step"], row["loss"], row["grad_norm"]) for row in rows(trained)] == before


def test_it_writes_text(trained: Path) -> None:
    words = ["--run", str(trained), "--prompt", "a", "--max-new-tokens", "8", "--num-loops", "2"]
    assert command("tools/generate.py", *words).strip()
