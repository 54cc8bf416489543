"""The config.json of a published model, as it stands; no torch, so that a wrong folder is told at once."""

from pathlib import Path
from typing import Any

from pretrain.storage import is_there, parse_json, read_file


def read_config(folder: Path) -> dict[str, Any]:
    """The object in a folder's config.json.

    Raises:
        ValueError: there is none, or it is not JSON.
        OSError: it cannot be read.
    """
    path = folder / "config.json"
    if not is_there(path):
        raise ValueError(f"{folder}: no config.json in it; give the folder of a Hugging Face model")
    try:
        values = parse_json(read_file(path))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object")
    return values
