"""Speed of preparing shards, compared with bare SentencePiece and bare tokenizers, and of the loader that reads them.

1. Documents come from --text files, or are pseudo-English of random syllables with word frequencies by Zipf's law; and
   the same text in documents of SHORT_BYTES bytes.
2. Preparation: encoding all documents with the bare library in one thread, one at a time, and `prepare` in one process,
   in turns, both by the seconds of a core that they take. What COST_TOKENS tokens of such documents cost follows from
   its rate and from the size of its shards.
3. Loader: shards of tokens and of the same text, with 0, 1 and 2 workers, in turns, with no work between the batches.

Each figure is the median of --data-rounds turns.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from statistics import median

from benchmarks.measure import Row, Turns, add_rounds, row
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from pretrain.config.data import DataSection
from pretrain.data.manifest import Manifest
from pretrain.data.prepare.documents import find_inputs, read_documents, split_file
from pretrain.data.prepare.prepare import PrepareSettings, prepare
from pretrain.data.prepare.records import Document
from pretrain.data.stream.loader import Loader
from pretrain.data.tokenizers.published import import_tokenizer
from pretrain.data.tokenizers.train import train_tokenizer

VOCAB_SIZE = 4096
DOCUMENT_WORDS = 500
SEQ_LEN, GLOBAL_BATCH = 512, 64
TURN_S = 2.0
SHORT_BYTES = 280
COST_TOKENS = 250e9
NUM_WORKERS = (0, 1, 2)
Encoder = tuple[Path, Callable[[str], object]]
"""File of a tokenizer, and its bare library."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", nargs="+", default=[], metavar="GLOB", help="text files to measure on (default: made pseudo-English)"
    )
    parser.add_argument("--data-mib", type=float, default=8.0, help="MiB of text to use (default: 8)")
    add_rounds(parser, "data", 5)
    parser.add_argument(
        "--train-tokens-per-s", type=float, help="what a model consumes: the loader is to serve 20 times as much"
    )


