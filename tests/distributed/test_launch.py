"""The launcher: signals reach every rank once, what fails is named, and nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from pretrain import launch
from tests.distributed.training import training_config, write_corpus
from tests.support.ranks import Rank

ROOT = Path(__file__).parents[2]
RANK = str(ROOT / "tests/support/launched_rank.py")
HOUR_S, LIMIT_S = 3600, 120
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def wait_for(what: Callable[[], bool], of: "subprocess.Popen[str] | None" = None, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline and (of is None or of.poll() is None), of and of.communicate()
        time.sleep(0.02)


def launched(*arguments: str) -> "AbstractContextManager[subprocess.Popen[str]]":
    return started([sys.executable, "-m", "pretrain.launch", *arguments])


@contextmanager
def started(command: list[str]) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def ranks(folder: Path, *deeds: str) -> "Iterator[subprocess.Popen[str]]":
    """Two ranks that have started."""
    with launched("--ranks", "2", RANK, str(folder), *deeds) as process:
        wait_for(lambda: all((folder / f"{rank}.started").exists() for rank in range(2)), process)
        yield process


def facts(folder: Path, rank: int) -> dict[str, str]:
    lines = (folder / f"{rank}.started").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def are_gone(folder: Path) -> bool:
    """Whether no process of the ranks lives; one that nobody has collected yet does not. One that was killed may live
    for a moment on a busy machine: wait for it."""
    for pid in [pid for rank in range(2) for pid in facts(folder, rank)["pids"].split()]:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue
    return True


def got(folder: Path) -> list[str]:
    return [(folder / f"{rank}.got").read_text() for rank in range(2)]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([signal.SIGTERM], "SIGTERM"),
        ([signal.SIGUSR1, signal.SIGTERM], "SIGUSR1 SIGTERM"),
        ([signal.SIGHUP, signal.SIGINT, signal.SIGINT], "SIGHUP SIGINT SIGINT"),
    ],
)
def test_signals_reach_every_rank_once(tmp_path: Path, sent: Sequence[signal.Signals], expected: str) -> None:
    with ranks(tmp_path) as process:
        seen = [facts(tmp_path, rank) for rank in range(2)]
        time.sleep(launch.STARTING_S if signal.SIGINT in sent else 0)
        for number in sent:
            process.send_signal(number)
            time.sleep(0.1)  # of two that wait for a process, the lower number is heard first
        _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said, got(tmp_path)) == (0, "", [expected] * 2)
    assert [rank["LOCAL_RANK"] for rank in seen] == ["0", "1"] and {rank["WORLD_SIZE"] for rank in seen} == {"2"}
    assert len({rank["MASTER_PORT"] for rank in seen}) == 1


def test_ctrl_c_while_ranks_start_is_a_line(tmp_path: Path) -> None:
    """Of Python's own start it would make a traceback. However slow the machine is, they have not started."""
    slow = f"import sys; from pretrain import launch; launch.STARTING_S = {HOUR_S}; sys.exit(launch.main(sys.argv[1:]))"
    arguments = ["--ranks", "2", RANK, str(tmp_path), "0:starting", "1:starting"]
    with started([sys.executable, "-c", slow, *arguments]) as process:
        wait_for(lambda: len(children(process.pid)) == 3, process)  # with the keeper
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said) == (130, "ended by SIGINT, before there was anything to save\n")
    assert not list(tmp_path.glob("*.started"))


def children(pid: int) -> list[str]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return found.read_text().split() if found.exists() else []


@pytest.mark.parametrize(
    ("code", "expected"),
    [(1, "error: rank 1 ended with exit code 1\n"), (3, "error: rank 1 ended with exit code 3\n"), (2, "")],
)
def test_a_rank_that_fails_is_named_and_the_others_are_ended(tmp_path: Path, code: int, expected: str) -> None:
    """Bad input, code 2, has been told by the rank itself."""
    with ranks(tmp_path, f"1:exit:{code}", "0:child") as process:
        (tmp_path / "go").touch()
        _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said) == (code, expected)
    assert (tmp_path / "0.got").read_text() == "SIGTERM"
    wait_for(partial(are_gone, tmp_path))


def test_a_rank_that_is_killed_is_named_and_the_deaf_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "GRACE_S", 0.3)
    (tmp_path / "go").touch()
    assert launch.main(["--ranks", "2", RANK, str(tmp_path), "0:deaf", "0:child", "1:exit:-9"]) == 247
    assert capfd.readouterr().err == "error: rank 1 ended with exit code 247\n"
    wait_for(partial(are_gone, tmp_path))


