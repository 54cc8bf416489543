"""Row 7: the user's data can be read.

Of each folder of shards: the manifest against its hash, every index against its hash, every shard opened and its size
compared, and some documents of each read, checked against their CRC-32 and framed; the documents of each split that is
used. Of each task: some examples of each split made, framed and solved.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pretrain.config.data import SourceSection
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import require_vocabulary
from pretrain.data.manifest import Manifest, ShardRow
from pretrain.data.shards import check_index, open_index, read_document
from pretrain.data.stream.cursor import Split
from pretrain.data.stream.framing import frame_document
from pretrain.data.stream.loader import Loader
from pretrain.data.stream.task_source import TaskSource
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.run import other_runs
from pretrain.storage import naming
from pretrain.verification.job import PlannedJob, Tick

NUM_SAMPLED = 8
"""Documents of a shard, or examples of a task and split, that are read."""
BUDGET_S = 30.0
"""Longest time for the shards of a source; how many were not reached is said."""
NUM_THREADS = 16


def check_data(job: PlannedJob) -> Iterator[Tick]:
    """A row for the tokenizer, each source, and each other run that is named."""
    name, config = "data", job.config
    tokenizer = Tokenizer.load(config.data.tokenizer)
    require_vocabulary(config.model, config.data.tokenizer, tokenizer.vocab_size)
    yield Tick(name, True, f"{config.data.tokenizer}: {tokenizer.vocab_size} of {config.model.vocab_size} ids")
    for source in config.data.sources:
        try:
            if source.path is None:
                text = _look_at_task(config, source, tokenizer)
            else:
                text = _look_at_folder(Path(source.path), config.data.tokenizer, tokenizer)
            yield Tick(name, True, f"{source.path or f'task {source.task}'}: {text}")
        except ValueError as error:
            yield Tick(name, False, str(error).splitlines()[0])
    for split in _splits(config):
        _loader(config, split).close()  # raises where it holds no document
    try:
        for text in other_runs.describe(config):
            yield Tick(name, True, text)
    except ValueError as error:
        yield Tick(name, False, str(error).splitlines()[0])


def _splits(config: RunConfig) -> tuple[Split, ...]:
    """Those that the run reads."""
    return ("train", "validation") if config.validation.every else ("train",)


def _loader(config: RunConfig, split: Split) -> Loader:
    data = config.data.model_copy(update={"num_workers": 0})
    return Loader(data, seed=config.run.seed, seq_len=config.train.seq_len, global_batch=1, split=split)


def _look_at_task(config: RunConfig, source: SourceSection, tokenizer: Tokenizer) -> str:
    splits = _splits(config)
    for split in splits:
        task_source = TaskSource(source, split, config.run.seed, config.train.seq_len, tokenizer)
        task = task_source.task
        for number in range(NUM_SAMPLED):
            task_source.sample(number)
            example = task.pick(split, config.run.seed, number)
            if (answer := task.solve(example.question)) != example.answer:
                raise ValueError(
                    f"task {task.name}: example {number} of {split} has answer {example.answer!r}, solved {answer!r}"
                )
    return f"{NUM_SAMPLED} examples of {' and '.join(splits)} made and solved"


def _look_at_folder(folder: Path, name: str, tokenizer: Tokenizer) -> str:
    manifest = Manifest.open(folder)
    manifest.check_rows()
    manifest.require_tokenizer(name, tokenizer.sha256)
    deadline = time.monotonic() + BUDGET_S

    def look(number: int) -> int:
        return -1 if time.monotonic() > deadline else _look_at_shard(folder, manifest[number], tokenizer)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        sampled = list(pool.map(look, range(len(manifest))))
    opened = sum(count >= 0 for count in sampled)
    missed = "" if opened == len(manifest) else f", the others not reached in {BUDGET_S:g} s"
    documents = f"{sum(count for count in sampled if count > 0)} of {manifest.header.num_documents} documents"
    return f"{opened} of {len(manifest)} shards opened{missed}, {documents} hashed"


def _look_at_shard(folder: Path, row: ShardRow, tokenizer: Tokenizer) -> int:
    """Check a shard and some of its documents: the first, the last, and others between; returns how many."""
    check_index(folder, row)
    index, path = open_index(folder, row), folder / row.shard
    numbers = np.unique(np.linspace(0, row.documents - 1, min(NUM_SAMPLED, row.documents)).astype(int)).tolist()
    with naming(path), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != row.bytes:
            raise ValueError(f"{path}: {size} bytes, the manifest says {row.bytes}; prepare the data again")
        for number, row_of_index in zip(numbers, index[numbers], strict=True):
            payload = read_document(file, row_of_index, number)
            try:
                frame_document(payload, int(row_of_index["extension"]), tokenizer)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{path}: document {number} is not of its format: {error}") from None
    return len(numbers)
