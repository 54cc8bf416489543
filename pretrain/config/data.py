"""Where the data of a pretraining run comes from: folders of shards and tasks, how they are mixed, and their order."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from pretrain.schema.section import PathText, Section


class SourceSection(Section):
    path: PathText | None = None
    """Folder of shards with its manifest.jsonl, as tools/prepare_data.py writes it."""
    task: str | None = None
    """Instead of a folder: name of a reasoning task (pretrain/tasks), whose examples are made as they are needed, one a
    sequence."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Difficulty of the task; its file documents the keys."""
    supervise: Literal["answer", "steps", "prefixes"] = "answer"
    """Loss on the answer, on steps and answer, or on the answer to every prefix of the question (tasks that have them:
    p_hop, group_composition, prosqa_roots, ...)."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the samples drawn from this source, relative to the others; with data.temperature, times its tokens to
    the power of 1 / temperature."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Budget: at most so many tokens of training are read from it, then its share goes to the others. Default: no
    limit."""
    max_epochs: int | None = Field(default=None, gt=0)
    """The same in passes over its documents; a sequence in which the last one ends is filled up. Default: no limit."""

    @property
    def has_budget(self) -> bool:
        return self.max_tokens is not None or self.max_epochs is not None

    def without_effect(self) -> dict[str, str]:
        if self.path is None:
            return {"max_epochs": f"task={self.task}"}
        return dict.fromkeys(("parameters", "supervise"), f"path={self.path}")

    @model_validator(mode="after")
    def _check_kind(self) -> "SourceSection":
        if (self.path is None) == (self.task is None):
            raise ValueError("data.sources: each names either a path, a folder of shards, or a task")
        return self


class DataSection(Section):
    tokenizer: PathText = "data/tokenizer.model"
    """Tokenizer file of tools/train_tokenizer.py or convert_checkpoint.py; or "symbols:0123456789+=", one id a
    character, for tasks."""
    sources: tuple[SourceSection, ...] = ()
    """Folders of shards and tasks, with their weights."""
    temperature: float | None = Field(default=None, ge=1)
    """T: sources are drawn by weight · tokens^(1/T). 1: by their size; the larger T, the more equal. Folders of tokens
    alone. Default: by weight."""
    num_streams: int = Field(default=64, gt=0)
    """S: logical streams of the global sample order, a multiple of the data-parallel size. Changing it changes the
    order."""
    cut_documents: bool = True
    """Streams share out the pieces of a document that is long for them. False: every stream reads it from its start, as
    runs did that were begun without this key. Without such documents it changes nothing."""
    num_workers: int = Field(default=1, ge=0)
    """Prefetching processes per data-parallel replica, of which one rank reads; 0 reads in that rank itself. Does not
    change the order."""
    prefetch_batches: int = Field(default=4, gt=0)
    """Global batches that each worker prepares ahead."""
    document_mask: bool = False
    """Attention within documents only, at the cost of each alone; positions counted from each document's start."""
    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of documents held out for validation, chosen by a hash of their text."""
    on_damage: Literal["stop", "skip"] = "stop"
    """A damaged shard or document stops the run, or is named, counted and skipped."""

    @model_validator(mode="after")
    def _check_mixture(self) -> "DataSection":
        if self.sources and all(source.has_budget for source in self.sources):
            raise ValueError(
                "data.sources: each has a budget, max_tokens or max_epochs: leave one without, which is read on when "
                "the others are used up"
            )
        tasks = [source.task for source in self.sources if source.task is not None]
        if tasks and self.temperature is not None:
            raise ValueError(
                f"data.temperature weighs folders by their tokens, and task {tasks[0]} has no end: give weights"
            )
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> "DataSection":
        if math.isinf(sum(source.weight for source in self.sources)):
            raise ValueError("data.sources: the weights add up to more than a number can hold: make them smaller")
        return self
