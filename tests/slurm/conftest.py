"""One Slurm for the session, and a project folder that it works in: the code of this checkout, with a site.env of its
own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing_programs

ROOT = Path(__file__).parents[2]
SITE = f"""
PYTHON={sys.executable}
[[ -z ${{FAULT:-}} ]] || CONTAINER=("$PYTHON" {ROOT}/tests/slurm/faulty.py)
MAX_REQUEUES=${{TEST_MAX_REQUEUES:-3}}
MIN_FREE_GIB=0
GPU_CHECK=(bash show_gpus.sh)
"""
SHOW_GPUS = """
[[ $SLURMD_NODENAME != "$(cat broken_node 2>/dev/null)" ]] && echo "GPU 0: of $SLURMD_NODENAME"
"""
"""Stands for nvidia-smi: no GPU is left on the node that the file names."""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is submitted from: a git checkout with an uncommitted change."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pretrain", "finetune", "tools", "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("site.env"))
    (folder / "slurm" / "site.env").write_text(SITE)
    (folder / "show_gpus.sh").write_text(SHOW_GPUS)
    (folder / "notes.txt").write_text("committed\n")
    (folder / ".gitignore").write_text("/.venv\n/runs/\n*.out\n")
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    (folder / "notes.txt").write_text("changed since\n")
    (folder / "new.py").write_text("value = 1\n")
    return folder


@pytest.fixture(scope="session")
def cluster(project: Path) -> Iterator[Cluster]:
    missing = missing_programs()
    if missing:
        reason = f"no Slurm here: {', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
        if os.environ.get("REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)  # munge wants its socket where all may go, which pytest's folders are not
        running = Cluster(Path(folder), project)
        yield running
        running.stop()
