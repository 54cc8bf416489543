"""Ctrl-C while the ranks of a verification import: a terminal sends it to all processes, and one of them answers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
SLOW_MODULE = """
import os, pathlib, time
pathlib.Path("ready").touch()
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(0.02)
os._exit(1)
"""
WORK = """
from pathlib import Path
from pretrain.verification import ranks
ranks.IMPORTED_ONCE = ("slow_module",)
ranks.run_on_ranks("builtins:len", (), world_size=1, logs=Path("logs"))
"""


def test_the_server_of_the_ranks_leaves_ctrl_c_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    # the command's own, of which `pretrain.verify` makes a line
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n"), errors
