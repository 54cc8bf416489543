"""Terminals and pipes that are not as usual: Ctrl-C while a command still imports, a reader that has seen enough, an
output that knows ASCII alone. Each as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
TRAIN = ("-m", "pretrain.train", "--config", "tests/golden/pretrained.yaml")
SLOW_MODULE = """
import pathlib, time
pathlib.Path({ready!r}).touch()
try:
    time.sleep(30)
except KeyboardInterrupt:
    raise ImportError("as some libraries make of it")
"""


def start(command: tuple[str, ...], path: Path | None = None, **more: str) -> subprocess.Popen[bytes]:
    """Start a command, with a folder of modules before all others."""
    folders = os.pathsep.join(map(str, [*([path] if path else []), ROOT]))
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "PYTHONPATH": folders, **more},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("yaml", (*TRAIN, "--dry-run")), ("torch", TRAIN), ("yaml", ("tools/status.py", "tests/golden")),
        ("torch", ("tools/generate.py", "--run", "tests/golden/pretrained", "--prompt", "1")),
        ("torch", ("finetune/coconut.py", "--config", "tests/golden/finetuned.yaml")),
    ],
)  # fmt: skip
def test_an_interrupt_of_an_import_is_one_line(tmp_path: Path, module: str, command: tuple[str, ...]) -> None:
    """Also where the library that is imported makes another error of it."""
    ready = tmp_path / "ready"
    (tmp_path / f"{module}.py").write_text(SLOW_MODULE.format(ready=str(ready)))
    process = start(command, tmp_path)
    deadline = time.monotonic() + 30
    while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.decode().splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in errors.decode() and len(errors.splitlines()) <= 2


@pytest.mark.parametrize(
    "command",
    [
        ("tools/status.py", "tests/golden"), ("tools/status.py", "--help"), (*TRAIN, "--dry-run"),
        ("-m", "pretrain.train", "--help"), ("tools/sweep.py", "configs/sweeps/p_hop_small.yaml", "--print"),
    ],
)  # fmt: skip
def test_a_reader_that_is_gone_is_no_error(command: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        stdout=write, stderr=subprocess.PIPE, timeout=120, check=False,
    )  # fmt: skip
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("-m", "pretrain.train", "--help"), b"model.num_loops"), ((*TRAIN, "--dry-run"), b"1 layer ? 2 loops"),
        (("tools/eval_depth.py", "--help"), b"--num-loops"), (("tools/status.py", "tests/golden"), b"complete"),
        (("tools/scaling_plot.py", "tests/golden/pretrained/eval/depth.jsonl", "--out", "{here}"), b"alpha"),
    ],
)  # fmt: skip
def test_output_in_ascii_has_question_marks(tmp_path: Path, command: tuple[str, ...], words: bytes) -> None:
    process = start(tuple(part.replace("{here}", str(tmp_path)) for part in command), PYTHONIOENCODING="ascii")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert words in output and output.isascii()
