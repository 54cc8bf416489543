"""The quick start as a whole, on a text that is at hand and in few steps; and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder as a clone has it, whose runs and data are its own."""
    for name in ("tools", "pretrain", "finetune", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def quickstart(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", "tools/quickstart.sh", *words], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_the_quick_start_leaves_what_it_says(clone: Path) -> None:
    text = clone / "my readmes.txt"
    text.write_text(
        "\n\n".join(path.read_text() for path in sorted(ROOT.glob("**/README.md")) if ".venv" not in path.parts)
    )
    words = [
        "--no-setup",
        "--text",
        str(text),
        "train.steps=4",
        "optimizer.warmup_steps=1",
        "validation.num_sequences=8",
    ]
    done = quickstart(clone, *words)
    assert done.returncode == 0, done.stderr
    told = done.stdout[done.stdout.index("\ndone in ") :]
    assert "runs/quickstart_my_readmes" in told and "runs/p_hop_quickstart" in told
    named = re.findall(r"runs/\w+(?:/[\w/.]+)?", told)
    assert len(named) == 7 and all((clone / name).exists() for name in named)
    assert all((clone / name).stat().st_size > 1000 for name in named if name.endswith((".html", ".png")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "nowhere.txt"], "--text 'nowhere.txt': no such file"),
        (["--coconuts"], "'--coconuts': the options are --coconut, --text FILE, --no-setup"),
    ],
)
def test_what_it_does_not_know_it_refuses_before_anything_is_done(clone: Path, words: list[str], said: str) -> None:
    done = quickstart(clone, *words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1
