"""Rows of the evaluation of fine-tuned models, `eval/coconut.jsonl` of a run: how well it answers, at how many thoughts
and loops."""

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from finetune.config import ExamplesSection
from finetune.examples.examples import ExampleSet
from pretrain.model.config import ModelSection
from pretrain.rows.identity import ResultRow, RunIdentity, differing_inputs, digest
from pretrain.tasks.shortcuts import NO_FLOOR, Floor, floor_of

if TYPE_CHECKING:
    from finetune.answers.scoring import Tally  # imports torch, which a table of rows does without


class ScoredRun(NamedTuple):
    """Which run is scored on which examples; the fields are those of `CoconutRow`."""

    run: str
    step: int
    epoch: int
    stage: int
    method: str
    split: str
    tokens_seen: int | None = None
    train_flops: float | None = None


class Cell(NamedTuple):
    """A cell in the grid of evaluations; the fields are those of `CoconutRow`."""

    num_thoughts: int
    num_loops: int


@dataclass(frozen=True, kw_only=True)
class CoconutRow(ResultRow):
    """How well a run answers at one number of thoughts and of loops: a line of `eval/coconut.jsonl`."""

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
    accuracy: float
    """Share of exact matches."""
    stderr: float
    new_tokens: float
    """Mean of latent thoughts and tokens of text."""
    mean_thoughts: float
    """Mean of latent thoughts alone."""
    seconds_per_example: float
    """Of one rank, in batches of `batch`."""
    batch: int | None = None
    """Questions that were answered together; unknown in old rows."""
    flops_per_example: float
    """Mean forward FLOPs, every pass and loop counted."""
    accuracy_by_chain_length: dict[str, float]
    """Accuracy by the number of reasoning steps of the example."""
    examples_by_chain_length: dict[str, int]
    """Examples by the number of reasoning steps."""

    @classmethod
    def of_tally(
        cls, tally: "Tally", cell: Cell, subject: ScoredRun, identity: RunIdentity, model: ModelSection,
        *, inputs: str | None = None, batch: int | None = None, floor: Floor = NO_FLOOR,
    ) -> "CoconutRow":  # fmt: skip
        """The row of a tally of all examples."""
        total, by_length = tally.total, sorted(tally.num_examples.items())
        return cls(
            **vars(identity),
            **subject._asdict(),
            **cell._asdict(),
            num_prelude_layers=model.num_prelude_layers,
            num_loop_layers=model.num_loop_layers,
            num_coda_layers=model.num_coda_layers,
            inputs=inputs,
            batch=batch,
            **floor._asdict(),
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


key_of = attrgetter("run", "step", "split", "num_thoughts", "num_loops", "num_examples", "batch")
"""Rows with the same key have the same answers, and took as long, if nothing of `differences` differs."""


def inputs_of(questions: ExampleSet, tokenizer_sha256: str) -> str:
    """`ResultRow.inputs` of questions: hashes of their text and form, and of the tokenizer."""
    return f"examples={digest(repr((questions.examples, questions.form)))} tokenizer={tokenizer_sha256[:12]}"


def floor_of_examples(section: ExamplesSection) -> Floor:
    """What their task takes no reasoning for; unknown of a file."""
    return floor_of(section.task, section.parameters)


def differences(row: CoconutRow, identity: RunIdentity, inputs: str) -> list[str]:
    """The names in which a row is of another run or of other questions than what is asked for, the unknown included."""
    return differing_inputs(row, row.inputs, identity, inputs)
