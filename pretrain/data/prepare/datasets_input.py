"""Data sets of Hugging Face as files: folders that `datasets.save_to_disk` wrote, and names on the Hub.

Both come down to the files that hold their rows, which are then found, cut and read as any other input: in their order,
by many workers, restartable. Of a name, the files are those of the revision of the moment, read where they lie.
"""

from pathlib import Path
from typing import Any

from pretrain.storage import is_there, parse_json, read_file

STATE, DICT = "state.json", "dataset_dict.json"


def saved_files(folder: Path, split: str | None) -> list[str] | None:
    """The .arrow files of a folder of `save_to_disk`, in order; None if it is no such folder.

    Args:
        folder: of a Dataset or a DatasetDict.
        split: which of its data sets.

    Raises:
        ValueError: it has no such split, or several and none is named; it was not written to its end.
        OSError: it cannot be read.
    """
    if not folder.is_dir():
        return None
    if is_there(folder / DICT):
        splits = _read(folder / DICT, "splits")
        if split not in splits:
            raise ValueError(f"{folder}: {_named(split)}: it has {', '.join(map(str, splits))}")
        return saved_files(folder / str(split), None)
    if not is_there(folder / STATE):
        return None
    if split is not None:
        raise ValueError(f"{folder}: holds one data set and no splits: leave out --split {split}")
    if _read(folder / STATE, "_indices_data_files", default=[]):
        raise ValueError(f"{folder}: it picks rows of its files by an index: write it anew with save_to_disk")
    files = [folder / name for name in _file_names(folder)]
    absent = [file for file in files if not is_there(file)]
    if absent:
        raise ValueError(f"{absent[0]}: is not there, and {STATE} names it: copy the folder again")
    return list(map(str, files))


def _file_names(folder: Path) -> list[str]:
    """Of a Dataset, plain names."""
    try:
        names = [file["filename"] for file in _read(folder / STATE, "_data_files")]
        if all(Path(name).name == name for name in names):
            return names
    except (TypeError, KeyError):
        pass
    raise ValueError(f"{folder / STATE}: it does not say which files hold its rows")


def _read(path: Path, key: str, default: Any = None) -> Any:
    """A list in a JSON object of the library."""
    try:
        value = parse_json(read_file(path)).get(key, default)
        if not isinstance(value, list):
            raise ValueError(f"no list {key}")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not as datasets.save_to_disk writes it: {error}") from None
    return value


def _named(split: str | None) -> str:
    return "name a split with --split" if split is None else f"it has no split {split}"


def hub_files(dataset: str, split: str | None) -> list[str]:
    """The files of a data set that the `datasets` library finds by its name, as URLs.

    Args:
        dataset: NAME or NAME:CONFIG; a local folder of files that it reads as a data set, too.
        split: which of its splits.

    Raises:
        ValueError: there is no such data set, configuration or split.
        ConnectionError: an OSError: the Hub does not answer.
        ImportError: the library is not installed.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name, _, config = dataset.partition(":")
    try:
        if not Path(name).is_dir():  # one question that is not asked again and again where there is no network
            HfApi().dataset_info(name, timeout=10)
        files = datasets.load_dataset_builder(name, config or None).config.data_files or {}
    except (ValueError, FileNotFoundError, HfHubHTTPError) as error:
        raise ValueError(f"{dataset}: {_first_line(error)}") from None
    except Exception as error:  # what its libraries raise without a network has no common name
        raise ConnectionError(f"{dataset}: the Hub does not answer: {_first_line(error)}") from None
    found = {str(key): list(map(str, paths)) for key, paths in files.items()}
    if split not in found:
        raise ValueError(f"{dataset}: {_named(split)}: it has {', '.join(found) or 'no files'}")
    return found[split]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
