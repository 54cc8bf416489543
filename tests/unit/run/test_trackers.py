"""Trackers: Weights & Biases and TensorBoard get the numbers of the rows, go on where a run was resumed, and never end
it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.config.run import RunConfig
from pretrain.run.logger import RunMetrics
from pretrain.run.trackers.tracker import require_tracker_packages
from tests.support.run_rows import step_row
from tests.unit.run.test_rows_and_logger import config, evaluation, steps_in

ROOT = Path(__file__).parents[3]


def wandb_session(run_dir: Path, *arguments: str) -> str:
    """Run tests/support/wandb_child.py in a process of its own; returns what it prints on standard error."""
    places = {name: str(run_dir / name) for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")}
    environment = {**os.environ, **places, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "tests" / "support" / "wandb_child.py", run_dir, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stderr


def test_wandb_offline_for_real(tmp_path: Path) -> None:
    """Two sessions of one run have the same id; losing the service costs one line, nothing at exit, and leaves the
    rows."""
    assert "wandb" not in wandb_session(tmp_path, "0")
    lines = wandb_session(tmp_path, "2", "kill").splitlines()
    ours = [line.split(" (")[0] for line in lines if "step" not in line and not line.startswith("wandb:")]
    # wandb notices the loss at a log or at the end
    assert ours in (["warning: wandb stopped"], ["warning: wandb did not finish"])
    run_id = (tmp_path / "wandb" / "run_id.txt").read_text().strip()
    assert run_id.startswith("test-")
    files = list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2 and any(b"of-tests" in file.read_bytes() for file in files)  # the project
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("environment", "configured", "mode"),
    [
        ({"WANDB_MODE": "disabled"}, "online", "disabled"),
        ({"WANDB_MODE": "dryrun"}, "online", "offline"),
        ({"WANDB_DISABLED": "true"}, "offline", "disabled"),
        ({"WANDB_MODE": "online"}, "offline", "offline"),
        ({"WANDB_MODE": "what"}, "offline", "offline"),
    ],
)
def test_the_environment_can_switch_wandb_off_but_not_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], configured: str, mode: str
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    monkeypatch.setattr("pretrain.run.trackers.wandb_run._start", lambda _, __, mode: asked.append(mode))
    stream = io.StringIO()
    with RunMetrics(config(configured), tmp_path, num_steps=1, resumed_step=0, stream=stream):
        pass
    assert asked == ([] if mode == "disabled" else [mode])
    said = f"wandb is {mode}, as the environment says; logging.wandb={configured}"
    assert (said in stream.getvalue()) == (mode != configured)


def test_a_mode_that_wandb_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "Offlin")
    stream = io.StringIO()
    with RunMetrics(config("offline"), tmp_path, num_steps=1, resumed_step=0, stream=stream):
        pass
    reason = "WANDB_MODE=Offlin in the environment: needs online, offline or disabled"
    assert f"wandb did not start ({reason}); the run continues" in stream.getvalue()


def test_wandb_that_cannot_start_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("in the way")
    stream = io.StringIO()
    with RunMetrics(config("offline"), tmp_path, num_steps=10, resumed_step=0, stream=stream) as metrics:
        metrics.log_step(step_row(1))
    assert stream.getvalue().startswith("warning: wandb did not start (")
    assert stream.getvalue().count("\n") == 2
    assert steps_in(tmp_path / "metrics.jsonl") == [1]


def test_a_run_without_wandb_does_not_import_it() -> None:
    """Nor does megatron-core, which would, for seconds of every start."""
    code = "import sys, pretrain.run.logger, pretrain.parallel.megatron; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def with_tensorboard() -> RunConfig:
    logging = {"wandb": "disabled", "tensorboard": True}
    train = {"steps": 10, "global_batch": 8, "seq_len": 16}
    return RunConfig.model_validate({"logging": logging, "train": train, "optimizer": {"warmup_steps": 0}})


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself shows of a run."""
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_one_curve_of_a_resumed_run(tmp_path: Path) -> None:
    """A kill after step 7, a checkpoint of step 5: steps 6 and 7 are made again, and are there once, as made last."""
    for resumed_step, last in ((0, 7), (5, 10)):
        stream = io.StringIO()
        with RunMetrics(
            with_tensorboard(), tmp_path, num_steps=10, resumed_step=resumed_step, stream=stream
        ) as metrics:
            for step in range(resumed_step + 1, last + 1):
                metrics.log_step(step_row(step, loss=step + resumed_step, mfu_pct=None))
                metrics.log_evaluation([evaluation(step, 1), evaluation(step, 2, 2.5)])
    found = curves(tmp_path)
    assert found["train/loss"] == [
        *((step, step) for step in range(1, 6)),
        *((step, step + 5) for step in range(6, 11)),
    ]
    assert found["validation/nll at 2 loops"] == [(step, 2.5) for step in range(1, 11)]
    assert "train/mfu_pct" not in found and "warning" not in stream.getvalue()


