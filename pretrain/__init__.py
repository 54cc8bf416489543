"""Pretraining of looped language models. `from pretrain import load_run` opens a run in Python (`pretrain/api.py`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.api import LoadedRun as LoadedRun
    from pretrain.api import load_run as load_run


def __getattr__(name: str) -> Any:
    # only when it is asked for: the command lines import this package and do without torch
    if name in ("load_run", "LoadedRun"):
        from pretrain import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
