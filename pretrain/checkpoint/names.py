"""Names of checkpoints and of what is in them, and which folders are checkpoints by their name; no torch.

`step-00001000` is a checkpoint. What a save leaves while it lasts, or where it failed, carries another name
(`step-00001000.tmp-...`, `step-00001000.failed-...`) that nobody takes for one; `step-00001000.replaced` is the one
that a save of the same step was about to replace.
"""

import re
from pathlib import Path

from pretrain.storage import names_in

CHECKPOINTS = "checkpoints"
"""Folder of checkpoints in a run directory."""
CONTENTS_NAME = "checkpoint.json"
_STEP_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")


def step_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def parse_step(name: str) -> int | None:
    """The step of a checkpoint folder, or None for any other name, unfinished saves (`.tmp-`) among them."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def rank_name(rank: int) -> str:
    """The tensor file of a rank."""
    return f"rank-{rank:05d}.safetensors"


def list_checkpoints(directory: Path | str) -> list[Path]:
    """The checkpoint folders in `directory`, newest step first, unverified; empty when there is no such directory.

    A `.replaced` folder comes after the one without.

    Raises:
        OSError: the directory cannot be listed.
    """
    found = [Path(directory, name) for name in names_in(Path(directory)) or () if parse_step(name) is not None]
    return sorted(found, key=lambda path: (-(parse_step(path.name) or 0), path.name))


def require_checkpoint(run_dir: Path, step: int | None = None) -> Path:
    """The folder of a checkpoint of a run, unverified; by default the newest.

    Raises:
        ValueError: there is no such run or checkpoint.
        OSError: the directory cannot be listed.
    """
    folder = run_dir / CHECKPOINTS
    paths = list_checkpoints(folder)
    if not paths:
        raise ValueError(f"{run_dir}: no checkpoints there: give the directory of a run, such as runs/quickstart")
    if step is None:
        return paths[0]
    path = folder / step_name(step)
    if path not in paths:
        raise ValueError(f"{folder}: no checkpoint of step {step}; there are {', '.join(each.name for each in paths)}")
    return path


def newest_step(run_dir: Path) -> int:
    """The step of a run's newest checkpoint, by names alone; 0 without any: what a resumed run starts from.

    Raises:
        OSError: the run directory cannot be listed.
    """
    return max((parse_step(path.name) or 0 for path in list_checkpoints(run_dir / CHECKPOINTS)), default=0)
