"""How a run ends, and what it goes on from: failed runs say so, bad input leaves no trace, what must be equal is."""

from pathlib import Path

import pytest

import finetune.trainer
import pretrain.trainer
from finetune.config import FinetuneConfig
from pretrain.checkpoint.run import open_checkpoint
from pretrain.command.console import DIVERGED
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.data.manifest import Manifest
from tests.support.commands import Commands
from tests.support.corpus import make_texts, make_tokenizer, write_source

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
PRETRAIN, FINETUNE = ["-m", "pretrain.train"], ["finetune/coconut.py"]


def start(commands: Commands, root: Path, command: list[str], *overrides: str) -> tuple[int, str, Path]:
    """Run an entry point alone on a small configuration: exit code, standard error, and the run directory."""
    name = "pretrained" if command is PRETRAIN else "finetuned"
    child = commands.run(*command, "--config", GOLDEN / f"{name}.yaml", f"run.root={root}", *overrides, cwd=ROOT)
    return child.returncode, child.stderr, root / name


@pytest.mark.parametrize(
    ("command", "overrides", "why"),
    [
        (
            PRETRAIN,
            ["optimizer.lr=1e38", "optimizer.clip_grad_norm=0", "optimizer.warmup_steps=0", "train.max_bad_steps=2"],
            "loss or gradient was not finite in 2 steps in a row; lower optimizer.lr",
        ),
        (FINETUNE, ["optimizer.lr=1e38", "train.epochs=3"], "step 2: the loss is nan: lower optimizer.lr or set"),
    ],
)
def test_a_run_that_diverges_ends_as_failed(
    commands: Commands, tmp_path: Path, command: list[str], overrides: list[str], why: str
) -> None:
    code, printed, run_dir = start(commands, tmp_path, command, *overrides)
    assert code == DIVERGED == 3 and f"error: {why}" in printed and "Traceback" not in printed
    assert (run_dir / "state").read_text().startswith(f"failed: {why}")


def test_an_error_in_training_ends_the_run_as_failed(commands: Commands, tmp_path: Path) -> None:
    """A damaged shard that a batch meets."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer.model")
    folder = write_source(tmp_path / "shards", make_texts(40), 2, tokenizer)
    shard = folder / Manifest.open(folder)[1].shard  # the start looks at a document of the first one
    shard.write_bytes(bytes(byte ^ 1 for byte in shard.read_bytes()))
    data = f"{{tokenizer: {tmp_path}/tokenizer.model, num_workers: 0, sources: [{{path: {folder}}}]}}"
    shape = ["model.vocab_size=320", "train.seq_len=16", "validation.every=0"]
    code, printed, run_dir = start(commands, tmp_path, PRETRAIN, *shape, f"data={data}")
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 1 and str(shard) in error and "Traceback" not in printed
    assert (run_dir / "state").read_text() == error.replace("error:", "failed:", 1) + "\n"


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        (PRETRAIN, "data.sources=[]", "data.sources is empty"),
        (PRETRAIN, "model.vocab_size=8", "more than model.vocab_size=8: raise the latter"),
        (FINETUNE, "train.seq_len=8", "train.seq_len"),
        (FINETUNE, "train.precision=fp16", "train.precision=fp16: DeepSpeed has it on GPUs only"),
    ],
)
def test_bad_input_leaves_no_trace(
    commands: Commands, tmp_path: Path, command: list[str], override: str, message: str
) -> None:
    code, printed, run_dir = start(commands, tmp_path, command, override)
    assert code == 2 and message in printed
    assert not run_dir.exists()


def test_what_a_checkpoint_does_not_know_had_its_default() -> None:
    reader, _ = open_checkpoint(GOLDEN / "pretrained")
    config = read_config(GOLDEN / "pretrained.yaml", RunConfig, ["model.rope_theta=5"])
    del reader.meta["config"]["model"]["rope_theta"]
    pretrain.trainer.RESUMABLE.compare(reader, read_config(GOLDEN / "pretrained.yaml", RunConfig))
    with pytest.raises(ValueError, match=r"model\.rope_theta=5\.0, but .*/step-00000008 was made with 10000\.0"):
        pretrain.trainer.RESUMABLE.compare(reader, config)


def test_another_kind_of_training_is_not_gone_on_with() -> None:
    pretrained, finetuned = (open_checkpoint(GOLDEN / name)[0] for name in ("pretrained", "finetuned"))
    config = read_config(GOLDEN / "finetuned.yaml", FinetuneConfig)
    with pytest.raises(ValueError, match=r"pretrained holds no state of fine-tuning to resume: .*init_from="):
        finetune.trainer.RESUMABLE.compare(pretrained, config)
    with pytest.raises(ValueError, match=r"finetuned holds no state of pretraining to resume"):
        pretrain.trainer.RESUMABLE.compare(finetuned, read_config(GOLDEN / "pretrained.yaml", RunConfig))
