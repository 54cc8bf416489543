"""Commands side by side: no more at a time than asked for, a share of the machine for each, failures named, and one
signal that lets all of them save."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.run.side_by_side import NamedCommand, environment, run_side_by_side

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    with open(sys.argv[1], "a") as file: file.write("saved\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).write_text("began\\n")
time.sleep(60)
"""
PARENT = """
import pathlib, sys
from pretrain.run.side_by_side import NamedCommand, run_side_by_side
folder = pathlib.Path(sys.argv[1])
words = lambda name: [sys.executable, str(folder / "saves.py"), str(folder / name)]
commands = [NamedCommand(name, words(name), folder / f"{name}.log") for name in "abc"]
try:
    run_side_by_side(commands, "run", 2)
except KeyboardInterrupt:
    print("interrupted")
"""


def python(name: str, code: str, folder: Path) -> NamedCommand:
    return NamedCommand(name, [sys.executable, "-c", code], folder / f"{name}.log")


def test_all_run_and_never_more_than_asked_for_at_a_time(tmp_path: Path) -> None:
    code = (
        "import os, time; "
        f"open(r'{tmp_path}/' + str(os.getpid()), 'w').close(); "
        f"n = len([f for f in os.listdir(r'{tmp_path}') if f.isdigit()]); time.sleep(0.3); "
        f"os.remove(r'{tmp_path}/' + str(os.getpid())); print('at once', n)"
    )
    run_side_by_side([python(f"c{number}", code, tmp_path / "logs") for number in range(5)], "run", 2)
    seen = [int((tmp_path / "logs" / f"c{number}.log").read_text().split()[-1]) for number in range(5)]
    assert max(seen) == 2


def test_the_machine_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    assert environment(0, 2)["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2))
    assert [environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["3,6", "5"]
    assert environment(0, 4)["CUDA_VISIBLE_DEVICES"] == "3,5,6"  # fewer than runs: they share
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert environment(0, 2)["OMP_NUM_THREADS"] == "7"


def test_after_a_failure_none_is_begun_and_those_that_run_end(tmp_path: Path) -> None:
    commands = [
        python("good", f"import time; time.sleep(1); open(r'{tmp_path}/done', 'w').close()", tmp_path),
        python("bad", "import sys; print('error: no such thing'); sys.exit(2)", tmp_path),
        python("later", f"open(r'{tmp_path}/begun', 'w').close()", tmp_path),
    ]
    with pytest.raises(OSError, match=r"^bad ended with exit code 2: error: no such thing; the same command continues"):
        run_side_by_side(commands, "run", 2)
    assert (tmp_path / "done").exists() and not (tmp_path / "begun").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_commands_save_once(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "saves.py").write_text(SAVES)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    os.killpg(parent.pid, number)
    out, _ = parent.communicate(timeout=120)
    assert "interrupted" in out
    assert [(tmp_path / name).read_text() for name in "ab"] == ["began\nsaved\n"] * 2
    assert not (tmp_path / "c").exists()
