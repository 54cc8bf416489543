"""The shipped configurations, for tests about all of them."""

from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from finetune.reinforce.config import GrpoConfig
from pretrain.config.run import RunConfig


def schema_of(path: Path) -> Any:
    """Of a file in a folder of configs/, but for the sweeps."""
    if path.parent.name != "finetune":
        return RunConfig
    return GrpoConfig if path.stem.endswith("_grpo") else FinetuneConfig
