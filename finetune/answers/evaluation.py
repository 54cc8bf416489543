"""A fine-tuned run evaluated at chosen numbers of thoughts and loops: cells of a grid, each a row of
`eval/coconut.jsonl`.

The row of a cell is appended when it is complete, and cells that have a row are skipped, so a repeated command resumes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from finetune.answers.results import Cell, CoconutRow, ScoredRun, differences, floor_of_examples, inputs_of, key_of
from finetune.answers.scoring import Answerer, answer_settings
from finetune.config import ExamplesSection
from finetune.examples.examples import ExampleSet, encode_examples, form_of, load_examples, require_answers
from finetune.latent.soft import SoftThinking
from finetune.run.finetuned_model import FinetunedModel
from pretrain.checkpoint.counters import Counters
from pretrain.rows.identity import digest
from pretrain.rows.jsonl import JsonLines
from pretrain.run.progress import Progress
from pretrain.tasks.example_file import is_json
from pretrain.tasks.shortcuts import NO_FLOOR, Floor
from pretrain.tasks.task import Split


@dataclass(frozen=True, kw_only=True)
class Questions(ExampleSet):
    split: str
    """Name of the split, or of the file."""
    floor: Floor = NO_FLOOR
    """What their task takes no reasoning for; unknown of a file."""


def load_questions(
    finetuned: FinetunedModel, *, split: Split = "test", file: Path | None = None, num_examples: int | None = None
) -> Questions:
    """The questions of a split of the run, or of a file.

    Args:
        finetuned: the run.
        split: of its data.
        file: instead of a split; its texts get the form of those that the run was trained on, and lines of text are
            split into steps as theirs.
        num_examples: only the first ones. Default: all.

    Raises:
        ValueError: the run has no such split, or a row of the file is malformed.
        OSError: the file cannot be read.
    """
    trained_on = finetuned.config.data.train
    section: ExamplesSection = getattr(finetuned.config.data, split)
    if file:
        separator = None if is_json(file) else trained_on.step_separator
        section = ExamplesSection(path=str(file), step_separator=separator)
    if not section.is_given:
        given = [name for name in get_args(Split) if getattr(finetuned.config.data, name).is_given]
        raise ValueError(f"data.{split}: the run has none; it has {', '.join(given)}, or name a file with --data")
    examples, form = load_examples(section, split, finetuned.config.run.seed, needs_steps=False)
    if file:
        form = form_of(trained_on)
        require_answers(examples, form, str(file))
    examples = examples[:num_examples]
    encoded = encode_examples(examples, form, finetuned.trained.tokenizer, str(file) if file else f"data.{split}")
    name, floor = file.name if file else split, floor_of_examples(section)
    return Questions(split=name, examples=examples, encoded=encoded, form=form, floor=floor)


def choose_cells(
    finetuned: FinetunedModel, latents: Sequence[int] | Literal["all"] | None, loops: Sequence[int] | None, *,
    are_soft: bool = False,
) -> list[Cell]:  # fmt: skip
    """The cells of a grid of thoughts (all = none up to those of the last stage; default: those) and loops (default:
    those of training); soft thoughts are for methods without slots.

    Raises:
        ValueError: the run's method has no slots, or its model no loops to vary.
    """
    model = finetuned.trained.saved.model
    default = answer_settings(finetuned.config, finetuned.trained.tokenizer)
    if are_soft and finetuned.has_slots:
        raise ValueError(
            f"soft-thoughts: method {finetuned.config.method.name} of {finetuned.run_dir} has slots of its own; "
            "they are for a model that reasons in text, such as method.name=cot"
        )
    if latents == "all":
        latents = range(default.num_slots + 1)
    if latents and any(latents) and not are_soft and not finetuned.has_slots:
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


def evaluate_cells(
    finetuned: FinetunedModel, questions: Questions, cells: Sequence[Cell], file: JsonLines, *, batch: int,
    soft: SoftThinking | None = None,
) -> Iterator[CoconutRow]:  # fmt: skip
    """The row of every cell, in order: read from the file, or made and appended to it. Shows progress. The batch size
    changes no answer, but the seconds. A row that is there and does not count is named in `file.problems`.

    Raises:
        ValueError: questions and thoughts are longer than the model's table of positions.
    """
    asked = inputs_of(questions, finetuned.trained.tokenizer.sha256)
    rows = {key_of(row): row for row in file.read(CoconutRow)}  # the later of two is the one that counts
    config, trained, num_examples = finetuned.config, finetuned.trained, len(questions.examples)
    counters = Counters.read(trained.checkpoint.meta)
    subject = ScoredRun(
        config.run.name, trained.step, finetuned.epoch, finetuned.stage, config.method.name, questions.split,
        counters.tokens_seen, counters.train_flops,
    )  # fmt: skip
    num_batches = math.ceil(num_examples / batch)
    bar = Progress(len(cells) * num_batches)
    for number, cell in enumerate(cells):
        used = soft if cell.num_thoughts else None
        inputs = asked if used is None else f"{asked} soft={digest(repr(used))}"
        key = (subject.run, subject.step, subject.split, *cell, num_examples, batch)
        others = differences(rows[key], finetuned.identity, inputs) if key in rows else []
        if others:
            what = f"{questions.split} at {cell.num_thoughts} thoughts and {cell.num_loops} loops"
            file.problems.append(f"{file.path}: the row of {what} differs in {', '.join(others)}: it does not count")
        if key not in rows or others:
            num_slots = cell.num_thoughts if finetuned.has_slots else None
            settings = answer_settings(config, trained.tokenizer, num_slots=num_slots, num_loops=cell.num_loops)
            if used is not None:
                mark = tuple(trained.tokenizer.encode(questions.form.answer_start))
                settings = replace(settings, thinking=used, num_slots=cell.num_thoughts, forced_text=mark)
            answerer = Answerer(
                model=trained.model,
                tokenizer=trained.tokenizer,
                settings=settings,
                batch=batch,
                stop_classifier=finetuned.stop_classifier,
            )
            track = partial(_track, bar, number * num_batches, cell)
            rows[key] = CoconutRow.of_tally(
                answerer.score(questions, track), cell, subject, finetuned.identity, trained.saved.model,
                inputs=inputs, batch=batch, floor=questions.floor,
            )  # fmt: skip
            file.append([rows[key]])
        yield rows[key]
    bar.close()


def soft_thinking(
    finetuned: FinetunedModel, questions: Questions, *, beta: float | None, threshold: float
) -> SoftThinking:
    """Soft Thinking with a model that writes answers in the form of these questions.

    Raises:
        ValueError: a weight or an entropy below 0, or answers have no mark that would end the thoughts.
    """
    if not (beta or 0.0) >= 0 or not threshold >= 0:
        raise ValueError(f"soft-beta={beta} and soft-stop={threshold}: each needs 0 or more")
    tokenizer = finetuned.trained.tokenizer
    mark = tokenizer.encode(questions.form.answer_start)
    if not mark:
        raise ValueError("soft-thoughts: answers of these questions begin with no mark, at which thoughts could end")
    return SoftThinking(vocab_size=tokenizer.vocab_size, end=mark[0], beta=beta, threshold=threshold)


def _track(bar: Progress, done: int, cell: Cell, batches: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    """The batches of a cell, each shown when it is answered."""
    for number, batch in enumerate(batches, start=1):
        yield batch
        bar.update(done + number, f"{cell.num_thoughts} thoughts, {cell.num_loops} loops")
