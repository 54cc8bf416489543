"""The variant of the loop of the document, from a folder outside the package: trained, resumed, scored at every depth,
generated with; not exported; and what is wrong with one is a line."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.model.loop.config import LoopSection
from tests.support import own_loops
from tests.support.commands import Commands
from tests.support.extending import write_examples

ROOT = Path(__file__).parents[3]
CONFIG = """
run: {name: whole}
model:
  vocab_size: 20
  hidden_size: 16
  num_attention_heads: 2
  ffn_size: 16
  num_loop_layers: 1
  num_loops: 2
  loop: {injection: "my_loops:Leaky", own: {injection: {rate: 0.3}}}
data:
  tokenizer: "symbols:0123456789+="
  num_workers: 0
  sources: [{task: addition, parameters: {num_operands: [2], num_digits: 2}}]
train: {steps: 4, seq_len: 16, global_batch: 4, micro_batch: 4, precision: fp32, deterministic: true}
optimizer: {warmup_steps: 0}
validation: {every: 4, num_loops: [1, 2, 3], num_sequences: 4}
checkpoint: {every: 2}
logging: {wandb: disabled}
"""
MIX = f"{own_loops.__name__}:Mix"


def test_the_variant_of_the_document_does_all_that_ours_do_but_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    write_examples(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    train = ("-m", "pretrain.train", "--config", "config.yaml")
    whole = commands.run(*train)
    assert whole.returncode == 0, whole.stderr
    rows = [json.loads(line) for line in Path("runs/whole/metrics.jsonl").read_text().splitlines()]
    scored = [json.loads(line) for line in Path("runs/whole/eval/depth.jsonl").read_text().splitlines()]
    assert [row["num_loops"] for row in scored] == [1, 2, 3] and len({row["value"] for row in scored}) == 3
    back = commands.run(*train, "checkpoint.resume=2")
    assert back.returncode == 0 and "step 2 of 4: resumed" in back.stderr, back.stderr
    again = [json.loads(line) for line in Path("runs/whole/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]
    generate = (str(ROOT / "tools/generate.py"), "--run", "runs/whole", "--prompt", "12+34=", "--max-new-tokens", "3")
    said = commands.run(*generate, "--num-loops", "3")
    assert said.returncode == 0, said.stderr
    export = commands.run(
        str(ROOT / "tools/convert_checkpoint.py"), "export", "--run", "runs/whole", "--out", "exported"
    )
    assert export.returncode == 2 and not Path("exported").exists(), export.stdout
    assert "error: model.loop.injection=my_loops:Leaky is of a file of your own" in export.stderr
    changed = commands.run(*train, "model.loop.own={injection: {rate: 0.5}}")
    assert changed.returncode == 2 and "model.loop.own=" in changed.stderr, changed.stderr


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ({"injection": f"{own_loops.__name__}:Half"}, "is no subclass of pretrain.model.loop.variant.Injection"),
        ({"injection": f"{own_loops.__name__}:Mixed"}, "has no Mixed, did you mean Mix?"),
        ({"injection": MIX, "own": {"injection": {"shar": 1}}}, "own.injection.shar: Mix has no such setting, did you"),
        (
            {"injection": MIX, "own": {"injection": {"share": 2}}},
            "model.loop.own.injection: share: Input should be l",
        ),
        ({"injection": MIX, "own": {"injection": 3}}, "model.loop.own.injection: needs keys and values, got 3"),
        (
            {"injection": MIX, "own": {"start": {}}},
            "own.start: there is no variant of your own file under",
        ),
        ({"start": f"{own_loops.__name__}:Half", "own": {"start": {"a": 1}}}, "own.start.a: Half has no such setting"),
        ({"exit": "pretrain.model.loop.variant:Exit"}, "has_gate is False"),
        ({"injection": "ad"}, "such as my_module:Thing"),
    ],
)
def test_what_is_wrong_with_a_variant_is_named(loop: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LoopSection.model_validate(loop)
    assert message in str(caught.value)


def test_settings_of_no_variant_are_idle() -> None:
    assert LoopSection().without_effect()["own"] == "injection=none"
    assert "own" not in LoopSection.model_validate({"injection": MIX}).without_effect()
