"""Other runs that a configuration names: the dry run says which checkpoint it is, and refuses what training would."""

from pathlib import Path
from typing import Any

import pytest

from pretrain.config.read import resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.train import main
from tests.unit.hf.test_convert import SEQ_LEN, make_run, tokenizer

__all__ = ["tokenizer"]
SHAPE = {"vocab_size": 320, "hidden_size": 32, "num_attention_heads": 4, "ffn_size": 48, "num_loop_layers": 4}
INIT, TEACHER = "checkpoint.init_from", "train.teacher.run"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """The run that is named."""
    return make_run(tmp_path_factory.mktemp("other_runs") / "other", tokenizer, {})


def dry_run(root: Path, tokenizer: Path, model: dict[str, Any], *values: str) -> int:
    config = RunConfig.model_validate(
        {
            "run": {"name": "mine", "root": str(root)},
            "model": SHAPE | model,
            "data": {
                "tokenizer": str(tokenizer),
                "sources": [{"task": "addition", "parameters": {"num_operands": [2], "num_digits": 1}}],
            },
            "train": {"seq_len": SEQ_LEN, "precision": "fp32", "steps": 200},
        }
    )
    path = root / "config.yaml"
    path.write_text(resolved_yaml(config))
    return main(["--config", str(path), "--dry-run", *values])


def test_the_checkpoint_and_what_differs_are_named(
    tmp_path: Path, tokenizer: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(tmp_path, tokenizer, {"num_loops": 3}, f"{INIT}={other}", f"{TEACHER}={other}") == 0
    checkpoint = other / "checkpoints" / "step-00000000"
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f"{INIT}: {checkpoint}" in lines and f"{TEACHER}: {checkpoint}" in lines
    assert f"model.num_loops: 1 in {checkpoint}, 3 now" in lines


@pytest.mark.parametrize(
    ("key", "model", "message"),
    [
        (INIT, None, "{key}: {run}: no checkpoints there"),
        (TEACHER, None, "{key}: {run}: no checkpoints there"),
        (INIT, {"hidden_size": 64}, "{key}: model.hidden_size=64, but the weights of {run}/checkpoints/step-00000000 "),
        (TEACHER, {"vocab_size": 328}, "{key}={run} has 320 rows of vocabulary, model.vocab_size=328"),
    ],
)
def test_what_training_would_refuse_is_refused(
    tmp_path: Path, tokenizer: Path, other: Path, capsys: pytest.CaptureFixture[str], key: str, model: Any, message: str
) -> None:
    run = tmp_path / "none" if model is None else other
    assert dry_run(tmp_path, tokenizer, model or {}, f"{key}={run}") == 2
    said = capsys.readouterr()
    (error,) = said.err.splitlines()
    assert error.startswith("error: " + message.format(key=key, run=run))
    assert "parameters  " in said.out
    assert dry_run(tmp_path, tokenizer, model or {}, f"{key}={run}", "--without-data") == 0


def test_another_tokenizer_is_refused(tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = Path("symbols:0123456789+= ")
    assert dry_run(tmp_path, mine, {}, f"{INIT}={other}", f"{TEACHER}={other}") == 2
    first, second = capsys.readouterr().err.splitlines()
    for line, key in ((first, INIT), (second, TEACHER)):
        assert line == f"error: {key}: {mine} is not the tokenizer that {other} was trained with: use the one in there"


def test_a_run_that_is_resumed_needs_no_weights_of_another(tmp_path: Path, tokenizer: Path) -> None:
    make_run(tmp_path / "mine", tokenizer, {})
    assert dry_run(tmp_path, tokenizer, {}, f"{INIT}={tmp_path / 'none'}") == 0
