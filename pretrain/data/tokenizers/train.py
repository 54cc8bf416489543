"""Training a tokenizer on a stream of documents.

Documents stream through, cut into lines, of which SentencePiece keeps a uniform sample: memory does not grow with the
corpus. Every n-th document is held out, up to a few megabytes, and measures bytes per token. The same documents and
settings give the same file.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sentencepiece import SentencePieceTrainer

from pretrain.data.tokenizers.sentencepiece import SPACE_MARK, SPECIALS, WHITESPACE_PIECES, SentencePieceTokenizer

# SentencePiece's trainer drops sentences that hold a tab, a NUL or its own marks.
TRAINER_BREAKS = re.compile(f"[\n\t\0{SPACE_MARK}\u2585]+")

HELD_OUT_EVERY = 10
HELD_OUT_BYTES = 4 << 20
SENTENCE_CHARACTERS = 2000
SMALLEST_SAMPLE = 100
# Results of the trainer depend on its number of threads: a constant, not the machine's.
TRAINER_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    vocab_size: int
    documents: int
    """Documents trained on."""
    held_out_documents: int
    held_out_bytes: int
    bytes_per_token: float | None
    """UTF-8 bytes per token of the held-out documents; None if there are none."""


class _TrainingLines:
    """The lines to train on; keeps every n-th document back until it holds `HELD_OUT_BYTES`."""

    def __init__(self, documents: Iterable[str]) -> None:
        self._documents = documents
        self.passed = 0
        self.held: list[str] = []
        self.error: BaseException | None = None
        """Why the documents ended early, Ctrl-C included."""

    def __iter__(self) -> Iterator[str | None]:
        # The trainer takes an exception of its iterator for the end of the text, but stops at once at a non-string.
        try:
            yield from self._lines()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            yield None

    def _lines(self) -> Iterator[str]:
        held_bytes = 0
        for number, text in enumerate(self._documents, start=1):
            if number % HELD_OUT_EVERY == 0 and held_bytes < HELD_OUT_BYTES:
                self.held.append(text)
                held_bytes += len(text.encode())
                continue
            self.passed += 1
            for line in TRAINER_BREAKS.split(text):
                for start in range(0, len(line), SENTENCE_CHARACTERS):
                    yield line[start : start + SENTENCE_CHARACTERS]


def train_tokenizer(
    documents: Iterable[str],
    *,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    max_sentences: int = 1_000_000,
) -> tuple[bytes, TokenizerReport]:
    """Train a tokenizer on a stream of documents.

    Args:
        documents: texts; read once, never all in memory.
        vocab_size: pieces, the special ones included.
        max_sentences: lines to train on, drawn uniformly from all; each is at most `SENTENCE_CHARACTERS` long.

    Returns:
        The bytes of the model file, and the report on held-out text.

    Raises:
        ValueError: if there is no text, or too little for such a vocabulary.
    """
    smallest = len(SPECIALS) + 256 + len(WHITESPACE_PIECES) + 1
    if vocab_size < smallest:
        needed = f"special ids, bytes and separators alone are {smallest - 1}"
        raise ValueError(f"vocabulary of {vocab_size} is too small: {needed}")
    if max_sentences <= SMALLEST_SAMPLE:
        needed = f"SentencePiece wants more than {SMALLEST_SAMPLE}"
        raise ValueError(f"a sample of {max_sentences} sentences is too small: {needed}")
    lines = _TrainingLines(documents)
    model = _train(lines, vocab_size, model_type, max_sentences)
    tokenizer = SentencePieceTokenizer(model)
    held_out_bytes = sum(len(text.encode()) for text in lines.held)
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(lines.held))
    return model, TokenizerReport(
        vocab_size=tokenizer.vocab_size,
        documents=lines.passed,
        held_out_documents=len(lines.held),
        held_out_bytes=held_out_bytes,
        bytes_per_token=held_out_bytes / tokens if tokens else None,
    )


def _train(lines: _TrainingLines, vocab_size: int, model_type: str, max_sentences: int) -> bytes:
    model = io.BytesIO()
    names, controls = dict(zip(("pad", "unk", "bos", "eos"), SPECIALS, strict=False)), SPECIALS[4:]
    try:
        SentencePieceTrainer.Train(
            sentence_iterator=iter(lines), model_writer=model, model_type=model_type, vocab_size=vocab_size,
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
            control_symbols=list(controls), user_defined_symbols=list(WHITESPACE_PIECES),
            input_sentence_size=max_sentences, shuffle_input_sentence=True,
            max_sentence_length=4 * SENTENCE_CHARACTERS, num_threads=TRAINER_THREADS, minloglevel=2,
            **{f"{name}_id": number for number, name in enumerate(names)},
            **{f"{name}_piece": piece for name, piece in names.items()},
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:  # which of the two depends on the version of SentencePiece
        if lines.error is not None:
            raise lines.error from None
        if lines.passed == 0:
            raise ValueError("no text to train a tokenizer on: the inputs hold no document") from None
        # The sentence for people stands at the end of SentencePiece's "file(line) [condition] sentence".
        reason = str(error).rsplit("]", 1)[-1].strip() or str(error)
        what = f"a {model_type} vocabulary of {vocab_size}"
        raise ValueError(f"SentencePiece cannot make {what} from this text: {reason}") from None
    return model.getvalue()
