"""How much text a run has and how often it reads it: documents, tokens and epochs of every source.

Tokens of a source of tokens are in its manifest. Those of a source of text are estimated from a sample: the first
SAMPLE_CHARACTERS of a few documents of a few shards, evenly spread, give tokens a stored byte.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pretrain.config.data import SourceSection
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import require_vocabulary
from pretrain.data.manifest import Manifest
from pretrain.data.mixture import expected_tokens, mixture_weights
from pretrain.data.shards import open_index, read_document
from pretrain.data.stream.framing import read_text
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.storage import is_there

MOST_EPOCHS = 4
"""Up to so many, repeated text teaches about as much as new text (Muennighoff et al. 2023, "Scaling Data-Constrained
Language Models", arXiv:2305.16264)."""
SAMPLE_SHARDS, SAMPLE_DOCUMENTS, SAMPLE_CHARACTERS = 16, 4, 4096
MEASURED_SHARDS = 256
"""Shards whose sizes are looked up; the others are taken to be like them."""


class _Size(NamedTuple):
    """Of a folder: fields as of `Extent`."""

    path: str
    documents: int
    tokens: float
    is_estimated: bool
    served: float
    """Tokens of an epoch of training, with bos and eos."""


class Extent(NamedTuple):
    """What a run has of a source."""

    path: str
    documents: int
    tokens: float
    """Without bos and eos."""
    is_estimated: bool
    epochs: float
    """Times that the run reads the documents that are not held out."""
    share: float = 1.0
    """Of the tokens of the run."""

    def __str__(self) -> str:
        tokens = f"about {self.tokens:,.0f} tokens (estimated)" if self.is_estimated else f"{self.tokens:,.0f} tokens"
        documents = f"{self.documents:,} document{'' if self.documents == 1 else 's'}"
        share = "" if self.share == 1 else f", {100 * self.share:.3g} % of its tokens"
        return f"{self.path}: {documents}, {tokens}, this run reads {self.epochs:.3g} epochs{share}"

    @property
    def warning(self) -> str:
        """What is wrong with the number of epochs, or nothing."""
        if self.epochs <= MOST_EPOCHS:
            return ""
        return (
            f"{self.path}: this run reads its text {self.epochs:.3g} times; above {MOST_EPOCHS} a model gains little: "
            "add text, or lower train.steps"
        )


def measure(config: RunConfig, tokenizer: Tokenizer) -> list[Extent]:
    """What a run has of each folder of shards, and how often it reads it; a task makes new examples for ever.

    Raises:
        ValueError: a folder is no source, or data.temperature does not know its tokens.
        OSError: it cannot be read.
    """
    paths = [source.path for source in config.data.sources]
    sizes = [None if path is None else _measure_source(config, Manifest.open(path), tokenizer) for path in paths]
    return [extent for extent in _mix(config, sizes) if isinstance(extent, Extent)]


def describe(config: RunConfig) -> Iterator[str]:
    """What the dry run says of the data: a line for each source, with its warning.

    Raises:
        ValueError: after the last line, a line for each thing that training would refuse: of the tokenizer and the
            shards of each folder.
        OSError: the storage failed.
    """
    problems, tokenizer = [], None
    try:
        tokenizer = Tokenizer.load(config.data.tokenizer)
        require_vocabulary(config.model, config.data.tokenizer, tokenizer.vocab_size)
    except ValueError as error:
        problems.append(str(error))
    sizes: list[_Size | None] = []
    for source in config.data.sources:
        sizes.append(None)
        if source.path is None:
            continue
        try:
            manifest = Manifest.open(source.path)
            _require_shards(manifest)
            if tokenizer is not None:
                manifest.require_tokenizer(config.data.tokenizer, tokenizer.sha256)
                sizes[-1] = _measure_source(config, manifest, tokenizer)
        except ValueError as error:
            problems.append(str(error))
    try:
        yield from _lines(_mix(config, sizes))
    except ValueError as error:
        if not problems:  # else it is one of them that is not known
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def _lines(extents: list[Extent | str]) -> Iterator[str]:
    for extent in extents:
        yield str(extent)
        if isinstance(extent, Extent) and extent.warning:
            yield f"warning: {extent.warning}"


def _require_shards(manifest: Manifest) -> None:
    """Raise a ValueError unless there are shards, and those whose sizes are looked up are there and as long as the
    manifest says."""
    if not manifest.header.num_documents:
        raise ValueError(f"{manifest.folder}: holds no documents; prepare it from files that hold text")
    for number in _spread(len(manifest), MEASURED_SHARDS):
        row = manifest[number]
        path = manifest.folder / row.shard
        size = path.stat().st_size if is_there(path) else None
        if size != row.bytes:
            found = "is not there" if size is None else f"has {size} bytes, the manifest says {row.bytes}"
            raise ValueError(f"{path}: {found}; copy the folder again or prepare the data again")


def _mix(config: RunConfig, sizes: list[_Size | None]) -> list[Extent | str]:
    """What the run reads of each source: an extent of a folder whose size is known, a line of a task."""
    data, train = config.data, config.train
    run_tokens = train.steps * train.global_batch * train.seq_len
    counts = [None if size is None or size.is_estimated else int(size.tokens) for size in sizes]
    budgets = [_budget(source, size) for source, size in zip(data.sources, sizes, strict=True)]
    taken = expected_tokens(run_tokens, mixture_weights(data, counts), budgets)
    found: list[Extent | str] = []
    for source, size, tokens in zip(data.sources, sizes, taken, strict=True):
        share = tokens / run_tokens
        if size is not None:
            epochs = tokens / size.served if size.served else 0.0
            found.append(Extent(size.path, size.documents, size.tokens, size.is_estimated, epochs, share))
        elif source.task is not None:
            ever = "new examples for ever" if source.max_tokens is None else f"at most {source.max_tokens:,} tokens"
            of_run = "" if share == 1 else f", {100 * share:.3g} % of the tokens of this run"
            found.append(f"task {source.task}: {ever}{of_run}")
    return found


def _budget(source: SourceSection, size: _Size | None) -> float:
    """The most tokens of training that a source gives."""
    of_tokens = math.inf if source.max_tokens is None else source.max_tokens
    return of_tokens if source.max_epochs is None or size is None else min(of_tokens, source.max_epochs * size.served)


def _measure_source(config: RunConfig, manifest: Manifest, tokenizer: Tokenizer) -> _Size:
    header = manifest.header
    tokens = float(header.num_tokens) if header.num_tokens is not None else estimate_tokens(manifest, tokenizer)
    framing = header.num_documents * (1 if tokenizer.separators.are_one else 2)
    served = (tokens + framing) * (1 - config.data.validation_fraction)
    return _Size(str(manifest.folder), header.num_documents, tokens, header.num_tokens is None, served)


def estimate_tokens(manifest: Manifest, tokenizer: Tokenizer) -> float:
    """Tokens of a source of text, from a sample; damaged documents and shards are not in it.

    Raises:
        ValueError: none of the sample can be read.
        OSError: a shard cannot be read.
    """
    tokens, sampled_bytes, text_bytes, tar_bytes = 0.0, 0, 0, 0
    for number in _spread(len(manifest), SAMPLE_SHARDS):
        shard = manifest[number]
        path = manifest.folder / shard.shard
        try:
            index = open_index(manifest.folder, shard)
            with path.open("rb") as file:
                for document in _spread(len(index), SAMPLE_DOCUMENTS):
                    row = index[document]
                    text = read_text(read_document(file, row, document), int(row["extension"]))
                    part = text[:SAMPLE_CHARACTERS]
                    tokens += len(tokenizer.encode(part)) * len(text) / max(len(part), 1)
                    sampled_bytes += int(row["size"])
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            continue  # the loader says what it is
        text_bytes += int(index["size"].sum())
        tar_bytes += shard.bytes
    if not sampled_bytes:
        raise ValueError(f"{manifest.folder}: none of a sample of its documents can be read")
    sizes = [manifest[number].bytes for number in _spread(len(manifest), MEASURED_SHARDS)]
    all_bytes = sum(sizes) / len(sizes) * len(manifest)
    return tokens / sampled_bytes * text_bytes / tar_bytes * all_bytes


def _spread(count: int, most: int) -> list[int]:
    """At most so many of range(count), evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist() if count else []
