"""The tokenizer: exact on every text, blind to special ids in text, the same file from the same documents."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.tokenizers.sentencepiece import SPECIALS, SentencePieceTokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train import train_tokenizer

ROOT = Path(__file__).parents[3]
SYLLABLES = ("lo", "op", "blo", "ck", "wei", "ght", "sha", "red", "sta", "ge", "ring", "le", "arn", "ing", "dep", "th")


def make_document(seed: int) -> str:
    """Words of one to three syllables, a function of the seed."""
    draws = np.random.default_rng(seed).integers(0, len(SYLLABLES), (60, 3))
    words = ["".join(SYLLABLES[i] for i in draw[: 1 + draw[0] % 3]) for draw in draws]
    return f"{' '.join(words[:30])}\n{' '.join(words[30:])}\n\n{seed} · é\n"


DOCUMENTS = [make_document(seed) for seed in range(119)]
ODD = st.sampled_from("\n\t\0 \u2581\u2585\ufeff\ufffd<>7")
NASTY = st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), ODD), max_size=200)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    model, _ = train_tokenizer(DOCUMENTS, vocab_size=400, model_type=request.param)
    return SentencePieceTokenizer(model)


@given(text=NASTY)
@settings(deadline=None, max_examples=200)
def test_decode_inverts_encode_for_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(number >= len(SPECIALS) for number in ids)


@given(texts=st.lists(NASTY, max_size=4))
@settings(deadline=None, max_examples=30)
def test_a_batch_gives_the_ids_of_each_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    batch = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == np.int32 for ids in batch)


def test_the_names_of_special_ids_are_plain_text(tokenizer: Tokenizer) -> None:
    text = "".join(SPECIALS) + "<s></s><0x41>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids) >= len(SPECIALS)


def test_special_ids_are_reserved_and_silent(tokenizer: SentencePieceTokenizer) -> None:
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
    ids += (tokenizer.bot_id, tokenizer.eot_id, tokenizer.latent_id, tokenizer.pause_id)
    assert ids == tuple(range(8))
    assert tokenizer.vocab_size == 400
    word = tokenizer.encode("the loop")
    framed = [tokenizer.bos_id, *word, tokenizer.bot_id, tokenizer.latent_id, tokenizer.eot_id, tokenizer.eos_id]
    assert tokenizer.decode(framed) == "the loop"


def test_every_digit_is_a_token_and_words_are_not(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.decode([number]) for number in tokenizer.encode("2024")]
    assert pieces == ["2", "0", "2", "4"]
    assert len(tokenizer.encode("sharing weight depth")) < 10


def test_parts_of_a_long_text_give_the_ids_of_the_whole() -> None:
    model, _ = train_tokenizer(DOCUMENTS, vocab_size=400)
    tokenizer = SentencePieceTokenizer(model)
    text = "\n".join(DOCUMENTS)
    assert len(text) > 20_000
    assert tokenizer.encode(text) == tokenizer.processor.Encode(text)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic_also_when_it_samples(model_type: str) -> None:
    def train() -> bytes:
        return train_tokenizer(DOCUMENTS, vocab_size=330, model_type=model_type, max_sentences=150)[0]  # type: ignore[arg-type]

    assert train() == train()


def test_every_tenth_document_is_held_out_and_measured() -> None:
    # The held-out documents alone hold the letter ж; a tokenizer that had seen them would have a piece for it.
    documents = [text + "жжжж" * 50 if number % 10 == 0 else text for number, text in enumerate(DOCUMENTS, start=1)]
    model, report = train_tokenizer(documents, vocab_size=400)
    tokenizer = SentencePieceTokenizer(model)
    held_out = documents[9::10]
    assert (report.documents, report.held_out_documents) == (len(DOCUMENTS) - len(held_out), len(held_out))
    assert len(tokenizer.encode("ж")) == 2
    tokens = sum(len(tokenizer.encode(text)) for text in held_out)
    assert report.held_out_bytes == sum(len(text.encode()) for text in held_out)
    assert report.bytes_per_token == pytest.approx(report.held_out_bytes / tokens)


def test_too_few_documents_hold_none_out() -> None:
    _, report = train_tokenizer(DOCUMENTS[:9], vocab_size=300)
    assert (report.held_out_documents, report.bytes_per_token) == (0, None)


def test_an_error_while_reading_is_not_taken_for_the_end() -> None:
    def documents():
        yield from DOCUMENTS
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train_tokenizer(documents(), vocab_size=300)


@pytest.mark.parametrize(
    ("documents", "vocab_size", "message"),
    [
        ([], 300, "hold no document"),
        (["hello"], 300, "Vocabulary size too high"),
        (DOCUMENTS, 100, "vocabulary of 100 is too small"),
    ],
)
def test_impossible_training_says_why(documents: list[str], vocab_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(documents, vocab_size=vocab_size)


def test_loading_names_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.model: no such tokenizer file.*train_tokenizer"):
        Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"bad\.model: not a tokenizer of this project"):
        Tokenizer.load(tmp_path / "bad.model")


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud800b")


def run_tool(*arguments: str | Path | int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/train_tokenizer.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_the_tool_trains_and_reports(tmp_path: Path) -> None:
    for number, text in enumerate(DOCUMENTS):
        (tmp_path / f"{number:03d}.txt").write_text(text)
    (tmp_path / "bad.txt").write_bytes(b"ok \xff")
    output = tmp_path / "new" / "tokenizer.model"
    done = run_tool("--input", tmp_path / "*.txt", "--vocab-size", 400, "--output", output)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"tokenizer\.model: 400 pieces from 108 documents; \d\.\d+ bytes per token on 11 held-out documents",
        done.stdout,
    )
    assert "bad.txt: invalid UTF-8: invalid start byte at byte 3" in done.stderr
    assert output.read_bytes() == train_tokenizer(DOCUMENTS, vocab_size=400)[0]


def test_the_tool_ends_with_one_line_on_bad_input(tmp_path: Path) -> None:
    done = run_tool("--input", tmp_path / "none.txt", "--vocab-size", 400, "--output", tmp_path / "t.model")
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path}/none.txt: no such file\n")
    assert not (tmp_path / "t.model").exists()
