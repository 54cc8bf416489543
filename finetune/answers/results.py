"""Rows of the evaluation of fine-tuned models, `eval/coconut.jsonl` of a run: how well it answers, at how many thoughts
and loops."""

import hashlib
import json
import math
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from finetune.config import FinetuneConfig

if TYPE_CHECKING:
    from finetune.answers.scoring import Tally  # imports torch, which a table of rows does without


class ScoredRun(NamedTuple):
    """Which run is scored on which examples; the fields are those of `CoconutRow`."""

    run: str
    variant: str
    step: int
    epoch: int
    stage: int
    method: str
    split: str

    @classmethod
    def of(cls, config: FinetuneConfig, *, step: int, epoch: int, stage: int, split: str) -> "ScoredRun":
        settings = json.dumps(config.model_dump(mode="json", exclude={"run", "logging"}), sort_keys=True)
        variant = hashlib.sha256(settings.encode()).hexdigest()[:12]
        return cls(config.run.name, variant, step, epoch, stage, config.method.name, split)


class Cell(NamedTuple):
    """A cell in the grid of evaluations; the fields are those of `CoconutRow`."""

    num_thoughts: int
    num_loops: int


@dataclass(frozen=True, kw_only=True)
class CoconutRow:
    """How well a run answers at one number of thoughts and of loops: a line of `eval/coconut.jsonl`."""

    run: str
    """Name of the run."""
    step: int
    """Optimizer steps done."""
    epoch: int
    """Epoch that was trained last, from 0."""
    stage: int
    """Stage of the curriculum that was trained last."""
    method: str
    """Name of the method."""
    split: str
    """Examples: train, validation, test, or the name of a file."""
    num_thoughts: int
    """k: slots of thoughts or pauses; with a classifier, at most."""
    num_loops: int
    """L the model was run with."""
    accuracy: float
    """Share of exact matches."""
    stderr: float
    """Its standard error over examples."""
    num_examples: int
    """Examples scored."""
    new_tokens: float
    """Mean of latent thoughts and tokens of text."""
    mean_thoughts: float
    """Mean of latent thoughts alone."""
    seconds_per_example: float
    """Of one rank, in the batches that were chosen."""
    flops_per_example: float
    """Mean forward FLOPs, every pass and loop counted."""
    accuracy_by_chain_length: dict[str, float]
    """Accuracy by the number of reasoning steps of the example."""
    examples_by_chain_length: dict[str, int]
    """Examples by the number of reasoning steps."""
    variant: str = ""
    """Hash of the configuration without its sections run and logging: runs that differ in name and seed alone have the
    same one. Empty in rows from before it was kept."""
    inputs: str | None = None
    """What was asked, as in `EvaluationRow.inputs`; unknown in rows of a training run and in old ones."""

    @classmethod
    def of(cls, tally: "Tally", cell: Cell, subject: ScoredRun) -> "CoconutRow":
        """The row of a tally of all examples."""
        total, by_length = tally.total, sorted(tally.num_examples.items())
        return cls(
            **subject._asdict(),
            **cell._asdict(),
            accuracy=tally.accuracy,
            stderr=standard_error(tally.right.total(), total),
            num_examples=total,
            new_tokens=(tally.num_thoughts + tally.num_text_tokens) / total,
            mean_thoughts=tally.num_thoughts / total,
            seconds_per_example=tally.seconds / total,
            flops_per_example=tally.flops / total,
            accuracy_by_chain_length={str(length): tally.right[length] / count for length, count in by_length},
            examples_by_chain_length={str(length): count for length, count in by_length},
        )


def standard_error(num_right: int, num_examples: int) -> float:
    """Standard error of a share: half of Wilson's interval of one deviation, which is not 0 where all or none are right
    (Wilson 1927)."""
    share, size = num_right / num_examples, num_examples
    return math.sqrt(share * (1 - share) / size + 1 / (4 * size**2)) / (1 + 1 / size)


key_of = attrgetter("run", "step", "split", "num_thoughts", "num_loops", "num_examples")
"""Rows with the same key have the same answers, if their inputs are alike."""
