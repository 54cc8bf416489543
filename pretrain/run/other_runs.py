"""The other runs that a configuration names, the weights it starts from and its teacher: what the dry run says of them,
and what plans need.

Their checkpoints are looked at, not read: whether the files are whole is checked when they are, by the run.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, require_checkpoint
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import require_tokenizer
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.parallel.teacher import require_teacher
from pretrain.run.resume import compare_models


def describe(config: RunConfig) -> Iterator[str]:
    """A line for each run, and one for each field in which the model differs from the one that its weights are of.

    Raises:
        ValueError: after the last line, a line for each thing that training would refuse.
        OSError: the storage failed.
    """
    problems: list[str] = []
    for key, run_dir in _named(config):
        try:
            reader = CheckpointReader(require_checkpoint(Path(run_dir)))
            notes = []
            if key == "train.teacher.run":
                require_teacher(config, SavedModel.read(reader.meta))
            else:
                notes = compare_models(reader, config.model, config.train.seq_len)
            name = config.data.tokenizer
            require_tokenizer(reader, name, Tokenizer.load(name).sha256, ": use the one in there")
            yield f"{key}: {reader.path}"
            yield from notes
        except ValueError as error:
            problems += [line if key in line else f"{key}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ValueError("\n".join(problems))


def saved_teacher(config: RunConfig) -> SavedModel | None:
    """The model of train.teacher; None without one. All checkpoints of its run have the same, so of damaged ones an
    older one says it.

    Raises:
        ValueError: there is no such run, or no checkpoint says what its model is.
        OSError: the storage failed.
    """
    if config.train.teacher.run is None:
        return None
    try:
        newest = require_checkpoint(Path(config.train.teacher.run))
        for path in list_checkpoints(newest.parent):
            with contextlib.suppress(ValueError):
                return SavedModel.read(CheckpointReader(path).meta)
        return SavedModel.read(CheckpointReader(newest).meta)
    except ValueError as error:
        raise ValueError(f"train.teacher.run: {error}") from None


def _named(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Key and directory of each run whose checkpoint training would open: one that is resumed has weights."""
    if config.checkpoint.init_from is not None and not list_checkpoints(config.run.directory / CHECKPOINTS):
        yield "checkpoint.init_from", config.checkpoint.init_from
    if config.train.teacher.run is not None:
        yield "train.teacher.run", config.train.teacher.run
