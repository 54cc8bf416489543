"""The harness's lists of tasks, each read once: its own, ours over local files, and those of a user's folder."""

from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

OFFLINE_FOLDER = Path(__file__).parent / "tasks"


@cache
def offline_tasks(data_dir: Path | None) -> TaskManager:
    """Our forms of tasks over files of a data directory."""
    return TaskManager(include_path=OFFLINE_FOLDER, include_defaults=False, metadata=_metadata(data_dir))


@cache
def network_tasks() -> TaskManager:
    """The harness's own."""
    return TaskManager()


@cache
def folder_tasks(folder: Path, data_dir: Path | None) -> TaskManager:
    """Those of a user's folder, YAML with Python beside it; their metadata has data_dir, if there is one.

    Raises:
        ValueError: there is no such folder, it has no task, or a file in it is malformed.
    """
    if not folder.is_dir():
        raise ValueError(f"include_path {folder}: no such folder")
    try:
        manager = TaskManager(include_path=folder, include_defaults=False, metadata=_metadata(data_dir))
    except Exception as error:
        raise ValueError(f"include_path {folder}: {' '.join(str(error).split())}") from None
    if not manager.all_tasks:
        raise ValueError(f"include_path {folder}: no task there: a .yaml file with the key task")
    return manager


def _metadata(data_dir: Path | None) -> dict[str, dict[str, Any] | str]:
    return {} if data_dir is None else {"data_dir": str(data_dir)}
