"""The model of a run directory, and its tokenizer, ready to score or to generate with, on one device."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import open_checkpoint, require_tokenizer
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.run.directory import tokenizer_copy
from pretrain.storage import is_there


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model as a checkpoint has it."""

    model: LoopedGPT
    saved: SavedModel
    """What the checkpoint says of it."""
    tokenizer: Tokenizer
    step: int
    """Steps done when it was saved."""
    checkpoint: CheckpointReader
    """What else was saved."""
    problems: list[str]
    """A line for each newer checkpoint that is bad."""


def load_trained_model(
    run_dir: Path, device: torch.device, *, step: int | None = None, tokenizer: Path | None = None
) -> TrainedModel:
    """Load a run's model in the precision it was trained in.

    Args:
        run_dir: directory of the run.
        device: where the model goes.
        step: of the checkpoint. Default: the newest good one.
        tokenizer: its file. Default: the run's.

    Raises:
        ValueError: there is no such run or checkpoint, or it is damaged.
        OSError: a file cannot be read.
    """
    reader, problems = open_checkpoint(run_dir, step)
    saved = SavedModel.read(reader.meta)
    text = load_tokenizer(tokenizer or tokenizer_file(run_dir, saved), reader)
    model = LoopedGPT(saved.model, saved.seq_len).to(device, DTYPES[saved.precision])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(reader.read_whole(f"weights/{name}"))
    return TrainedModel(
        model=model.eval(), saved=saved, tokenizer=text, step=reader.step, checkpoint=reader, problems=problems
    )


def tokenizer_file(run_dir: Path, saved: SavedModel) -> Path:
    """The tokenizer of a run: the copy in its directory, or the file that it was trained with if that copy is gone."""
    copy = tokenizer_copy(run_dir, saved.tokenizer)
    return copy if is_there(copy) else Path(saved.tokenizer)


def load_tokenizer(path: Path, reader: CheckpointReader) -> Tokenizer:
    """Load the tokenizer of a checkpoint's run.

    Raises:
        ValueError: there is no such file, or it is of another tokenizer.
    """
    tokenizer = Tokenizer.load(path)
    require_tokenizer(reader, path, tokenizer.sha256)
    return tokenizer
