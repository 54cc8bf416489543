"""The exported tokenizer: stock AutoTokenizer gives our ids and our text."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from pretrain.data.tokenizers.published import PublishedTokenizer, import_tokenizer
from pretrain.data.tokenizers.sentencepiece import SPECIALS, SentencePieceTokenizer
from pretrain.data.tokenizers.tokenizer import THOUGHT_TOKENS
from pretrain.data.tokenizers.train import train_tokenizer
from pretrain.hf.tokenizer import export_tokenizer
from tests.unit.data.test_published_tokenizer import (
    BOS,
    EOS,
    ONE,
    write_old_form,
    write_one_separator,
    write_two_separators,
)

SYLLABLES = ("lo", "op", "ab", "ba", "a", "aba", "wei", "é", "в", "日本", "ring", "</", " ", "  ")
SPELLED = (*SPECIALS, "<0x41>", "<0xE2>", "</s>", "<s>")
ODD = ("\u2581", "\u2585", "\0", "\ufeff", "\ufffd", "\u00a0", "\u3000", "\r", "😀", "\u0301", "<")
NASTY = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        st.sampled_from((*SPELLED, *ODD, *SYLLABLES, "\n", "\t", "7")),
    ),
    max_size=30,
).map("".join)


def make_line(rng: np.random.Generator) -> str:
    """Words, digits, runs of whitespace and of letters, characters of all planes, names of special tokens."""

    def piece(kind: int) -> str:
        count = int(rng.integers(1, 10))
        if kind < 3:
            return "".join(rng.choice(SYLLABLES, count % 4 + 1)) + " " * int(rng.integers(0, 2))
        if kind < 6:
            return ("\n", "\t", " ")[kind - 3] * count
        if kind == 6:
            return str(rng.integers(0, 10**count))
        if kind == 7:
            number = int(rng.integers(0, 0x110000 - 0x800))
            return chr(number if number < 0xD800 else number + 0x800)
        return str(rng.choice(SYLLABLES)) * count if kind == 8 else str(rng.choice(SPELLED + ODD))

    return "".join(piece(int(kind)) for kind in rng.integers(0, 10, int(rng.integers(0, 25))))


def train(model_type: Any) -> SentencePieceTokenizer:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(SYLLABLES, 200)) + "    x\n" + " " * (number % 9) + "aab" * 5 for number in range(300)]
    return SentencePieceTokenizer(train_tokenizer(texts, vocab_size=560, model_type=model_type)[0])


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SentencePieceTokenizer, Any]:
    """Our tokenizer, and what transformers makes of it."""
    folder = tmp_path_factory.mktemp(request.param)
    ours = train(request.param)
    export_tokenizer(ours, folder)
    assert (folder / "tokenizer.model").read_bytes() == ours.model
    return ours, AutoTokenizer.from_pretrained(folder)


def is_byte_pair(ours: SentencePieceTokenizer) -> bool:
    return all(ours.processor.GetScore(number).is_integer() for number in range(ours.vocab_size))


def assert_same(ours: SentencePieceTokenizer, theirs: Any, text: str) -> None:
    """The same ids, or for a unigram model another cut of the text that is as likely; the same text again."""
    expected = ours.encode(text)
    ids = theirs.encode(text, add_special_tokens=False)
    assert theirs.decode(ids) == ours.decode(ids) == text
    assert theirs.decode(expected) == text
    if is_byte_pair(ours):
        assert ids == expected
    elif ids != expected:
        # SentencePiece adds up in fp32: over a few hundred pieces its sums are good to one in a hundred thousand.
        assert sum(map(ours.processor.GetScore, ids)) == pytest.approx(
            sum(map(ours.processor.GetScore, expected)), rel=1e-5
        )
        assert min(ids) >= len(SPECIALS)


def test_two_thousand_lines(pair: tuple[SentencePieceTokenizer, Any]) -> None:
    ours, theirs = pair
    rng = np.random.default_rng(1)
    for _ in range(2_000):
        assert_same(ours, theirs, make_line(rng))


@given(text=NASTY)
@settings(deadline=None, max_examples=300)
def test_any_text(pair: tuple[SentencePieceTokenizer, Any], text: str) -> None:
    assert_same(*pair, text)


def test_words_get_the_same_ids_from_both_models(pair: tuple[SentencePieceTokenizer, Any]) -> None:
    ours, theirs = pair
    for text in ("", "ring", " weilo 日本 в", "lo\n\nop\tring", "a \u2581 é 2024"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_any_ids_decode_alike(pair: tuple[SentencePieceTokenizer, Any], data: st.DataObject) -> None:
    """With special ids among them; byte pieces in runs that are as a whole UTF-8, or of which no byte is."""
    ours, theirs = pair
    first_byte, letter = ours.processor.PieceToId("<0x00>"), ours.encode("ring")[0]
    learned = st.integers(first_byte + 256, ours.vocab_size - 1).map(lambda number: [number])
    special = st.integers(0, len(SPECIALS) - 1).map(lambda number: [number])
    whole = st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(str.encode)
    broken = st.lists(st.integers(0x80, 0xBF), max_size=3).map(bytes)
    run = st.one_of(whole, broken).map(lambda run: [letter, *(first_byte + byte for byte in run), letter])
    ids = [*chain(*data.draw(st.lists(st.one_of(learned, special, run), max_size=8)))]
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3"])
def test_the_class_of_the_model_beside_it_changes_nothing(tmp_path: Path, model_type: str) -> None:
    ours = train("bpe")
    export_tokenizer(ours, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rng = np.random.default_rng(2)
    for _ in range(300):
        assert_same(ours, theirs, make_line(rng))
    assert theirs("ring").input_ids == [ours.bos_id, *ours.encode("ring")]


def test_special_tokens_are_those_of_ours(pair: tuple[SentencePieceTokenizer, Any]) -> None:
    ours, theirs = pair
    assert len(theirs) == ours.vocab_size
    assert theirs.convert_tokens_to_ids(list(SPECIALS)) == list(range(len(SPECIALS)))
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs("ring").input_ids == [ours.bos_id, *ours.encode("ring")]
    assert theirs.decode(range(len(SPECIALS)), skip_special_tokens=True) == ""


@pytest.mark.parametrize("write", [write_one_separator, write_two_separators, write_old_form])
@pytest.mark.parametrize("first_new_id", [None, 321, 400])
def test_published_tokenizers_go_back_out(tmp_path: Path, write: Any, first_new_id: int | None) -> None:
    write(tmp_path)
    tokenizer = PublishedTokenizer(
        import_tokenizer(tmp_path, new_tokens=first_new_id is not None, first_new_id=first_new_id)
    )
    export_tokenizer(tokenizer, tmp_path / "out")
    written = (tmp_path / "out" / "tokenizer.json").read_text()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert len(theirs) == tokenizer.vocab_size == Backend.from_str(written).get_vocab_size()
    if first_new_id is None:
        assert written == tokenizer.original
    else:
        assert theirs.convert_tokens_to_ids(list(THOUGHT_TOKENS)) == list(range(first_new_id, first_new_id + 4))
        assert theirs.encode("a<latent>b", add_special_tokens=False)[1] == tokenizer.latent_id
        assert theirs.decode([tokenizer.bot_id, *tokenizer.encode("a b")], skip_special_tokens=True) == "a b"
        added = json.loads(written)["added_tokens"]
        assert [token["id"] for token in added if token["id"] >= 321] == list(range(321, first_new_id + 4))
    text = f"one two <think>\n {ONE} {BOS}{EOS}"
    assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text)
