"""A fine-tuned run evaluated at chosen numbers of thoughts and loops: cells of a grid, each a row of
`eval/coconut.jsonl`.

Rows are appended as each cell ends, and cells whose rows are there are passed over, so an evaluation that was stopped
goes on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from finetune.answers.results import Cell, CoconutRow, RowKey, ScoredRun, key_of
from finetune.answers.scoring import Answerer, answer_settings
from finetune.config import ExamplesSection
from finetune.examples.examples import ExampleSet, TextForm, encode_examples, load_examples
from finetune.run.finetuned_model import FinetunedModel
from pretrain.rows.jsonl import JsonLines
from pretrain.run.progress import Progress
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Split


@dataclass(frozen=True, kw_only=True)
class Questions(ExampleSet):
    """Examples to be answered."""

    split: str
    """Name of the split, or of the file."""


def load_questions(
    finetuned: FinetunedModel, *, split: Split = "test", file: Path | None = None, num_examples: int | None = None
) -> Questions:
    """The questions of a split of the run, or of a file.

    Args:
        finetuned: the run.
        split: of its data.
        file: instead of a split; its texts are put together as those that the run was trained on.
        num_examples: first ones. Default: all.

    Raises:
        ValueError: the run has no such split, or the file a malformed row.
        OSError: the file cannot be read.
    """
    section: ExamplesSection = ExamplesSection(path=str(file)) if file else getattr(finetuned.config.data, split)
    if not section.is_given:
        given = [name for name in get_args(Split) if getattr(finetuned.config.data, name).is_given]
        raise ValueError(f"data.{split}: the run has none; it has {', '.join(given)}, or name a file with --data")
    examples, form = load_examples(section, split, finetuned.config.run.seed)
    trained_on = finetuned.config.data.train
    if file and trained_on.task is not None:
        task = make_task(trained_on.task, trained_on.parameters)
        form = TextForm(task.question_end, task.step_end, task.answer_start)
    examples = examples[:num_examples]
    encoded = encode_examples(examples, form, finetuned.trained.tokenizer)
    return Questions(split=file.name if file else split, examples=examples, encoded=encoded, form=form)


def choose_cells(finetuned: FinetunedModel, latents: Sequence[int] | None, loops: Sequence[int] | None) -> list[Cell]:
    """The cells of a grid.

    Args:
        finetuned: the run.
        latents: numbers of thoughts. Default: that of the last stage.
        loops: numbers of loops. Default: that of training.

    Raises:
        ValueError: the run's method has no slots, or its model no loops to vary.
    """
    model = finetuned.trained.saved.model
    default = answer_settings(finetuned.config, finetuned.trained.tokenizer)
    if latents and any(latents) and not finetuned.has_slots:
        raise ValueError(
            f"latents: method {finetuned.config.method.name} of {finetuned.run_dir} "
            "has no slots, so no number of them but 0"
        )
    model.require_loops("num_loops", loops or ())
    return [
        Cell(num_thoughts, num_loops)
        for num_loops in loops or [default.num_loops or model.num_loops]
        for num_thoughts in (latents if latents is not None else [default.num_slots])
    ]


TrackCell = Callable[[Cell, Sequence[Sequence[int]]], Iterable[Sequence[int]]]
"""Wraps the batches of a cell."""


def show_progress(cells: Sequence[Cell], num_batches: int) -> TrackCell:
    """A bar over the batches of all cells, so many a cell; cells that have rows count as done when the next begins."""
    bar = Progress(len(cells) * num_batches)

    def track(cell: Cell, batches: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        before = cells.index(cell) * num_batches
        for number, batch in enumerate(batches, start=1):
            yield batch
            bar.update(before + number, f"{cell.num_thoughts} thoughts, {cell.num_loops} loops")
        if cell == cells[-1]:
            bar.close()

    return track


def evaluate_cells(
    finetuned: FinetunedModel,
    questions: Questions,
    cells: Sequence[Cell],
    file: JsonLines,
    *,
    batch: int,
    track: TrackCell = lambda _, batches: batches,
) -> Iterator[CoconutRow]:
    """The row of every cell, in order: found in the file, or made and appended to it.

    Args:
        finetuned: the run.
        questions: what it is asked.
        cells: at how many thoughts and loops.
        file: of rows, read before the first cell.
        batch: questions answered together; changes no answer.
        track: wraps the batches of a cell that is not there yet; to show progress.

    Raises:
        ValueError: questions and thoughts are longer than the model's table of positions.
    """
    there = {key_of(row): row for row in file.read(CoconutRow)}
    config, trained = finetuned.config, finetuned.trained
    subject = ScoredRun(
        config.run.name, trained.step, finetuned.epoch, finetuned.stage, config.method.name, questions.split
    )
    for cell in cells:
        key = RowKey(config.run.name, trained.step, questions.split, *cell, len(questions.examples))
        if key in there:
            yield there[key]
            continue
        num_slots = cell.num_thoughts if finetuned.has_slots else None
        answerer = Answerer(
            model=trained.model,
            tokenizer=trained.tokenizer,
            settings=answer_settings(config, trained.tokenizer, num_slots=num_slots, num_loops=cell.num_loops),
            batch=batch,
            stop_classifier=finetuned.stop_classifier,
        )
        row = CoconutRow.of(answerer.score(questions, partial(track, cell)), cell, subject)
        file.append([row])
        yield row
