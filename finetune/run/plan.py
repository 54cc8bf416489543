"""The dry run of fine-tuning: what a configuration does on a number of ranks, without a process group or GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, get_args

from finetune.config import ExamplesSection, FinetuneConfig, check_layout, ledger, require_last_stage
from finetune.examples.examples import load_examples
from finetune.method.curriculum import cut_at, stage_at
from finetune.run.origin import resolve_origin
from pretrain.config.saved_model import SavedModel
from pretrain.model.count import count_parameters
from pretrain.plan.room import Need
from pretrain.plan.text import Row, model_rows
from pretrain.storage import is_there
from pretrain.tasks.registry import make_task
from pretrain.tasks.task import Split


def plan_rows(config: FinetuneConfig, world_size: int) -> list[Row]:
    """The model and its weights, the ranks, the effective batch, and the epochs of each stage.

    Raises:
        ValueError: the configuration does not fit the ranks, the run it starts from or the tokenizer.
        OSError: a file cannot be read.
    """
    layout = check_layout(config, world_size)
    origin = resolve_origin(config)
    require_last_stage(config)
    sizes = f"tensor {config.engine.tensor} × data {layout.data_parallel}, ZeRO stage {config.engine.zero_stage}"
    return [
        *model_rows(origin.saved.model, count_parameters(origin.saved.model, origin.saved.seq_len)),
        ("weights", "random" if origin.weights is None else f"of {config.checkpoint.init_from}"),
        ("ranks", f"{layout.world_size} = {sizes}"),
        ("step", ledger(config, layout)),
        *_stage_rows(config),
    ]


def model_need(saved: SavedModel, world_size: int) -> Need:
    """The least that weights, gradients and AdamW's state take on one of the ranks, however they are partitioned: 16
    bytes a parameter in any precision, over all ranks."""
    num_parameters = sum(count_parameters(saved.model, saved.seq_len).values())
    what = f"weights, gradients and optimizer state of a model of {num_parameters:,} parameters"
    return Need(what, 16 * num_parameters / world_size)


class SplitSections(Protocol):
    """The data of a run, by the names of `Split`."""

    @property
    def train(self) -> ExamplesSection: ...

    @property
    def validation(self) -> ExamplesSection: ...

    @property
    def test(self) -> ExamplesSection: ...


def describe_data(data: SplitSections) -> Iterator[str]:
    """The examples of each split; files are read, tasks not drawn from.

    Raises:
        ValueError: after the last line, a line for each file that is not there or cannot be what is meant, and each
            task that is none.
        OSError: a file cannot be read.
    """
    problems = []
    for name in get_args(Split):
        section: ExamplesSection = getattr(data, name)
        if section.path is not None and not is_there(Path(section.path)):
            problems.append(f"{section.path}: no such file, of data.{name}.path")
        elif section.is_given:
            try:
                count = _num_examples(section, name)
            except ValueError as error:
                problems.append(str(error))
            else:
                yield f"{name}: {count:,} examples of {section.task or section.path}"
    if problems:
        raise ValueError("\n".join(problems))


def _num_examples(section: ExamplesSection, split: Split) -> int:
    """Raises: as `load_examples` of a file, and as `make_task`."""
    if section.task is None:
        return len(load_examples(section, split, 0)[0])
    make_task(section.task, section.parameters)
    assert section.num_examples is not None, "the configuration has been checked"
    return section.num_examples


def _stage_rows(config: FinetuneConfig) -> Iterator[Row]:
    """For each stage its epochs, and what it removes from a long chain."""
    method, curriculum = config.chosen_method, config.curriculum
    stages = [stage_at(curriculum, method, epoch) for epoch in range(config.train.epochs)]
    unit = f"{method.removal}s"
    what = f"{method.slots.noun}s" if method.slots else "slots"
    for stage in dict.fromkeys(stages):
        first, last = stages.index(stage), len(stages) - 1 - stages[::-1].index(stage)
        cut = cut_at(curriculum, method, stage, 10**6)
        removed = "the whole chain" if cut.removed == 10**6 else f"{cut.removed} {unit}" if cut.removed else "nothing"
        epochs = f"{first:3d} to {last:3d}: stage {stage}, {removed} removed, {cut.num_slots} {what}"
        yield "epochs" if first == 0 else "", epochs