def test_a_killed_rank_is_named_by_its_signal(tmp_path: Path) -> None:
    with ranks(tmp_path) as process:
        os.kill(int(facts(tmp_path, 0)["pids"]), signal.SIGKILL)
        _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said) == (137, "error: rank 0 was ended by SIGKILL\n")
    wait_for(partial(are_gone, tmp_path))


def test_a_killed_launcher_leaves_nothing(tmp_path: Path) -> None:
    """The ranks get the signal at which trainers save."""
    with ranks(tmp_path, "1:child") as process:
        process.kill()
        wait_for(lambda: are_gone(tmp_path), limit_s=30)
    assert got(tmp_path) == ["SIGTERM"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "2"], "nothing to start: add -m pretrain.train or a script, with its arguments"),
        (["--ranks", "0", "-m", "x"], "--ranks: needs at least 1, got 0; --help lists the options"),
        (["-m", "x"], "the following arguments are required: --ranks; --help lists the options"),
        (
            ["--ranks", "2", "pretrain.train"],
            "pretrain.train: no such script; a module is started with -m, and options come before it",
        ),
        (["--ranks", "2", "--nodes", "2", "-m", "x"], "--nodes 2 needs --node-rank N and --rendezvous HOST:PORT"),
        (
            ["--ranks", "2", "--rendezvous", "a:1", "-m", "x"],
            "--node-rank and --rendezvous are for several machines: add --nodes N",
        ),
        (
            ["--ranks", "1", "--nodes", "2", "--node-rank", "2", "--rendezvous", "a:1", "-m", "x"],
            "--node-rank 2 is not below --nodes 2",
        ),
        (
            ["--ranks", "1", "--nodes", "2", "--node-rank", "0", "--rendezvous", "a:0", "-m", "x"],
            "--rendezvous a:0: needs HOST:PORT, such as node0:29500",
        ),
    ],
)
def test_what_cannot_be_started_is_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = launch.main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert (code, capsys.readouterr().err) == (2, f"error: {message}\n")


def test_options_behind_the_command_are_its_own() -> None:
    parsed = launch.parse(["--ranks", "3", "-m", "pretrain.train", "--ranks", "7", "-m", "x"])
    assert (parsed.ranks, parsed.command) == (3, ["-m", "pretrain.train", "--ranks", "7", "-m", "x"])
    assert launch.parse(["--ranks", "3", RANK, "--ranks", "7"]).command == [RANK, "--ranks", "7"]


def forked(folder: Path, *arguments: str) -> Rank:
    """The launcher with ranks that import nothing; what they all say is its output."""
    variables = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return Rank("tests.support.forked_launch", arguments, variables, folder / "said.txt", afresh=False)


def endless_run(folder: Path) -> tuple[str, ...]:
    """The command of a run of two stages, in `folder/runs/pretrain`."""
    write_corpus(folder)
    config = training_config(folder, "pretrain", parallel={"pipeline": 2}, train={"steps": 100_000})
    (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    return "-m", "pretrain.train", "--config", str(folder / "config.yaml")


def test_ctrl_c_saves_a_run_and_ends_well(tmp_path: Path) -> None:
    """Also the port, which rank 0 gets from the launcher, is used here: the ranks meet."""
    run = tmp_path / "runs/pretrain"
    launcher = forked(tmp_path, "--ranks", "2", *endless_run(tmp_path))
    wait_for(lambda: launcher.code is not None or (run / "metrics.jsonl").exists())
    launcher.send(signal.SIGINT)
    assert launcher.wait(LIMIT_S) == 0, launcher.output
    assert "Traceback" not in launcher.output and "error" not in launcher.output, launcher.output
    assert launcher.output.splitlines()[-1].endswith("stopped by SIGINT, the same command continues it")
    assert (run / "state").read_text() == "stopped by SIGINT\n" and list((run / "checkpoints").glob("step-*"))
    assert "stopped" in (run / "report.html").read_text()


def test_a_key_that_is_unknown_is_one_line_for_all_ranks() -> None:
    with launched("--ranks", "2", "-m", "pretrain.train", "trian.steps=1") as process:
        _, said = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, said) == (2, "error: command line: trian: unknown key, did you mean train?\n")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs/pretrain").mkdir(parents=True)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        nodes = ("--ranks", "1", "--nodes", "2", "--node-rank", "0", "--rendezvous", f"127.0.0.1:{port}")
        launcher = forked(tmp_path, *nodes, *endless_run(tmp_path))
        assert launcher.wait(LIMIT_S) == 1 and "Traceback" not in launcher.output, launcher.output
    first, last = [line for line in launcher.output.splitlines() if line.startswith("error")]
    assert first.startswith(f"error: rank 0: MASTER_PORT={port} is in use on this machine: choose another one (trace")
    assert last == "error: rank 0 ended with exit code 1"
