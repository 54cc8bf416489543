"""Framing: a document is its tokens between bos and eos, however it is stored and in whatever portions it is read."""

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.shards import EXTENSIONS, encode_tokens
from pretrain.data.stream import framing
from pretrain.data.stream.framing import FramedDocument, frame_document
from pretrain.data.tokenizers.sentencepiece import SPACE_MARK, SentencePieceTokenizer
from pretrain.data.tokenizers.train import train_tokenizer

TEXT = f"one two three\n\nfour {SPACE_MARK} five é " * 40


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_tokenizer(["one two three four five six seven · é"], vocab_size=290)[0])


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("text", ["", TEXT])
def test_every_format_gives_the_text_between_bos_and_eos(
    tokenizer: SentencePieceTokenizer, extension: str, text: str
) -> None:
    ids = tokenizer.encode(text)
    payload = {
        "npy": encode_tokens(np.array(ids, dtype=np.int32), tokenizer.vocab_size),
        "txt": text.encode(),
        "json": json.dumps({"id": 7, "text": text}).encode(),
    }[extension]
    framed = frame_document(payload, EXTENSIONS.index(extension), tokenizer).read(0, len(ids) + 5)
    assert framed.dtype == np.int32
    assert framed.tolist() == [tokenizer.bos_id, *ids, tokenizer.eos_id]


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40))),
)
def test_portions_join_to_the_whole(
    num_ready: int, num_rest: int, at_once: int, portions: list[tuple[int, int]]
) -> None:
    whole = np.arange(num_ready + num_rest, dtype=np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "ENCODE_TOKENS", at_once)
        document = FramedDocument(whole[:num_ready], iter(whole[num_ready:].tolist()))
        offset = 0
        for skip, count in portions:
            offset += skip
            assert document.read(offset, count).tolist() == whole[offset : offset + count].tolist()


def test_text_is_encoded_no_further_than_it_is_read(
    tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = 0

    def counting(text: str) -> Iterator[int]:
        nonlocal encoded
        for token in SentencePieceTokenizer.iterate(tokenizer, text):
            encoded += 1
            yield token

    monkeypatch.setattr(tokenizer, "iterate", counting)
    # at a mark the text is cut and iterated part by part, which would count twice
    book = TEXT.replace(SPACE_MARK, "") * 500
    document = frame_document(book.encode(), EXTENSIONS.index("txt"), tokenizer)
    document.read(0, 100)
    assert 0 < encoded <= framing.ENCODE_TOKENS
    document.read(encoded, 10)
    assert encoded <= 2 * framing.ENCODE_TOKENS < len(tokenizer.encode(book))


@pytest.mark.parametrize(
    ("payload", "extension"),
    [(b"\xff", "txt"), (b"{}", "json"), (b'{"text": "\\ud800"}', "json"), (b"[]", "json"), (b"no", "npy")],
)
def test_what_is_not_of_its_format_is_found_before_the_first_token(
    tokenizer: SentencePieceTokenizer, payload: bytes, extension: str
) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        frame_document(payload, EXTENSIONS.index(extension), tokenizer)


@pytest.mark.parametrize("ids", [[3, 65535], [-1, 3]])
def test_ids_beyond_the_vocabulary_are_named(tokenizer: SentencePieceTokenizer, ids: list[int]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array(ids))
    with pytest.raises(ValueError, match=rf"token id ({ids[0]}|{ids[1]}) is beyond the \d+ tokens of the vocabulary"):
        frame_document(buffer.getvalue(), EXTENSIONS.index("npy"), tokenizer)
