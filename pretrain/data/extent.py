"""How much text a run has and how often it reads it: documents, tokens and epochs of every source.

Tokens of a source of tokens are in its manifest. Those of a source of text are estimated from a sample: the first
SAMPLE_CHARACTERS of a few documents of a few shards, evenly spread, give tokens a stored byte.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pretrain.config.run import RunConfig, SourceSection
from pretrain.data.manifest import Manifest
from pretrain.data.shards import open_index, read_document
from pretrain.data.stream.framing import read_text
from pretrain.data.tokenizers.tokenizer import Tokenizer

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
    train, sources = config.train, config.data.sources
    run_tokens = train.steps * train.global_batch * train.seq_len
    for source in sources:
        if source.path is not None:
            share = source.weight / sum(each.weight for each in sources)
            yield _measure_source(config, source, source.path, tokenizer, run_tokens * share)


def describe(config: RunConfig) -> list[str]:
    """A line for each folder of shards, with its warning; what stands in the way, where data or tokenizer are not there
    yet."""
    if all(source.path is None for source in config.data.sources):
        return []
    try:
        extents = list(measure(config, Tokenizer.load(config.data.tokenizer)))
    except (ValueError, OSError) as error:
        return [f"not looked at: {str(error).partition(chr(10))[0]}"]
    return [
        line for extent in extents for line in (str(extent), extent.warning and f"warning: {extent.warning}") if line
    ]


def _measure_source(
    config: RunConfig, source: SourceSection, path: str, tokenizer: Tokenizer, run_tokens: float
) -> Extent:
    manifest = Manifest.open(path)
    header = manifest.header
    tokens = float(header.num_tokens) if header.num_tokens is not None else estimate_tokens(manifest, tokenizer)
    framing = header.num_documents * (1 if tokenizer.separators.are_one else 2)
    served = (tokens + framing) * (1 - config.data.validation_fraction)
    epochs = run_tokens / served if served else 0.0
    return Extent(path, header.num_documents, tokens, header.num_tokens is None, epochs)


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
