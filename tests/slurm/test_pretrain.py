"""Pretraining on two nodes of a real Slurm: signals, time limits, crashes and bad nodes, and that none of them changes
the run."""

import json
import os
import signal
import time
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, Job, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SCRIPT = "slurm/pretrain_looped.sh"
CONFIG = "configs/tasks/p_hop_small.yaml"
NUM_STEPS = 100
SIZES = [
    *(
        "model.num_loop_layers=2",
        "model.num_loops=2",
        "model.hidden_size=16",
        "model.num_attention_heads=2",
        "model.ffn_size=32",
    ),
    *("parallel.pipeline=2", "train.steps=100", "train.global_batch=8", "train.micro_batch=2", "train.precision=fp32"),
    *(
        "optimizer.warmup_steps=2",
        "validation.every=50",
        "validation.num_sequences=16",
        "checkpoint.every=20",
        "logging.wandb=disabled",
    ),
]
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]
EXACT = ("step", "loss", "grad_norm", "lr", "tokens_seen")
Variables = dict[str, str]


def start(
    cluster: Cluster, name: str, options: list[str] | None = None, extra: tuple[str, ...] = (), **variables: str
) -> Job:
    """Submit the small run on two nodes, a pipeline stage on each."""
    return cluster.submit(SCRIPT, options or TWO_NODES, [CONFIG, *SIZES, f"run.name={name}", *extra], **variables)


def slow(attempts: int = 1) -> Variables:
    """So slow in its first attempts that the test has time to interfere."""
    return {"FAULT": "slow", "FAULTY_ATTEMPTS": str(attempts)}


def rows(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    path = cluster.project / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(cluster: Cluster, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in EXACT) for row in rows(cluster, name)]


def requeues(cluster: Cluster, name: str) -> list[str]:
    path = cluster.project / "runs" / name / "requeues.txt"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_step(cluster: Cluster, name: str, step: int) -> None:
    wait_until(lambda: len(rows(cluster, name)) >= step, f"step {step} of {name}", 300, cluster.condition)


@pytest.fixture(scope="module")
def early(cluster: Cluster) -> dict[str, Job]:
    """Jobs that need no test to interfere; they work while the first one waits."""
    return {
        "uninterrupted": start(cluster, "uninterrupted"),
        "buggy": start(cluster, "buggy", FAULT="raise", FAULTY_ATTEMPTS="1"),
    }


@pytest.fixture(scope="module")
def reference(cluster: Cluster, early: dict[str, Job]) -> list[tuple[Any, ...]]:
    """The loss curve of a run that nobody disturbs."""
    early["uninterrupted"].wait("COMPLETED")
    return curve(cluster, "uninterrupted")


