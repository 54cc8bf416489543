"""The run directory: what a run was (`config.yaml`, `environment.txt`, its tokenizer), written beside what it did
(`checkpoints/`, ...).

`state` is a line that says how the run stands: running, complete, `stopped by SIGUSR1` (the same command continues it)
or failed. A run that is stopped ends with exit code 0, as one that is complete: launchers take any other code for a
crash and kill the ranks that are still at work. Whoever restarts runs, such as the batch scripts of slurm/, reads the
state instead.
"""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pretrain.config.read import Dumpable, resolved_yaml
from pretrain.config.run import SYMBOLS_PREFIX
from pretrain.storage import read_file, write_atomically

_PACKAGES = (
    "torch",
    "megatron-core",
    "deepspeed",
    "numpy",
    "sentencepiece",
    "webdataset",
    "wandb",
    "safetensors",
    "pydantic",
)


def tokenizer_copy(run_dir: Path, tokenizer: str) -> Path:
    """Where a run keeps its copy of the tokenizer that it was given by this name."""
    return run_dir / f"tokenizer{'.json' if tokenizer.startswith(SYMBOLS_PREFIX) else Path(tokenizer).suffix}"


def describe_run(
    folder: Path, config: Dumpable, *, ranks: str, device: str, tokenizer: bytes, tokenizer_path: Path
) -> None:
    """Write the resolved configuration, the environment and a copy of the tokenizer into the run directory, which is
    made if absent.

    Args:
        folder: the run directory.
        config: the resolved configuration.
        ranks: how many there are, and how they split the work.
        device: what a rank runs on.
        tokenizer: bytes of the tokenizer.
        tokenizer_path: of its copy: `tokenizer_copy`.

    Raises:
        OSError: the directory cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changes = " with uncommitted changes" if _git("status", "--porcelain") else ""
    lines = [
        f"git commit: {_git('rev-parse', 'HEAD') or 'not a git checkout'}{changes}",
        f"python: {platform.python_version()} on {platform.platform()}",
        *(f"{name}: {_version(name)}" for name in _PACKAGES),
        f"ranks: {ranks}",
        f"device: {device}, {os.cpu_count()} processors",
    ]
    write_atomically(folder / "config.yaml", resolved_yaml(config).encode())
    write_atomically(folder / "environment.txt", "\n".join([*lines, ""]).encode())
    write_atomically(tokenizer_path, tokenizer)


def write_state(folder: Path, state: str) -> None:
    """Say how a run stands, in file `state` of its directory: `running`, `complete`, `stopped by SIGUSR1`, `failed`.

    Raises:
        OSError: the directory cannot be written.
    """
    write_atomically(folder / "state", f"{state}\n".encode())


def read_state(folder: Path) -> str:
    """What `write_state` said; empty where it cannot be read."""
    try:
        return read_file(folder / "state").decode("utf-8", errors="replace").rstrip("\n")
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    try:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
