"""What a fine-tuning run starts from: the shape of its model, its tokenizer, its weights, from another run or new."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.config import FinetuneConfig, Precision
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import open_checkpoint, require_tokenizer
from pretrain.config.saved_model import SavedModel, require_vocabulary
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.run.trained_model import tokenizer_file

ANSWERING_PRECISIONS: dict[Precision, Literal["fp32", "bf16"]] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32"}
"""Precision that a model answers in, by that of its training."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    saved: SavedModel
    """The model to train, as its checkpoints will describe it."""
    tokenizer: Tokenizer
    weights: CheckpointReader | None
    """None for random weights."""
    problems: list[str]
    """One line for each newer checkpoint of the other run that is damaged."""


def resolve_origin(config: FinetuneConfig) -> Origin:
    """Resolve what a run starts from.

    Raises:
        ValueError: there is no such run or tokenizer, or they do not fit each other or the ranks.
        OSError: a file cannot be read.
    """
    reader, problems, other = None, [], None
    if config.checkpoint.init_from is not None:
        reader, problems = open_checkpoint(Path(config.checkpoint.init_from))
        other = SavedModel.read(reader.meta)
    model = config.model if other is None else other.model
    if config.train.num_loops is not None:
        model.require_loops("train.num_loops", [config.train.num_loops])
        model = model.at_loops(config.train.num_loops)
    model.require_split(("engine.tensor", config.engine.tensor), ("pipeline stages", 1))
    seq_len = config.train.seq_len or (other.seq_len if other else 0)
    if other is not None and model.positions == "learned" and seq_len != other.seq_len:
        raise ValueError(
            f"train.seq_len={seq_len}: {config.checkpoint.init_from} has learned {other.seq_len} positions; "
            "leave it out"
        )
    name = config.data.tokenizer
    if name is None:
        assert other is not None, "the configuration has been checked"
        name = str(tokenizer_file(Path(config.checkpoint.init_from or ""), other))
    tokenizer = Tokenizer.load(name)
    if reader is not None:
        require_tokenizer(reader, f"data.tokenizer={name}", tokenizer.sha256, ": leave it out")
    require_vocabulary(model, name, tokenizer.vocab_size)
    saved = SavedModel(
        run=config.run.name,
        model=model,
        seq_len=seq_len,
        precision=ANSWERING_PRECISIONS[config.train.precision],
        tokenizer=name,
        max_loops=model.num_loops,
    )
    return Origin(saved=saved, tokenizer=tokenizer, weights=reader, problems=problems)
