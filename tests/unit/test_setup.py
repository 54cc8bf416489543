"""The set-up touches no environment but that of its own folder."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_environment_behind_a_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup.sh", tmp_path / "tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    other = tmp_path / "other" / ".venv"
    other.mkdir(parents=True)
    (other / "kept").write_text("packages")
    (tmp_path / ".venv").symlink_to(other)
    command = ["bash", str(tmp_path / "tools" / "setup.sh"), "dev"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1 and "is a link to" in ended.stderr and str(other) in ended.stderr
    assert (other / "kept").read_text() == "packages"
