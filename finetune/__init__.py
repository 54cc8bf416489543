"""Fine-tuning to reason in latent thoughts. `from finetune import load_run` opens a fine-tuned run in Python
(`finetune/api.py`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api import FinetunedRun as FinetunedRun
    from finetune.api import load_run as load_run


def __getattr__(name: str) -> Any:
    # only when it is asked for: the command lines import this package and do without torch
    if name in ("load_run", "FinetunedRun"):
        from finetune import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
