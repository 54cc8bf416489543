"""A fine-tuned run ready to answer: model, tokenizer, configuration and, if one was trained, the stop classifier.

The checkpoint of a fine-tuning run (`finetune/trainer.py`) is one of pretraining (`pretrain/run/trained_model.py`)
whose `meta` also has the fine-tuning configuration; the classifier is under "stop/". `<run>/best` is itself a run
directory, with the best weights of the last stage, and is preferred if it exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.config import FinetuneConfig
from finetune.latent.stop import StopClassifier
from finetune.method.curriculum import stage_at
from finetune.run.best import BEST, answering_run
from finetune.run.counters import last_epoch
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.run import EntryConfig
from pretrain.config.saved_model import SavedModel
from pretrain.model.gpt import LoopedGPT
from pretrain.rows.identity import RunIdentity
from pretrain.run.trained_model import TrainedModel, load_trained_model

POLICY = "policy"
"""Key of `meta` that has, of a run of reinforcement learning, how it answers: a configuration of fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class FinetunedModel:
    trained: TrainedModel
    config: FinetuneConfig
    stop_classifier: StopClassifier | None
    """None where the number of thoughts is fixed."""
    run_dir: Path
    """Where results go: the directory of the run, also for its best checkpoint."""
    epoch: int
    """Epoch that was trained last, from 0."""
    identity: RunIdentity

    @property
    def stage(self) -> int:
        """Stage that was trained last."""
        return stage_at(self.config.curriculum, self.config.chosen_method, self.epoch)

    @property
    def is_rewarded(self) -> bool:
        """Whether it learnt from rewards last."""
        return POLICY in self.trained.checkpoint.meta

    @property
    def has_slots(self) -> bool:
        """Whether thoughts or pauses precede the text, so that their number can be chosen."""
        return self.config.curriculum.slots_of(self.config.chosen_method) is not None


def load_finetuned(run_dir: Path, device: torch.device, *, step: int | None = None) -> FinetunedModel:
    """Load a fine-tuned run from its directory, or from that of its best checkpoint; by default the best step or, if
    there is none, the newest good one.

    Raises:
        ValueError: there is no such run or checkpoint, it is damaged, or it was not fine-tuned.
        OSError: a file cannot be read.
    """
    trained = load_trained_model(answering_run(run_dir, step), device, step=step)
    meta = trained.checkpoint.meta
    config = answering_config(meta)
    if config is None:
        raise ValueError(f"{run_dir} was not fine-tuned: train it with finetune/coconut.py --init {run_dir}")
    return FinetunedModel(
        trained=trained,
        config=config,
        identity=RunIdentity.read(meta) if "identity" in meta else identity_of(config, trained.saved, run_id=None),
        stop_classifier=load_stop_classifier(trained.checkpoint, trained.model),
        run_dir=run_dir.parent if run_dir.name == BEST else run_dir,
        epoch=last_epoch(meta) if POLICY not in meta else config.train.epochs - 1,
    )


def answering_config(meta: Mapping[str, Any]) -> FinetuneConfig | None:
    """How the model of a checkpoint answers, from its `meta`; None if it was not fine-tuned."""
    saved = meta.get("finetune", meta.get(POLICY))
    return None if saved is None else FinetuneConfig.read_saved(saved)


def identity_of(config: EntryConfig, saved: SavedModel, **more: Any) -> RunIdentity:
    """The identity of a run that begins with this configuration and model, with some of its fields replaced."""
    loops = saved.model.num_loops
    return replace(RunIdentity.of(config, trained_loops=(loops, loops)), **more)


def load_stop_classifier(reader: CheckpointReader, model: LoopedGPT) -> StopClassifier | None:
    """The stop classifier of a model, on its device, in its precision; None if none was trained.

    Raises:
        OSError: the checkpoint cannot be read.
    """
    if "stop/weight" not in reader.tensors:
        return None
    classifier = StopClassifier(model.config.hidden_size)
    classifier.load_state_dict({name: reader.read_whole(f"stop/{name}") for name in ("weight", "bias")})
    parameter = next(model.parameters())
    return classifier.to(parameter.device, parameter.dtype)
