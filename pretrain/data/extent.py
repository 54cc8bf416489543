"""How much text a run has and how often it reads it: documents, tokens and epochs of every source.

Tokens of a source of tokens are in its manifest. Those of a source of text are estimated from a sample: the first
SAMPLE_CHARACTERS of a few documents of a few shards, evenly spread, give tokens a stored byte.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pretrain.config.run import RunConfig, SourceSection
from pretrain.config.saved_model import require_vocabulary
from pretrain.data.manifest import Manifest
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


class Extent(NamedTuple):
    """What a run has of a source."""

    path: str
    documents: int
    tokens: float
    """Without bos and eos."""
    is_estimated: bool
    epochs: float
    """Times that the run reads the documents that are not held out."""

    def __str__(self) -> str:
        tokens = f"about {self.tokens:,.0f} tokens (estimated)" if self.is_estimated else f"{self.tokens:,.0f} tokens"
        documents = f"{self.documents:,} document{'' if self.documents == 1 else 's'}"
        return f"{self.path}: {documents}, {tokens}, this run reads {self.epochs:.3g} epochs"

    @property
    def warning(self) -> str:
        """What is wrong with the number of epochs, or nothing."""
        if self.epochs <= MOST_EPOCHS:
            return ""
        return (
            f"{self.path}: this run reads its text {self.epochs:.3g} times; above {MOST_EPOCHS} a model gains little: "
            "add text, or lower train.steps"
        )


def measure(config: RunConfig, tokenizer: Tokenizer) -> Iterator[Extent]:
    """What a run has of each folder of shards, and how often it reads it; a task makes new examples for ever.

    Raises:
        ValueError: a folder is no source.
        OSError: it cannot be read.
    """
    for source in config.data.sources:
        if source.path is not None:
            yield _measure_source(config, source, Manifest.open(source.path), tokenizer)


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
    for source in config.data.sources:
        if source.path is None:
            yield f"task {source.task}: new examples for ever"
            continue
        try:
            manifest = Manifest.open(source.path)
            _require_shards(manifest)
            if tokenizer is not None:
                manifest.require_tokenizer(config.data.tokenizer, tokenizer.sha256)
                extent = _measure_source(config, source, manifest, tokenizer)
                yield str(extent)
                if extent.warning:
                    yield f"warning: {extent.warning}"
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


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


def _measure_source(config: RunConfig, source: SourceSection, manifest: Manifest, tokenizer: Tokenizer) -> Extent:
    train = config.train
    share = source.weight / sum(each.weight for each in config.data.sources)
    run_tokens = train.steps * train.global_batch * train.seq_len * share
    header = manifest.header
    tokens = float(header.num_tokens) if header.num_tokens is not None else estimate_tokens(manifest, tokenizer)
    framing = header.num_documents * (1 if tokenizer.separators.are_one else 2)
    served = (tokens + framing) * (1 - config.data.validation_fraction)
    epochs = run_tokens / served if served else 0.0
    return Extent(str(manifest.folder), header.num_documents, tokens, header.num_tokens is None, epochs)


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