def test_a_run_that_goes_back_is_one_curve_too(tmp_path: Path) -> None:
    """Rows of later steps go, and TensorBoard shows them as they were made last."""
    with RunMetrics(with_tensorboard(), tmp_path, num_steps=10, resumed_step=0, stream=io.StringIO()) as metrics:
        for step in (*range(1, 8), *range(5, 11)):
            if step == 5 and (tmp_path / "metrics.jsonl").read_text().count("\n") == 7:
                metrics.go_back(4)
            metrics.log_step(step_row(step, loss=float((tmp_path / "metrics.jsonl").read_text().count("\n") + 1)))
    assert curves(tmp_path)["train/loss"] == [(step, step) for step in range(1, 11)]


def test_a_kill_takes_no_step_before_a_checkpoint_from_tensorboard(tmp_path: Path) -> None:
    """The writer is not closed; what `sync` wrote before the checkpoint is there."""
    metrics = RunMetrics(with_tensorboard(), tmp_path, num_steps=10, resumed_step=0, stream=io.StringIO())
    metrics.log_step(step_row(1))
    metrics.sync()
    assert [step for step, _ in curves(tmp_path)["train/loss"]] == [1]
    metrics.close()


def test_tensorboard_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    stream = io.StringIO()
    with RunMetrics(with_tensorboard(), tmp_path, num_steps=10, resumed_step=0, stream=stream) as metrics:
        metrics.log_step(step_row(1))
    assert stream.getvalue().startswith("warning: tensorboard did not start (")
    assert stream.getvalue().count("warning") == 1 and steps_in(tmp_path / "metrics.jsonl") == [1]


def test_tensorboard_that_fails_later_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with RunMetrics(with_tensorboard(), tmp_path, num_steps=10, resumed_step=0, stream=stream) as metrics:
        metrics.log_step(step_row(1))

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fail)
        for step in (2, 3):
            metrics.log_step(step_row(step))
        metrics.sync()
    assert stream.getvalue().count("warning: tensorboard stopped ([Errno 28] No space left on device)") == 1
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3]


def test_a_missing_package_is_a_line_before_the_run_starts(tmp_path: Path) -> None:
    """Of both kinds of training; nothing is left on the disk."""
    code = (
        "import sys, importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'tensorboard' else find(name, *rest)\n"
        "from pretrain import train; from finetune import coconut\n"
        "task = ['--config', 'configs/tasks/addition_small.yaml']\n"
        "codes = [train.main([*task, *sys.argv[1:]]), coconut.main(sys.argv[1:])]\n"
        "sys.exit(codes != [2, 2])"
    )
    arguments = ["logging.tensorboard=true", "logging.wandb=disabled", f"run.root={tmp_path / 'runs'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    line = "error: tensorboard is not installed: bash tools/setup.sh tensorboard"
    assert (done.returncode, errors) == (0, [line] * 2), done.stderr
    assert not (tmp_path / "runs").exists()
    require_tracker_packages(config().logging)  # that does not ask for it
