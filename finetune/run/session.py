"""What surrounds a run that starts from examples, of fine-tuning and of reinforcement learning alike."""

import hashlib
from typing import TYPE_CHECKING

from finetune.examples.examples import ExampleSet
from finetune.run.finetuned_model import identity_of
from finetune.run.origin import Origin
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.layout import Layout
from pretrain.parallel.groups import Groups
from pretrain.run.session import RunSession
from pretrain.run.signals import StopSignal

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig
    from finetune.reinforce.config import GrpoConfig

RESULTS = "coconut.jsonl"
"""Evaluation rows, in `eval/` of the run directory."""


def open_session(
    config: "FinetuneConfig | GrpoConfig", layout: Layout, groups: Groups, origin: Origin, signals: StopSignal
) -> RunSession:
    """The shell of a run."""
    identity = identity_of(config, origin.saved)
    session = RunSession(config, layout, groups, signals, origin.saved, origin.tokenizer, identity, results=RESULTS)
    session.warnings += origin.problems
    return session


def examples_sha256(train: ExampleSet) -> str:
    """What a checkpoint says of the examples that its run learns from."""
    return hashlib.sha256(repr(list(train.encoded)).encode()).hexdigest()


def require_same_examples(reader: CheckpointReader, train: ExampleSet) -> None:
    """Raise a ValueError unless a checkpoint's run was trained on these examples."""
    if reader.meta["examples_sha256"] != examples_sha256(train):
        raise ValueError(
            f"data.train: not the examples that {reader.path.parents[1]} was trained on: choose another run.name"
        )
