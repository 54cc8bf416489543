"""The table of runs: every state from directories as runs and batch scripts leave them, at any width, quickly, without
torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.read import resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.rows.jsonl import JsonLines
from pretrain.run.directory import write_state
from pretrain.run.status import TAIL_BYTES, RunStatus, find_runs, read_status
from tests.support.run_rows import step_row

ROOT = Path(__file__).parents[3]


def make_run(
    folder: Path, *, steps: int = 0, total: int = 100, state: str = "", job: str = "", age: float = 0.0, **row: Any
) -> Path:
    """The directory of a run with so many steps done, whose last sign of life is `age` seconds old."""
    (folder / "checkpoints").mkdir(parents=True)
    config = RunConfig.model_validate(
        {"run": {"name": folder.name}, "train": {"steps": total}, "optimizer": {"warmup_steps": 0}}
    )
    (folder / "config.yaml").write_text(resolved_yaml(config))
    if steps:
        made = (
            step_row(step, **{"loss": 5 - step / 100, "mfu_pct": 5.0, "tokens_per_s": 500.0, "step_time_s": 2.0} | row)
            for step in range(1, steps + 1)
        )
        JsonLines(folder / "metrics.jsonl").append(made)
    if state:
        write_state(folder, state)
    if job:
        (folder / "jobs" / job).mkdir(parents=True)
        (folder / "jobs" / job / "step.log").write_text("0: step 1/100\n")
    for path in sorted(folder.rglob("*")):
        set_age(path, age)
    return folder


def set_age(path: Path, seconds: float) -> None:
    """Counted from now: the whole suite takes longer than a run may be silent, so that no time of import will do."""
    os.utime(path, (time.time() - seconds,) * 2)


def status(run: Path, queue: dict[str, str] | None = None) -> RunStatus:
    return read_status(run, run.name, queue, time.time())


def test_a_running_run_shows_its_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=40, state="running", age=30)
    for name, age in (("step-00000020", 4000), ("step-00000040", 65), (".tmp-step-00000060", 1)):
        (run / "checkpoints" / name).mkdir()
        set_age(run / "checkpoints" / name, age)
    (run / "requeues.txt").write_text("2026-11-25T10:00:00+00:00 job 7 at step 20: stopped by SIGUSR1\n" * 2)
    assert status(run) == RunStatus(
        name="a", state="running", step=40, num_steps=100, loss=4.6, tokens_per_s=500.0, mfu_pct=pytest.approx(5.0),
        eta_s=120.0, requeues=2, checkpoint_step=40, checkpoint_age_s=pytest.approx(65, abs=20), error="",
    )  # fmt: skip


def test_the_time_left_is_what_the_run_says(tmp_path: Path) -> None:
    """It knows how many loops are to come; what the median step would say is 120 seconds."""
    assert status(make_run(tmp_path / "a", steps=40, state="running", eta_s=900.0)).eta_s == 900.0


@pytest.mark.parametrize(
    ("worst", "state", "slow"), [(1.8, "running", True), (1.1, "running", False), (1.8, "", False)]
)
def test_a_slow_machine_is_named(tmp_path: Path, worst: float, state: str, slow: bool) -> None:
    more = {"work_s": 1.0, "work_worst_s": worst, "slowest": "rank 5 on node1"}
    run = make_run(tmp_path / "a", steps=30, state=state or "complete", **more)
    assert status(run).error == ("slow: rank 5 on node1, 1.80 times the median" if slow else "")


@pytest.mark.parametrize(
    ("made", "queue", "expected"),
    [
        ({}, None, "waiting"),
        ({"job": "12-0"}, {"12": "PENDING"}, "waiting"),
        ({"steps": 3, "state": "stopped by SIGUSR1", "job": "12-0"}, {"12": "PENDING"}, "waiting"),
        ({"steps": 3, "state": "failed: ValueError: x", "job": "12-0"}, {"12": "PENDING"}, "waiting"),
        ({"steps": 3, "state": "running", "job": "12-1"}, {"12": "RUNNING"}, "running"),
        ({"steps": 3, "state": "stopped by SIGUSR1", "job": "12-1"}, {"12": "RUNNING"}, "running"),
        ({"job": "12-1"}, {"12": "RUNNING"}, "running"),
        ({"steps": 3, "state": "running", "job": "12-1", "age": 100}, {"12": "FAILED"}, "crashed"),
        ({"steps": 3, "state": "running", "job": "12-1", "age": 100}, {}, "crashed"),
        ({"steps": 3, "state": "running", "job": "12-1", "age": 5}, {}, "running"),  # continued by hand
        ({"steps": 3, "state": "running", "job": "12-1", "age": 100}, None, "running"),
        ({"steps": 3, "state": "running", "age": 700}, None, "stale"),
        ({"steps": 3, "state": "running", "job": "12-1", "age": 700}, {"12": "RUNNING"}, "stale"),
        ({"steps": 3, "state": "running", "age": 700, "step_time_s": 60.0}, None, "running"),
        ({"steps": 3, "state": "stopped by SIGTERM"}, {}, "stopped"),
        ({"steps": 3, "state": "failed"}, None, "crashed"),
        ({"steps": 100, "state": "complete", "job": "12-1", "age": 9e6}, {}, "complete"),
        ({"steps": 100, "state": "complete", "job": "12-1"}, {"12": "PENDING"}, "complete"),  # its evaluation waits
        ({"steps": 3}, None, "running"),
    ],
)
def test_states(tmp_path: Path, made: dict[str, Any], queue: dict[str, str] | None, expected: str) -> None:
    found = status(make_run(tmp_path / "a", **made), queue)
    assert found.state == expected
    assert (found.eta_s is not None) == (expected == "running" and "steps" in made)


def test_weights_that_were_brought_in_wait_for_nothing(tmp_path: Path) -> None:
    """As `convert_checkpoint import` leaves them: no state, no rows, a checkpoint of step 0."""
    run = make_run(tmp_path / "smollm2", total=1000)
    (run / "checkpoints" / "step-00000000").mkdir()
    assert (status(run).state, status(run).num_steps) == ("imported", None)
    assert run_tool(tmp_path).stdout.splitlines()[1].split()[:3] == ["smollm2", "imported", "0"]  # checkpoint 0
    make_run(tmp_path / "fresh", total=1000)
    assert status(tmp_path / "fresh").state == "waiting"


def test_a_watch_in_a_pipe_prints_a_table_when_a_run_has_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=3, state="running")
    with watching(tmp_path, subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().split()[0] for _ in range(2)] == ["run", "a"]
        time.sleep(0.5)  # several looks, and nothing new
        JsonLines(run / "metrics.jsonl").append([step_row(4)])
        assert [process.stdout.readline().split()[:3] for _ in range(3)] == [[], HEAD, ["a", "running", "4/100"]]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120) == ("", None)
    assert process.returncode == 0


def test_a_watch_on_a_terminal_draws_in_one_place(tmp_path: Path) -> None:
    make_run(tmp_path / "a", steps=3, state="running")
    ours, theirs = os.openpty()
    with watching(tmp_path, theirs) as process:
        os.close(theirs)
        text = ""
        while text.count("\x1b[H") < 3:
            text += os.read(ours, 4096).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    os.close(ours)
    frame = text.split("\x1b[H")[1]
    assert "every 0.1 s, Ctrl-C ends this" in frame and "a    running" in frame and frame.endswith("\x1b[J")


@pytest.mark.parametrize("seconds", ["runs", "0", "nan"])
def test_a_wrong_interval_is_a_line(tmp_path: Path, seconds: str) -> None:
    command = [sys.executable, ROOT / "tools/status.py", "--watch", seconds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    line = f"error: --watch: needs seconds, from 0.1 on, got {seconds}; the folder stands before it; --help lists the"
    assert (done.returncode, done.stderr) == (2, f"{line} options\n")


HEAD = ["run", "state", "step"]


@contextmanager
def watching(folder: Path, stdout: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, ROOT / "tools/status.py", folder, "--watch", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_checkpoint_between_two_rows_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=3, state="stopped by SIGTERM")
    (run / "checkpoints" / "step-00000007").mkdir()
    assert (status(run).step, status(run).checkpoint_step) == (7, 7)


def test_the_newest_job_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=3, state="running", job="9-3", age=100)
    (run / "jobs" / "10-0").mkdir()
    assert status(run, {"9": "PENDING", "10": "RUNNING"}).state == "running"


@pytest.mark.parametrize(
    ("state", "files", "error"),
    [
        ("failed: ValueError: no room", {}, "ValueError: no room"),
        (
            "failed",
            {"jobs/12-1/failure.txt": "error: rank 1\nTraceback (most recent call last):\nKeyError: 'x'\n"},
            "KeyError: 'x'",
        ),
        ("failed", {"jobs/12-1/step.log": "1: error: bad shard\n0: step 3\n"}, "bad shard"),
        (
            "running",
            {"requeues.txt": "t job 1 at step 3: exit code 1\nt job 1 at step 5: stopped by SIGUSR1\n"},
            "exit code 1",
        ),
        ("running", {"requeues.txt": "t job 1 at step 5: unhealthy nodes: n1\n"}, "unhealthy nodes: n1"),
        (
            "running",
            {"requeues.txt": "t job 1 at step 5: stopped by SIGUSR1\nt job 1 at step 5: SIGTERM before the start\n"},
            "",
        ),
        ("running", {"requeues.txt": "t job 1 at step 5: by Slurm\n"}, ""),
        ("stopped by train.exit_after", {}, ""),
        ("stopped by SIGINT", {}, ""),
    ],
)
def test_last_error(tmp_path: Path, state: str, files: dict[str, str], error: str) -> None:
    run = make_run(tmp_path / "a", steps=3, state=state, job="12-1")
    for name, text in files.items():
        (run / name).write_text(text)
    assert status(run).error == error


def test_damaged_files_cost_only_what_they_held(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=5, state="running")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert status(run).step == 5
    (run / "config.yaml").write_text("train: [")
    found = status(run)
    assert (found.num_steps, found.eta_s) == (None, None)
    assert found.error.startswith("config.yaml: while parsing")
    for text in ("train: 3", "train: {steps: abc, epochs: [1]}\nlogging: {every: abc}", "[" * 5000):
        (run / "config.yaml").write_text(text)
        assert status(run).num_steps is None
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 6, "loss": "a"}\n{"step": 6, "step_time_s": NaN}\n' + "[" * 5000 + "\n")
    assert status(run).step in (5, 6)
    (run / "config.yaml").write_text("3")
    assert status(run).error == "config.yaml: not a configuration"


def test_a_loss_that_is_not_finite_and_a_missing_mfu_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", steps=3, state="running", loss=float("nan"), mfu_pct=None)
    done = run_tool(tmp_path)
    assert " nan " in done.stdout
    assert "MFU" not in done.stdout
    assert status(run).mfu_pct is None


@pytest.mark.parametrize(("steps", "expected"), [(9, None), (10, None), (11, 50), (27, 50)])
def test_steps_of_a_fine_tuning_run_follow_from_its_epochs(tmp_path: Path, steps: int, expected: int | None) -> None:
    """Its configuration has epochs; here one is 10 steps. The first is over when a row of the second is there."""
    run = make_run(tmp_path / "a")
    (run / "config.yaml").write_text("train:\n  epochs: 5\n")
    lines = [f'{{"step": {step}, "epoch": {(step - 1) // 10}, "step_time_s": 1.0}}\n' for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(lines))
    write_state(run, "running")
    found = status(run)
    assert found.num_steps == expected
    assert found.eta_s == (None if expected is None else expected - steps)


def run_tool(folder: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/status.py", str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_table_fits_the_terminal(tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path / "12x2", steps=40, total=20_000, state="running", tokens_per_s=1.25e6)
    (run / "checkpoints" / "step-00012345").mkdir()
    (run / "requeues.txt").write_text("t job 1 at step 5: exit code 1\n")
    make_run(tmp_path / "sweeps" / "p_hop_small" / "4x1-seed0", steps=100, state="complete")
    make_run(tmp_path / "long", steps=3, state=f"failed: ValueError: {'a long story ' * 20}")
    lines = run_tool(tmp_path, COLUMNS=str(width)).stdout.splitlines()
    assert lines[0].startswith("run ")
    assert [line.split()[1] for line in lines[1:4]] == ["running", "crashed", "complete"]
    assert all(len(line) <= width for line in lines[:4])
    assert any("ValueError: a long" in line for line in lines)
    assert ("last error" in lines[0]) == (width >= 120)


def test_of_long_runs_the_ends_of_their_rows_are_read(tmp_path: Path) -> None:
    """What makes two hundred runs a matter of a second; timings belong in benchmarks."""

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    make_run(tmp_path / "run-000", steps=2000, total=4000, state="running", job="12-0")
    assert (tmp_path / "run-000" / "metrics.jsonl").stat().st_size > 20 * TAIL_BYTES
    for number in range(1, 20):
        folder = tmp_path / f"run-{number:03d}"
        (folder / "checkpoints" / "step-00001000").mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl", "state"):
            (folder / name).write_bytes((tmp_path / "run-000" / name).read_bytes())
    status(tmp_path / "run-000")  # what is imported is read once
    before = bytes_read()
    found = [status(run) for run in find_runs(tmp_path)]
    assert bytes_read() - before < 20 * 4 * TAIL_BYTES
    assert {(run.state, run.step, run.eta_s) for run in found} == {("running", 2000, 4000.0)}
