"""A rank that stands still is named by the others, with what it did, and the job ends so that it is requeued."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from pretrain.command.console import HUNG
from pretrain.parallel.phase import Phase, PhaseName, Whereabouts
from pretrain.run.watchdog import Beat, Watchdog, judge
from tests.distributed.training import training_config, write_corpus
from tests.support.ranks import start_ranks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a run that takes long on two ranks."""
    root = write_corpus(tmp_path_factory.mktemp("hang"))
    config = training_config(root, "run", train={"steps": 100_000}, ranks={"hang_minutes": 0.05})
    (root / "run.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    return root


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_the_job_comes_back(root: Path, stopped: int) -> None:
    name, other = f"stopped-{stopped}", 1 - stopped
    ranks = start_ranks(2, "pretrain.train", ["--config", str(root / "run.yaml"), f"run.name={name}"], root / name)
    logs, deadline = root / "runs" / name / "logs", time.monotonic() + 120
    while Beat.read(logs / "beats" / f"rank-{stopped:05d}.json") is None or "step 1/" not in ranks[0].output:
        assert all(rank.code is None for rank in ranks) and time.monotonic() < deadline, [rank.output for rank in ranks]
        time.sleep(0.01)
    ranks[stopped].send(signal.SIGSTOP)
    try:
        assert ranks[other].wait(60) == HUNG, ranks[other].output
    finally:
        ranks[stopped].send(signal.SIGKILL)
    (line,) = [line for line in ranks[other].output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: hung for ") and f": rank {stopped} on " in line and " is silent since step " in line
    assert f"; rank {other} on " in line and " stands in step " in line
    assert (root / "runs" / name / "state").read_text().startswith("failed: hung for ")
    assert " in train_step" in (logs / "hang" / f"rank-{other:05d}.txt").read_text()
    record = json.loads((logs / "hang" / f"rank-{other:05d}.collectives.json").read_text().splitlines()[0])
    assert any(entry["profiling_name"].startswith("gloo:all_reduce") for entry in record["entries"])
    assert not (logs / "hang" / f"rank-{stopped:05d}.txt").exists()


def beat(step: int, phase: PhaseName, count: int = 2) -> Beat:
    return Beat(count=count, host="node", place=Whereabouts(7, step, phase), is_hung=True)


def test_who_is_behind_did_not_come() -> None:
    waits = {rank: beat(5, "reduction") for rank in (1, 2)}
    own = beat(5, "reduction")
    later = {rank: beat(5, "reduction", 3) for rank in (1, 2)}
    said = judge(0, own, {**waits, 3: beat(5, "data")}, {**later, 3: beat(5, "data", 3)})
    assert said == "rank 3 on node did not come from step 5, data; ranks 0, 1, 2 stand in step 5, reduction"
    said = judge(0, own, {**waits, 3: beat(4, "save")}, {**later, 3: beat(4, "save", 3)})
    assert said.startswith("rank 3 on node did not come from step 4, save; ")
    assert judge(0, own, waits, later) == "ranks 0, 1, 2 stand in step 5, reduction"  # a message was lost
    said = judge(0, own, {**waits, 3: None}, {**later, 3: None})
    assert said == "rank 3 never said where it stands; ranks 0, 1, 2 stand in step 5, reduction"


def test_a_thousand_silent_ranks_are_a_line() -> None:
    silent = {rank: beat(3, "reduction") for rank in range(1, 1024)}
    said = judge(0, beat(3, "save"), silent, silent)
    assert said.endswith("; 1015 more are silent; rank 0 on node stands in step 3, save") and said.count("rank") == 9


def test_what_moves_is_not_hung_and_the_start_may_take_longer(tmp_path: Path) -> None:
    phase, ended = Phase(torch.device("cpu")), list[int]()
    over = threading.Event()

    def end(code: int) -> None:
        ended.append(code)
        over.set()

    with Watchdog(tmp_path, 0, 1, phase, 0.3, end):
        assert not over.wait(0.6)  # START_FACTOR times the limit
        phase.is_starting = False
        for _ in range(10):
            phase.tick()
            assert not over.wait(0.1)
        phase.enter("validation", step=3)
        assert over.wait(20)
    assert ended[0] == HUNG and "step 3, validation" in (tmp_path / "logs" / "hang" / "rank-00000.txt").read_text()
    assert (tmp_path / "state").read_text().startswith("failed: hung for ")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["hang"]
