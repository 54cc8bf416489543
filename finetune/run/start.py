"""What a fine-tuning run starts from: the shape of its model, its tokenizer and its weights, of another run or from
scratch."""

from dataclasses import dataclass
from pathlib import Path

from finetune.config import FinetuneConfig
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.run import DataSection, ParallelSection, RunConfig, TrainSection
from pretrain.data.tokenizers.tokenizer import Tokenizer, read_tokenizer
from pretrain.run.trained_model import tokenizer_file


@dataclass(frozen=True, kw_only=True)
class Start:
    run: RunConfig
    """Model, tokenizer, sequence length and precision as a run of pretraining has them: every tool of the project reads
    them so."""
    tokenizer: Tokenizer
    tokenizer_bytes: bytes
    weights: CheckpointReader | None
    """None: random weights."""
    problems: list[str]
    """A line for each newer checkpoint of the other run that is bad."""


def start_of(config: FinetuneConfig) -> Start:
    """Find out what a run starts from.

    Raises:
        ValueError: there is no such run or tokenizer, or they do not fit each other.
        OSError: a file cannot be read.
    """
    reader, problems, saved = None, [], None
    if config.checkpoint.init_from is not None:
        reader, problems = open_checkpoint(Path(config.checkpoint.init_from))
        saved = RunConfig.model_validate(reader.meta["config"])
    model = config.model if saved is None else saved.model
    if config.train.num_loops is not None:
        model.require_loops("train.num_loops", [config.train.num_loops])
        model = model.model_copy(update={"num_loops": config.train.num_loops})
    seq_len = config.train.seq_len or (saved.train.seq_len if saved else 0)
    if saved is not None and model.positions == "learned" and seq_len != saved.train.seq_len:
        learned = saved.train.seq_len
        raise ValueError(
            f"train.seq_len={seq_len}: {config.checkpoint.init_from} has learned {learned} positions; leave it out"
        )
    name = config.data.tokenizer
    if name is None:
        assert saved is not None, "the configuration has been checked"
        name = str(tokenizer_file(Path(config.checkpoint.init_from or ""), saved))
    tokenizer = Tokenizer.load(name)
    if reader is not None and tokenizer.sha256 != reader.meta["tokenizer_sha256"]:
        raise ValueError(f"data.tokenizer={name} is not the tokenizer of {config.checkpoint.init_from}: leave it out")
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{name} has {tokenizer.vocab_size} tokens, more than model.vocab_size={model.vocab_size}: raise the latter"
        )
    run = RunConfig(
        run=config.run,
        model=model,
        parallel=ParallelSection(tensor=config.engine.tensor),
        data=DataSection(tokenizer=name),
        train=TrainSection(
            seq_len=seq_len,
            precision="bf16" if config.train.precision == "bf16" else "fp32",
            deterministic=config.train.deterministic,
        ),
    )
    return Start(run=run, tokenizer=tokenizer, tokenizer_bytes=read_tokenizer(name), weights=reader, problems=problems)
