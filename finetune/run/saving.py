"""What a fine-tuning run keeps on disk: checkpoints to go on from, and the best weights as a run directory of their
own."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune.config import FinetuneConfig
from finetune.engine.engine import FinetuneEngine
from finetune.examples.examples import EncodedExample
from finetune.run.finetuned_model import BEST
from finetune.run.start import Start
from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.names import CHECKPOINTS
from pretrain.checkpoint.store import open_store
from pretrain.checkpoint.verify import newest_good
from pretrain.parallel.groups import gather_lists

FIXED = (("run", "seed"), ("train", "effective_batch"), ("train", "seq_len"), ("train", "num_loops"))
FIXED_SECTIONS = ("model", "data", "method", "curriculum")
"""What may not change when a run goes on."""


@dataclass(kw_only=True)
class Progress:
    """What a run counts; saved with every checkpoint."""

    epoch: int = 0
    """Epochs done, validation included."""
    step_in_epoch: int = 0
    """Steps done of the next one; all of them if only its validation is missing."""
    step: int = 0
    """Steps done in all."""
    skipped: int = 0
    """Of them, those whose update fp16's overflow prevented."""
    best_accuracy: float = -1.0
    """Of a validation in the last stage; below 0 before the first."""
    best_step: int = 0
    """Where it was."""


class Saving:
    """The checkpoints of a run. All ranks make the same calls.

    Args:
        config: of the run.
        start: what it starts from.
        directory: of the run.
        examples: of the training set; a run goes on with the same ones only.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(
        self, config: FinetuneConfig, start: Start, directory: Path, examples: Sequence[EncodedExample]
    ) -> None:
        self._config, self._start, self._directory = config, start, directory
        self._fingerprint = hashlib.sha256(repr(list(examples)).encode()).hexdigest()
        self.store = open_store(
            directory / CHECKPOINTS, keep_last=config.checkpoint.keep_last, keep_every=0, asynchronous=True
        )

    def save(self, engine: FinetuneEngine, progress: Progress) -> None:
        """Start saving everything that a resumed run needs."""
        pieces = engine.pieces()
        if dist.get_rank() == 0:
            pieces.append(Piece.whole("rng/cpu", torch.get_rng_state()))
        self.store.save(progress.step, pieces, {**self._meta(progress), **engine.meta(), "progress": asdict(progress)})

    def save_best(self, engine: FinetuneEngine, progress: Progress) -> None:
        """Save the weights alone, in place of those that were best until now.

        Raises:
            OSError: it failed.
        """
        store = open_store(self._directory / BEST / CHECKPOINTS, keep_last=1, keep_every=0, asynchronous=False)
        store.save(progress.step, engine.weights(), self._meta(progress))
        store.wait()

    def resume(self, engine: FinetuneEngine) -> tuple[Progress, list[str]]:
        """Go on from the newest good checkpoint, or start from the weights of another run, or from random ones.

        Returns:
            The progress, and a line for each bad checkpoint.

        Raises:
            ValueError: no checkpoint is good, or the run was made with other settings or examples.
            OSError: a checkpoint cannot be read.
        """
        folder = self._directory / CHECKPOINTS
        reader, problems = newest_good(
            folder, rank=dist.get_rank(), world_size=dist.get_world_size(), gather=gather_lists
        )
        if reader is None and problems:
            advice = "move the folder away to start from step 0, or choose another run.name"
            raise ValueError("\n".join([*problems, f"{folder}: no good checkpoint is left; {advice}"]))
        if reader is None:
            if self._start.weights is not None:
                engine.load(self._start.weights)
            return Progress(), []
        if "finetune" not in reader.meta:
            raise ValueError(f"{self._directory} is no run of fine-tuning: choose another run.name")
        self._require_same(reader.meta["finetune"])
        if reader.meta["examples_sha256"] != self._fingerprint:
            raise ValueError(
                f"data.train: not the examples that {self._directory} was trained on: choose another run.name"
            )
        engine.load(reader, reader.meta)
        torch.set_rng_state(reader.read_whole("rng/cpu"))
        return Progress(**reader.meta["progress"]), problems

    def _meta(self, progress: Progress) -> dict[str, Any]:
        return {
            "config": self._start.run.model_dump(mode="json"),
            "tokenizer_sha256": self._start.tokenizer.sha256,
            "finetune": self._config.model_dump(mode="json"),
            "examples_sha256": self._fingerprint,
            "epoch": progress.epoch,
        }

    def _require_same(self, saved: dict[str, Any]) -> None:
        now = self._config.model_dump(mode="json")
        whole_sections = [(section, key) for section in FIXED_SECTIONS for key in now[section]]
        for section, key in (*FIXED, *whole_sections):
            if saved[section].get(key) != now[section][key]:
                raise ValueError(
                    f"{section}.{key}={now[section][key]!r}, "
                    f"but {self._directory} was trained with {saved[section].get(key)!r}: "
                    "choose another run.name or the old value"
                )
