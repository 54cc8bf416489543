"""The tensors of a published model's folder: safetensors, or torch's own files read without unpickling objects."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.storage import is_there, parse_json, read_file, require_content

_FILES = ("model.safetensors", "pytorch_model.bin")


class PublishedWeights:
    """Tensors by name, read on request, from one file or from several that an index lists.

    Raises:
        ValueError: the folder has no weights, or a file, which is named, is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._files = self._list()

    @property
    def names(self) -> Iterable[str]:
        return self._files.keys()

    def read(self, name: str) -> Tensor:
        """The stored tensor, on the CPU."""
        file = self._file(self._files[name])
        return file.get_tensor(name) if hasattr(file, "get_tensor") else file[name]

    def _list(self) -> dict[str, str]:
        """File name of each tensor."""
        for name in _FILES:
            index = self.folder / f"{name}.index.json"
            if is_there(index):
                try:
                    files: dict[str, str] = parse_json(read_file(index))["weight_map"]
                    named = set(files.values())
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(f"{index}: not an index of weights ({error})") from None
                for file in named:
                    if not isinstance(file, str) or Path(file).name != file:
                        raise ValueError(f"{index}: names a file {file!r} outside its folder")
                return files
            if is_there(self.folder / name):
                opened = self._file(name)
                return dict.fromkeys(opened.keys(), name)
        raise ValueError(f"{self.folder}: no weights there: it needs {' or '.join(_FILES)}, or the index of several")

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                with path.open("rb") as file:
                    require_content(path, file.read(64))
            except FileNotFoundError:
                raise ValueError(f"{path}: this part of the weights is missing") from None
            try:
                if name.endswith(".safetensors"):
                    self._open[name] = safe_open(path, framework="pt")
                else:
                    self._open[name] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
                raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
            except Exception as error:  # errors of torch's unpickler have no narrower base class
                raise ValueError(
                    f"{path}: holds more than tensors, which is not read ({type(error).__name__})"
                ) from None
        return self._open[name]