def run(args: argparse.Namespace) -> list[Row]:
    texts = _first_mib(_read_texts(args.text) if args.text else _make_texts(), args.data_mib)
    short = [text[start : start + SHORT_BYTES] for text in texts for start in range(0, len(text), SHORT_BYTES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoders = {
            "SentencePiece": _train_sentencepiece(folder, texts),
            "tokenizers": _train_tokenizers(folder, texts),
        }
        rows = []
        for size, documents in (("documents as they are", texts), (f"documents of {SHORT_BYTES} bytes", short)):
            documents = [text for text in documents if not text.isspace()]
            _write_texts(folder, documents)
            for library, encoder in encoders.items():
                rows += _measure_preparation(f"{library}, {size}", folder, documents, encoder, args.data_rounds)
        _write_texts(folder, texts)
        for output, tokenizer in (("tokens", encoders["SentencePiece"][0]), ("text", None)):
            _prepare(folder, output, tokenizer)
        return [*rows, *_measure_loader(folder, args.data_rounds, args.train_tokens_per_s)]


def _write_texts(folder: Path, texts: list[str]) -> None:
    with (folder / "text.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def _train_sentencepiece(folder: Path, texts: list[str]) -> Encoder:
    path = folder / "tokenizer.model"
    path.write_bytes(train_tokenizer(texts, vocab_size=VOCAB_SIZE, max_sentences=20_000)[0])
    processor = SentencePieceProcessor()
    processor.LoadFromFile(str(path))
    return path, processor.Encode


def _train_tokenizers(folder: Path, texts: list[str]) -> Encoder:
    """Byte-level BPE, as GPT-2's."""
    end, path = "<|endoftext|>", folder / "published.json"
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, special_tokens=[end], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    published = folder / "published"
    published.mkdir()
    backend.save(str(published / "tokenizer.json"))
    (published / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    path.write_bytes(import_tokenizer(published, new_tokens=False))
    return path, lambda text: backend.encode(text, add_special_tokens=False)


def _measure_preparation(what: str, folder: Path, texts: list[str], encoder: Encoder, rounds: Turns) -> list[Row]:
    """Preparation of `text.jsonl` in `folder`, which holds the texts, against encoding them."""
    tokenizer, encode = encoder
    mib = sum(len(text.encode()) for text in texts) / 2**20

    def encode_all() -> None:
        for text in texts:
            encode(text)

    bare, prepared = [], []
    output = folder / "measured"
    for _ in rounds.numbers():
        bare.append(mib / _core_seconds(encode_all))
        shutil.rmtree(output, ignore_errors=True)
        prepared.append(mib / _core_seconds(_prepare, folder, output.name, tokenizer))
    num_tokens = Manifest.open(output).header.num_tokens or 0
    tokens_per_s = num_tokens * median(prepared) / mib
    stored = sum(file.stat().st_size for file in output.iterdir()) / num_tokens
    against = f"bare library {median(bare):.3g} MiB/s, {median(prepared) / median(bare):.2f}x"
    cost = f"data: {COST_TOKENS / 1e9:g} billion tokens, {what}"
    return [
        row(f"data: preparation per core, {what}", median(prepared), "MiB/s", f">= {0.9 * median(bare):.3g}", against),
        row(cost, COST_TOKENS / tokens_per_s / 3600, "core-hours", "", f"{tokens_per_s:.3g} tokens/s"),
        row(cost, COST_TOKENS * stored / 1e12, "TB on disk", "", f"{stored:.3g} bytes a token"),
    ]


def _core_seconds(work: Callable[..., object], *arguments: object) -> float:
    """Seconds of a core that a call takes, whoever else is busy there."""
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started


def _prepare(folder: Path, output: str, tokenizer: Path | None) -> None:
    prepare(
        PrepareSettings(
            inputs=(str(folder / "text.jsonl"),), output=folder / output, tokenizer=tokenizer, num_workers=0
        )
    )


def _measure_loader(folder: Path, rounds: Turns, train_tokens_per_s: float | None) -> list[Row]:
    variants = [(kind, num_workers) for kind in ("tokens", "text") for num_workers in NUM_WORKERS]
    rates: dict[tuple[str, int], list[float]] = {variant: [] for variant in variants}
    for _ in rounds.numbers():
        for kind, num_workers in variants:
            tokenizer, sources = str(folder / "tokenizer.model"), [{"path": str(folder / kind)}]
            section = {"tokenizer": tokenizer, "sources": sources, "num_workers": num_workers}
            rates[kind, num_workers].append(_tokens_per_s(DataSection.model_validate(section)))
    target = f">= {20 * train_tokens_per_s:.3g}" if train_tokens_per_s else ""
    against = f"20 x the {train_tokens_per_s:.3g} tokens/s of training" if train_tokens_per_s else ""
    return [
        row(f"data: loader, {kind} shards, num_workers={num_workers}", median(found), "tokens/s", target, against)
        for (kind, num_workers), found in rates.items()
    ]


def _tokens_per_s(data: DataSection) -> float:
    with Loader(data, seed=0, seq_len=SEQ_LEN, global_batch=GLOBAL_BATCH) as loader:
        for _ in range(data.prefetch_batches + 3):  # skip the batches prefetched before the first request
            loader.next_batch()
        started, batches = time.perf_counter(), 0
        while time.perf_counter() - started < TURN_S:
            loader.next_batch()
            batches += 1
        return batches * GLOBAL_BATCH * SEQ_LEN / (time.perf_counter() - started)


def _read_texts(patterns: list[str]) -> Iterator[str]:
    for file in find_inputs(patterns):
        (piece,) = split_file(file, max(file.size, 1))
        yield from (item.text for item in read_documents(piece, "text") if isinstance(item, Document))


def _make_texts() -> Iterator[str]:
    """Endless pseudo-English documents."""
    source = random.Random(0)
    syllables = [
        first + vowel + last for first in "bcdfglmnprstvw" for vowel in "aeiou" for last in ("", "n", "r", "s", "t")
    ]
    words = ["".join(source.choices(syllables, k=source.choice((1, 1, 2, 2, 3)))) for _ in range(20_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    while True:
        drawn = source.choices(words, cum_weights=weights, k=DOCUMENT_WORDS)
        sentences = [" ".join(drawn[start : start + 12]).capitalize() + "." for start in range(0, DOCUMENT_WORDS, 12)]
        yield "\n".join(" ".join(sentences[start : start + 5]) for start in range(0, len(sentences), 5))


def _first_mib(texts: Iterator[str], mib: float) -> list[str]:
    taken: list[str] = []
    size = 0
    for text in texts:
        taken.append(text)
        size += len(text.encode())
        if size >= mib * 2**20:
            break
    return taken