@pytest.mark.usefixtures("early")
def test_the_time_limit_is_warned_of_and_the_job_comes_back(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    job = start(cluster, "limited", **slow())
    wait_for_step(cluster, "limited", 3)
    hours, minutes, _ = job.field("RunTime").split(":")
    # Slurm looks at time limits twice a minute, and now finds less left than the three minutes of the warning.
    cluster.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={60 * int(hours) + int(minutes) + 3}")
    job.wait_for_line("stopped by SIGUSR1")
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    job.wait("COMPLETED")
    (line,) = requeues(cluster, "limited")
    stopped_at = int(line.split("step ")[1].split(":")[0])
    assert line.endswith("stopped by SIGUSR1") and 3 <= stopped_at < NUM_STEPS
    assert f"step {stopped_at} of {NUM_STEPS}: resumed" in job.log and job.field("Restarts") == "1"
    assert curve(cluster, "limited") == request.getfixturevalue("reference")


def test_a_run_on_two_nodes_leaves_what_it_was(
    cluster: Cluster, early: dict[str, Job], reference: list[tuple[Any, ...]]
) -> None:
    assert len(reference) == NUM_STEPS
    uninterrupted = early["uninterrupted"]
    run_dir = cluster.project / "runs" / "uninterrupted"
    assert (run_dir / "state").read_text() == "complete\n" and not requeues(cluster, "uninterrupted")
    assert "on n[1-2]" in uninterrupted.log and "2 ranks" in uninterrupted.log
    snapshot = run_dir / "jobs" / f"{uninterrupted.number}-0"
    assert (snapshot / "commit.txt").read_text().strip() == cluster.run("git", "rev-parse", "HEAD")
    assert "+changed since" in (snapshot / "uncommitted.diff").read_text()
    assert "new.py" in cluster.run("tar", "-tzf", str(snapshot / "untracked.tar.gz")).splitlines()
    plan = (snapshot / "plan.txt").read_text()
    assert "num_loop_layers: 2" in plan and "2 = tensor 1 × pipeline 2 × data 1" in plan


def test_sigterm_to_one_node_stops_all(cluster: Cluster, reference: list[tuple[Any, ...]]) -> None:
    job = start(cluster, "terminated", **slow(attempts=2))
    wait_for_step(cluster, "terminated", 2)
    cluster.run("scancel", "--batch", "--signal=TERM", job.number)  # the batch script alone, on the first node
    job.wait_for_line("stopped by SIGUSR1")  # which is how the script passes it on
    at = len(rows(cluster, "terminated"))
    job.wait_for_line("resumed")
    wait_for_step(cluster, "terminated", at + 2)
    os.kill(job.process(rank=1), signal.SIGTERM)  # one rank alone, on the second node
    job.wait("COMPLETED")
    assert [line.rpartition(": ")[2] for line in requeues(cluster, "terminated")] == [
        "stopped by SIGUSR1",
        "stopped by SIGTERM",
    ]
    assert curve(cluster, "terminated") == reference


def test_a_cancelled_run_is_saved_and_continues_on_another_number_of_nodes(
    cluster: Cluster, reference: list[tuple[Any, ...]]
) -> None:
    job = start(cluster, "moved", **slow())
    wait_for_step(cluster, "moved", 3)
    cluster.run("scancel", job.number)
    job.wait("CANCELLED")
    job.wait_for_line("not requeued: Slurm is ending this job (stopped by SIG")
    steps = len(rows(cluster, "moved"))
    assert 3 <= steps < NUM_STEPS and not requeues(cluster, "moved")
    again = start(cluster, "moved", ["--nodes=1", "--ntasks-per-node=2"])
    again.wait("COMPLETED")
    assert f"step {steps} of {NUM_STEPS}: resumed" in again.log
    assert curve(cluster, "moved") == reference


def test_a_bug_in_one_rank_is_shown_last_and_the_job_comes_back(
    cluster: Cluster, early: dict[str, Job], reference: list[tuple[Any, ...]]
) -> None:
    job = early["buggy"]
    job.wait("COMPLETED")
    first = job.log.partition("restart 1")[0]
    shown = first[first.rindex("error: rank 1 failed first\nTraceback") :]
    assert "RuntimeError: a bug of rank 1\n" in shown and "Connection closed" not in shown
    (line,) = requeues(cluster, "buggy")
    assert line.endswith(f"job {job.number} at step 20: exit code 1")
    assert curve(cluster, "buggy") == reference


def test_a_rank_killed_in_a_save_comes_back_from_the_checkpoint_before(
    cluster: Cluster, reference: list[tuple[Any, ...]]
) -> None:
    """What the unfinished save leaves is not taken for the newest checkpoint."""
    job = start(cluster, "unsaved", FAULT="kill_in_save", FAULTY_ATTEMPTS="1")
    job.wait("COMPLETED")
    (line,) = requeues(cluster, "unsaved")
    assert f"job {job.number} at step 20: " in line
    assert curve(cluster, "unsaved") == reference
    names = sorted(path.name for path in (cluster.project / "runs" / "unsaved" / "checkpoints").iterdir())
    assert names == ["step-00000080", "step-00000100"]


def test_a_killed_rank_ends_the_job_at_once(cluster: Cluster) -> None:
    job = start(cluster, "killed", **slow(), TEST_MAX_REQUEUES="0")
    wait_for_step(cluster, "killed", 2)
    os.kill(job.process(rank=1), signal.SIGKILL)
    killed = time.monotonic()
    job.wait("FAILED")
    assert time.monotonic() - killed < 30
    assert job.log.splitlines()[-1] == "error: rank 1 on n2: Killed"
    assert (cluster.project / "runs" / "killed" / "state").read_text() == "failed: error: rank 1 on n2: Killed\n"


def test_a_job_without_progress_gives_up(cluster: Cluster) -> None:
    job = start(cluster, "hopeless", FAULT="abort", FAULTY_ATTEMPTS="9", TEST_MAX_REQUEUES="1")
    job.wait("FAILED")
    assert len(requeues(cluster, "hopeless")) == 1 and job.field("Restarts") == "1"
    assert "error: no progress beyond step 0 in 1 requeues" in job.log
    end = job.log[job.log.rindex("error: rank 1 on n2: Aborted") :]
    _, first, *frames = [line for line in end.splitlines() if line.strip()]
    assert first == "Fatal Python error: Aborted" and any('faulty.py", line' in line for line in frames)


def test_a_bad_node_is_named_and_left_out(cluster: Cluster) -> None:
    broken = cluster.project / "broken_node"
    broken.write_text("n1\n")
    job = start(
        cluster,
        "healthy",
        ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=1"],
        ("train.steps=3", "validation.every=0"),
    )
    job.wait("COMPLETED")
    broken.unlink()
    assert "error: unhealthy node n1: 'bash show_gpus.sh' shows 0 GPUs, 1 wanted\n" in job.log
    assert "unhealthy nodes: n1" in requeues(cluster, "healthy")[0]
    assert (job.field("ExcNodeList"), job.field("NodeList")) == ("n1", "n2")
