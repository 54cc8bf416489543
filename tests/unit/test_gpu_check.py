"""The GPU check: its parts are bounded, go on where they stopped, and end in a table; and its tests on a CPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = '-m pytest -q -x -p no:cacheprovider -m gpu tests/gpu/test_parity.py -k "fp32-llama or nothing[llama]"'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose results are its own."""
    for name in (".venv", "pretrain", "finetune", "tests", "configs", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "gpu_check.sh", tmp_path / "tools")
    return tmp_path


def check(project: Path, *arguments: str, parts: str = "") -> tuple[int, list[str]]:
    """Exit code and the lines of the table, or of the error."""
    if parts:
        (project / "parts").write_text(parts, encoding="utf-8")
        arguments = ("--parts", "parts", *arguments)
    command = ["bash", "tools/gpu_check.sh", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=280, check=False)
    text = done.stderr if done.returncode == 2 else done.stdout.rpartition("\n\n")[2]
    return done.returncode, text.splitlines()


def test_a_part_that_is_right_is_not_done_again_and_others_are(project: Path) -> None:
    parts = "\n".join(
        [
            """good 30 -c "print('again', file=open('log', 'a'))" """,
            "bad 30 -c \"import sys; sys.exit('error: it is wrong')\"",
            'slow 1 -c "import time; time.sleep(60)"',
        ]
    )
    code, lines = check(project, parts=parts)
    assert code == 1 and [line.split()[:3] for line in lines[:1]] == [["good", "right", lines[0].split()[2]]]
    assert lines[1].startswith("bad          wrong") and lines[1].endswith("error: it is wrong")
    assert lines[2].startswith("slow         not reached")
    assert check(project, parts=parts.replace("it is wrong", "still wrong"))[1][1].endswith("error: still wrong")
    assert (project / "log").read_text() == "again\n"
    assert check(project, "good", parts=parts)[0] == 0
    assert check(project, "slow", parts=parts)[0] == 3


def test_no_time_left_is_not_reached(project: Path) -> None:
    code, lines = check(project, "--seconds", "0", parts="late 5 -c 'pass'")
    assert (code, lines[0].split()) == (3, ["late", "not", "reached"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["modl"], "error: modl: no such part; there are model compiled speed"),
        (["--second", "5"], "error: --second: unknown option; bash tools/gpu_check.sh"),
        (["--seconds", "long"], "error: --seconds needs a whole number, got long"),
        (["--parts", "nowhere"], "error: --parts nowhere: no such file"),
    ],
)
def test_wrong_input_is_one_line(project: Path, arguments: list[str], said: str) -> None:
    code, (line,) = check(project, *arguments)
    assert code == 2 and line.startswith(said)


def test_its_tests_hold_on_a_cpu(project: Path) -> None:
    code, (line,) = check(project, parts=f"model 250 {TESTS}")
    assert code == 0 and "passed" in line
