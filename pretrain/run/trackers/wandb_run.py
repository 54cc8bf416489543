"""Weights & Biases: a run of the same id for every start of a run directory, offline by default."""

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from pretrain.config.logging import WandbMode
from pretrain.run.trackers.tracker import LoggedConfig
from pretrain.storage import is_there

KNOWN_TO_WANDB = ("online", "offline", "disabled", "dryrun", "run", "shared")
"""Values of WANDB_MODE."""
START_SECONDS = 30
"""How long the start of a run waits for an online wandb server."""


def wandb_mode(configured: WandbMode, say: Callable[[str], None]) -> WandbMode:
    """What is configured, or less if the environment says so (WANDB_MODE, WANDB_DISABLED): somebody switched it off or
    kept it from the network."""
    order = get_args(WandbMode)
    asked: Any = os.environ.get("WANDB_MODE", "").lower().replace("dryrun", "offline")
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        asked = "disabled"
    if asked not in order or order.index(asked) >= order.index(configured):
        return configured
    say(f"wandb is {asked}, as the environment says; logging.wandb={configured}")
    return asked


class WandbRun:
    """The wandb run of a run directory: its id is made once and kept there, so that a resumed run continues it."""

    name = "wandb"

    def __init__(self, config: LoggedConfig, run_dir: Path, mode: WandbMode) -> None:
        try:
            self._run = _start(config, run_dir, mode)
        except Exception:
            self.abandon()
            raise

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        self._run.log(dict(values), step=step)

    def go_back(self, step: int) -> None:
        pass  # it keeps what it has, and takes no number of an earlier step

    def sync(self) -> None:
        pass

    def finish(self) -> None:
        self._run.finish()

    def abandon(self) -> None:
        import wandb

        with contextlib.suppress(Exception):
            wandb.teardown()  # else its exit hook prints a traceback when its service is gone


def _start(config: LoggedConfig, run_dir: Path, mode: WandbMode) -> Any:
    asked = os.environ.get("WANDB_MODE", "")
    if asked not in ("", *KNOWN_TO_WANDB):  # it would say so in six lines
        raise ValueError(f"WANDB_MODE={asked} in the environment: needs online, offline or disabled")
    import wandb

    id_file = run_dir / "wandb" / "run_id.txt"
    if not is_there(id_file):
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(f"{config.run.name}-{secrets.token_hex(4)}\n")
    return wandb.init(
        project=config.logging.wandb_project,
        id=id_file.read_text().strip(),
        name=config.run.name,
        dir=run_dir,
        mode=mode,
        resume="allow" if mode == "online" else None,
        config=config.model_dump(),
        settings=wandb.Settings(silent=True, console="off", init_timeout=START_SECONDS),
    )
