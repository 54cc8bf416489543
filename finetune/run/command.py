"""From the command line to a `FinetuneConfig`: files, overrides and errors as in pretraining
(`pretrain/config/read.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from pretrain.config.help_page import config_help
from pretrain.config.read import COMMAND_LINE, ConfigParser, read_config

FULL, SMALL = Path("configs/finetune/prosqa_coconut.yaml"), Path("configs/finetune/prosqa_coconut_small.yaml")
"""What runs without --config: on a GPU, and without one."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line asks for."""

    config: FinetuneConfig
    dry_run: bool
    """Print the plan and exit."""
    world_size: int | None
    """Ranks to plan for. Default: what the launcher says."""


def parse(argv: Sequence[str]) -> Command:
    """Read the command line, without the program's name. `--help` prints and exits.

    Raises:
        ValueError: one line for each problem: `file:line: key: what is wrong, got value`.
        OSError: a configuration file cannot be read.
    """
    parser = ConfigParser(help_text)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--init")
    # DeepSpeed's launcher adds it; the environment says the same
    parser.add_argument("--local_rank", "--local-rank", type=int)
    options = parser.read(argv)
    overrides = list(options.overrides)
    if options.init is not None:
        if any(override.startswith("checkpoint.init_from=") for override in overrides):
            raise ValueError(f"{COMMAND_LINE}: --init and checkpoint.init_from= say the same: give one")
        overrides.append(f"checkpoint.init_from={options.init}")
    path = options.config or (FULL if _has_gpu() else SMALL)
    return Command(
        config=read_config(path, FinetuneConfig, overrides), dry_run=options.dry_run, world_size=options.world_size
    )


def _has_gpu() -> bool:
    import torch  # only now: help and errors are quick

    return torch.cuda.is_available()


def help_text(columns: int) -> str:
    """The page of `deepspeed finetune/coconut.py --help`."""
    options = {
        "--config FILE": f"YAML file; its `base: other.yaml` is read before it. Default: {FULL}, without a GPU {SMALL}",
        "--init DIR": "run whose weights training starts from; the same as checkpoint.init_from=DIR",
        "KEY=VALUE": "replaces a value of the file: train.epochs=10, method.name=cot",
        "--dry-run": "print configuration, effective batch and stages, and exit",
        "--world-size N": "ranks that --dry-run plans for. Default: what the launcher sets, else engine.tensor",
        "--help": "this page",
    }
    usage = "deepspeed finetune/coconut.py [--config FILE] [--init DIR] [KEY=VALUE ...] [--dry-run] [--world-size N] "
    usage += "[--help]"
    launch = "Under deepspeed, torchrun or srun the same command runs on all their ranks; alone, with python, on one."
    title = "Fine-tune a model to reason in latent thoughts: Coconut, and the methods it is compared with."
    return config_help(title, usage, options, launch, FinetuneConfig, columns)
