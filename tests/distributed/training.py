"""Whole training runs that the ranks of the pool make: the real trainer on a small corpus, with signals raised at
chosen moments."""

import contextlib
import io
import signal
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.command.console import RunFailed
from pretrain.config.layout import check_layout
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.parallel.groups import make_groups
from pretrain.run.signals import StopSignal
from pretrain.trainer import Trainer, open_session
from tests.support.corpus import make_texts, make_tokenizer, write_source


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """A signal to one rank, or a bug in it, at the n-th call (from 0) of a method: "train_step" or "evaluate" of the
    engine, say."""

    rank: int
    method: str
    call: int
    signal: signal.Signals | None
    """None: a bug, with this text:"""
    bug: str = ""
    part: str = "engine"
    """The object of the trainer that has the method."""


def train(config: RunConfig, interruption: Interruption | None = None) -> int:
    """Run the trainer to its end, or until the interruption; returns its exit code."""
    torch.use_deterministic_algorithms(False)
    layout = check_layout(config, dist.get_world_size())
    groups = make_groups(config.parallel, torch.device("cpu"))
    tokenizer = Tokenizer.load(config.data.tokenizer)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignal())
        session = stack.enter_context(open_session(config, layout, groups, tokenizer, signals))
        trainer = stack.enter_context(Trainer(config, session))
        if interruption is not None and interruption.rank == dist.get_rank():
            interrupt(trainer, interruption)
        return trainer.run()


def train_aloud(config: RunConfig, interruption: Interruption | None = None) -> str:
    """Run the trainer; what this rank printed, and the line of its error."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        try:
            train(config, interruption)
        except (ValueError, OSError, RunFailed, RuntimeError) as error:
            printed.write(f"error: {error}\n")
    return printed.getvalue()


def interrupt(trainer: Any, interruption: Interruption) -> None:
    """Put the interruption into a trainer of this rank."""
    part = attrgetter(interruption.part)(trainer)
    method, calls = getattr(part, interruption.method), iter(range(1_000_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == interruption.call:
            if interruption.signal is None:
                raise RuntimeError(interruption.bug)
            signal.raise_signal(interruption.signal)
        return method(*args, **kwargs)

    setattr(part, interruption.method, call)


def write_corpus(folder: Path) -> Path:
    """Put a tokenizer and shards into a folder."""
    write_source(folder / "shards", make_texts(120), 3, make_tokenizer(folder / "tokenizer.model"))
    return folder


def training_config(root: Path, name: str, **changes: dict[str, Any]) -> RunConfig:
    """A run of twelve steps with drawn loop counts on the corpus of `write_corpus`."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"name": name, "root": str(root / "runs")},
        "model": {
            "vocab_size": 320, "hidden_size": 16, "num_attention_heads": 4, "ffn_size": 24, "num_loop_layers": 2,
            "num_loops": 2, "num_prelude_layers": 1, "num_coda_layers": 1,
        },
        "data": {
            "tokenizer": str(root / "tokenizer.model"), "sources": [{"path": str(root / "shards")}], "num_streams": 8,
            "validation_fraction": 0.2, "num_workers": 0,
        },
        "train": {
            "steps": 12, "seq_len": 16, "global_batch": 8, "micro_batch": 2, "precision": "fp32",
            "loop_sampling": {"distribution": "uniform", "minimum": 1, "maximum": 3},
        },
        "optimizer": {"lr": 1e-2, "warmup_steps": 2},
        "validation": {"every": 4, "num_sequences": 5, "num_loops": [1, 2]},
        "checkpoint": {"every": 5},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip
    for section, values in changes.items():
        sections.setdefault(section, {}).update(values)
    return RunConfig.model_validate(sections)
