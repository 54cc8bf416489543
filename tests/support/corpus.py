"""Small real sources for the tests of the data path: a trained tokenizer, documents, shards of tokens or of text."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config.data import DataSection, SourceSection
from pretrain.data.manifest import Header, write_manifest
from pretrain.data.shards import ShardWriter, encode_tokens, text_hash
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train import train_tokenizer

WORDS = (
    "the",
    "a",
    "loop",
    "block",
    "token",
    "stream",
    "of",
    "and",
    "in",
    "to",
    "runs",
    "folds",
    "again",
    "deep",
    "old",
    "north",
    "river",
)


def make_texts(count: int, *, tag: str = "doc", seed: int = 0, max_words: int = 60) -> list[str]:
    """Distinct documents of 0 to `max_words` words, each beginning with its own name."""
    random = np.random.default_rng(seed)
    return [
        f"{tag}{number} " + " ".join(random.choice(WORDS, random.integers(0, max_words + 1))) for number in range(count)
    ]


def make_tokenizer(path: Path) -> Tokenizer:
    """Train a tokenizer of 320 pieces and save it at `path`."""
    model, _ = train_tokenizer(make_texts(200), vocab_size=320)
    path.write_bytes(model)
    return Tokenizer.load(path)


def write_source(
    folder: Path, texts: list[str], num_shards: int, tokenizer: Tokenizer, *, as_text: bool = False
) -> Path:
    """Write documents as a source of `num_shards` shards of tokens, or of the same documents as raw text."""
    folder.mkdir(parents=True)
    rows = []
    for number, part in enumerate(np.array_split(np.arange(len(texts)), num_shards)):
        with ShardWriter(folder, f"shard-{number:06d}.tar", "txt" if as_text else "npy") as shard:
            tokens = 0
            for text in (texts[document] for document in part):
                ids = np.array(tokenizer.encode(text), dtype=np.int32)
                tokens += len(ids)
                shard.add(
                    text.encode() if as_text else encode_tokens(ids, tokenizer.vocab_size), text_hash(text.encode())
                )
            rows.append(shard.close(None if as_text else tokens))
    made_with: dict[str, Any] = (
        {} if as_text else {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size}
    )
    write_manifest(folder, Header(kind="text" if as_text else "tokens", **made_with), rows)
    return folder


def make_data(tokenizer: Path, *folders: Path, weights: tuple[float, ...] = (), **fields: Any) -> DataSection:
    """The data section of a run that reads `folders` in process, without a validation split unless `fields` say
    otherwise."""
    sources = tuple(
        SourceSection(path=str(folder), weight=weight)
        for folder, weight in zip(folders, weights or (1.0,) * len(folders), strict=True)
    )
    values: dict[str, Any] = {"num_streams": 8, "num_workers": 0, "validation_fraction": 0.0} | fields
    return DataSection(tokenizer=str(tokenizer), sources=sources, **values)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar of these members as anybody might: names and contents."""
    with tarfile.open(path, "w") as tar:
        for name, payload in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    return path
