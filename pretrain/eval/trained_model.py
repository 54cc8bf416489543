"""The model of a run directory, ready to score or to generate with, on one device."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint.format import step_name
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.verify import list_checkpoints, newest_good, verify
from pretrain.config import RunConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model as a checkpoint has it."""

    model: LoopedGPT
    config: RunConfig
    """Of the training that made the checkpoint."""
    tokenizer: Tokenizer
    step: int
    """Steps done when it was saved."""
    problems: list[str]
    """A line for each newer checkpoint that is bad."""


def load_trained_model(run_dir: Path, device: torch.device, *, step: int | None = None, tokenizer: Path | None = None) -> TrainedModel:
    """Load a run's model in the precision it was trained in.

    Args:
        run_dir: directory of the run.
        device: where the model goes.
        step: of the checkpoint. Default: the newest good one.
        tokenizer: its file. Default: the one the run was trained with, relative to the working directory.

    Raises:
        ValueError: there is no such run or checkpoint, or it is damaged.
        OSError: a file cannot be read.
    """
    reader, problems = _open_checkpoint(run_dir, step)
    config = RunConfig.model_validate(reader.meta["config"])
    tokenizer_file = tokenizer or Path(config.data.tokenizer)
    text = Tokenizer.load(tokenizer_file)
    if text.sha256 != reader.meta["tokenizer_sha256"]:
        raise ValueError(f"{tokenizer_file} is not the tokenizer that {run_dir} was trained with: give it with --tokenizer")
    model = LoopedGPT(config.model, config.train.seq_len).to(device, DTYPES[config.train.precision])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.read_whole(f"weights/{name}"))
    return TrainedModel(model=model.eval(), config=config, tokenizer=text, step=reader.step, problems=problems)


def _open_checkpoint(run_dir: Path, step: int | None) -> tuple[CheckpointReader, list[str]]:
    folder = run_dir / "checkpoints"
    names = [path.name for path in list_checkpoints(folder)]
    if not names:
        raise ValueError(f"{run_dir}: no checkpoints there; --run takes the directory of a run, such as runs/quickstart")
    if step is None:
        reader, problems = newest_good(folder)
        if reader is None:
            raise ValueError("\n".join(problems))
        return reader, problems
    path = folder / step_name(step)
    if path.name not in names:
        raise ValueError(f"{folder}: no checkpoint of step {step}; there are {', '.join(names)}")
    found = verify(path)
    if found:
        raise ValueError(f"checkpoint {path} is bad: {found[0]}")
    return CheckpointReader(path), []
