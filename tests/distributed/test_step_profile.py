"""profile.steps writes a trace of those steps, of a run that is else as it was."""

import gzip
import json
from pathlib import Path

import pytest

from tests.distributed.pool import RankPool
from tests.distributed.training import train_aloud, training_config, write_corpus


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("profile"))


def test_the_steps_are_traced(pool: RankPool, root: Path) -> None:
    plain, traced = (
        pool.run(train_aloud, training_config(root, name, train={"steps": 4}, **more), world_size=1, timeout_s=240)[0]
        for name, more in (("plain", {}), ("traced", {"profile": {"steps": "2:3"}}))
    )
    path = root / "runs" / "traced" / "profile" / "steps-2-3.json.gz"
    assert f"trace of steps 2 to 3: {path}" in traced and "trace" not in plain
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events) == 2
    rows = [
        [json.loads(line)["loss"] for line in (root / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "traced")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("steps", ["3:2", "0:1", "5", "1-3", "a:b", "", ":", "1:2:3"])
def test_other_values_are_refused(tmp_path: Path, steps: str) -> None:
    with pytest.raises(ValueError, match=r"needs FIRST:LAST, steps from 1 on, such as 10:12"):
        training_config(tmp_path, "wrong", profile={"steps": steps})


def test_steps_that_the_run_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"profile\.steps=13:14 is beyond train\.steps=12"):
        training_config(tmp_path, "beyond", profile={"steps": "13:14"})
