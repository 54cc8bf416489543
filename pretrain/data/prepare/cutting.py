"""Documents cut into shorter ones, where a file or record is not one text: at blank lines, and every so many tokens.

What lies between two cuts is a document of its own in every respect: it is framed, shuffled and held out alone.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from pretrain.data.prepare.records import Document
from pretrain.data.shards import encode_tokens, text_hash
from pretrain.data.tokenizers.tokenizer import Tokenizer

Cut = Literal["blank-lines"]
BLANK_LINES = re.compile(r"(?:\A|\n)(?:[^\S\n]*\n)+")
"""One or more lines of white space, with the end of the line before, if there is one."""


class Member(NamedTuple):
    """A document as a shard holds it."""

    payload: bytes
    num_tokens: int
    """0 of text."""
    num_text_bytes: int
    text_hash: int


def cut_text(document: Document, at: Cut | None) -> Iterator[Document]:
    """The parts of a document between blank lines, without these; itself if it is not to be cut."""
    if at is None:
        yield document
        return
    text = document.text
    starts = [0, *(found.end() for found in BLANK_LINES.finditer(text)), len(text)]
    for start, end in pairwise(starts):
        part = text[start:end].rstrip()
        if part:
            yield Document(part, part.encode(), document.consumed)


def members_of(document: Document, tokenizer: Tokenizer | None, most_tokens: int | None) -> Iterator[Member]:
    """What a shard holds of a document: its text, or with a tokenizer its ids, `most_tokens` at a time."""
    size = len(document.utf8)
    if tokenizer is None:
        yield Member(document.utf8, 0, size, text_hash(document.utf8))
        return
    ids = tokenizer.encode_batch([document.text])[0]
    if most_tokens is None or len(ids) <= most_tokens:
        yield Member(encode_tokens(ids, tokenizer.vocab_size), len(ids), size, text_hash(document.utf8))
        return
    for start in range(0, len(ids), most_tokens):
        part = ids[start : start + most_tokens]
        payload = encode_tokens(part, tokenizer.vocab_size)
        yield Member(payload, len(part), size * len(part) // len(ids), text_hash(payload))
