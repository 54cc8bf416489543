"""Runs that an older version of the code left behind still load, resume and give the losses that they gave then.

`pretrained/` and `finetuned/` were made by `pretrained.yaml` and `finetuned.yaml` before the packages were divided into
rooms (November 2026), with two checkpoints each. A run that lost the newer one has to make the same second half again.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from pretrain.config.run import RunConfig
from tests.support.ranks import start_ranks
from tests.support.run_rows import scored

GOLDEN = Path(__file__).parent


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "newest", "module"),
    [("pretrained", "step-00000008", "pretrain.train"), ("finetuned", "step-00000004", "finetune.coconut")],
)
def test_an_old_run_resumes_to_the_same_losses(tmp_path: Path, name: str, newest: str, module: str) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / name)
    shutil.rmtree(tmp_path / name / "checkpoints" / newest)
    arguments = ["--config", str(GOLDEN / f"{name}.yaml"), f"run.root={tmp_path}"]
    (rank,) = start_ranks(1, module, arguments, tmp_path / "said")
    assert rank.wait(200) == 0 and "resumed" in rank.output, rank.output
    assert (tmp_path / name / "state").read_text() == "complete\n"
    for then, now in zip(rows(GOLDEN / name), rows(tmp_path / name), strict=True):
        assert now["step"] == then["step"]
        assert now["loss"] == pytest.approx(then["loss"], rel=2e-5)
        assert now["grad_norm"] == pytest.approx(then["grad_norm"], rel=2e-4)
        assert now.get("tokens_seen") == then.get("tokens_seen")
    counters = scored(tmp_path / name).counters
    assert counters.tokens_seen == rows(GOLDEN / name)[-1].get("tokens_seen")  # what was not counted stays unknown


def test_what_an_old_checkpoint_counted_is_read_or_unknown() -> None:
    pretrained, finetuned = (scored(GOLDEN / name) for name in ("pretrained", "finetuned"))
    assert pretrained.counters.tokens_seen == rows(GOLDEN / "pretrained")[-1]["tokens_seen"] == 8 * 8 * 64
    assert pretrained.counters.train_flops and pretrained.saved.model.loop.injection == "add"
    assert (finetuned.counters.tokens_seen, finetuned.counters.train_flops) == (None, None)
    assert (finetuned.saved.run, finetuned.saved.seq_len, finetuned.counters.step) == ("finetuned", 128, 4)


def test_an_old_configuration_reads_back() -> None:
    config = RunConfig.model_validate(yaml.safe_load((GOLDEN / "pretrained" / "config.yaml").read_text()))
    assert config.model.loop.injection == "add"
