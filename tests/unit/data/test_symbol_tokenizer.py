"""A tokenizer over symbols: exact, told apart from the other kinds by its file, and strict about what it cannot
spell."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.shards import EXTENSIONS
from pretrain.data.stream.framing import frame_document
from pretrain.data.tokenizers.symbols import SPECIALS, SymbolTokenizer, write_symbols
from pretrain.data.tokenizers.tokenizer import THOUGHT_TOKENS, Tokenizer
from pretrain.hf.tokenizer import export_tokenizer

SYMBOLS = st.lists(
    st.text(max_size=3, min_size=1, alphabet=st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=20,
    unique=True,
)


@given(symbols=SYMBOLS, data=st.data())
def test_decode_inverts_encode(symbols: list[str], data: st.DataObject) -> None:
    tokenizer = SymbolTokenizer(write_symbols(symbols))
    text = data.draw(st.sampled_from([*symbols, ""]))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIALS) <= number < tokenizer.vocab_size for number in ids)
    assert len(ids) == min(1, len(text)), "a symbol is one token"
    assert tokenizer.vocab_size == len(SPECIALS) + len(symbols)


@given(text=st.text("ab+", max_size=50))
def test_single_characters_are_tokens_and_specials_are_silent(text: str) -> None:
    tokenizer = SymbolTokenizer(write_symbols("ab+"))
    ids = tokenizer.encode(text)
    assert [number - len(SPECIALS) for number in ids] == ["ab+".index(symbol) for symbol in text]
    framed = [
        tokenizer.bos_id,
        *ids,
        tokenizer.bot_id,
        tokenizer.latent_id,
        tokenizer.pause_id,
        tokenizer.eot_id,
        tokenizer.eos_id,
    ]
    assert tokenizer.decode([*framed, tokenizer.pad_id]) == text
    specials = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, *map(tokenizer.thought_id, THOUGHT_TOKENS)]
    assert specials == list(range(len(SPECIALS)))


def test_the_longest_symbol_is_taken() -> None:
    tokenizer = SymbolTokenizer(write_symbols(["1", "12", "123", "3", "."]))
    assert [tokenizer.symbols[number - len(SPECIALS)] for number in tokenizer.encode("12312.1")] == [
        "123",
        "12",
        ".",
        "1",
    ]


def test_what_no_symbol_spells_is_named() -> None:
    tokenizer = SymbolTokenizer(write_symbols("ab"))
    with pytest.raises(
        ValueError, match=r"^character 2: '<bos>b' begins with none of the tokenizer's symbols 'a' 'b'$"
    ):
        tokenizer.encode("ab<bos>b")
    with pytest.raises(ValueError, match="character 0"):
        tokenizer.encode("\ud800")


def test_the_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "symbols.json"
    path.write_bytes(write_symbols(["a", "é", "\n"]))
    tokenizer = Tokenizer.load(path)
    assert isinstance(tokenizer, SymbolTokenizer)
    assert tokenizer.symbols == ("a", "é", "\n")
    assert tokenizer.sha256 == SymbolTokenizer(path.read_bytes()).sha256


def test_documents_of_symbols_are_framed_like_all_others() -> None:
    tokenizer = SymbolTokenizer(write_symbols("ab"))
    framed = frame_document(b"abba", EXTENSIONS.index("txt"), tokenizer).read(0, 100)
    assert framed.tolist() == [tokenizer.bos_id, *tokenizer.encode("abba"), tokenizer.eos_id]


@pytest.mark.parametrize(
    ("symbols", "message"),
    [([], "not a list of texts"), (["a", ""], "none of them empty"), (["a", "b", "a"], "'a' twice")],
)
def test_symbols_that_cannot_be_told_apart_are_refused(symbols: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_symbols(symbols)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "its version is 2"),
        ({"symbols": "ab"}, "not a list"),
        ({"symbols": [1]}, "not a list of texts"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "symbols.json"
    path.write_text(json.dumps(json.loads(write_symbols("ab")) | change))
    with pytest.raises(ValueError, match=rf"symbols\.json: not a tokenizer of this project: .*{message}"):
        Tokenizer.load(path)


def test_symbols_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a tokenizer of symbols cannot be exported"):
        export_tokenizer(SymbolTokenizer(write_symbols("ab")), tmp_path)
