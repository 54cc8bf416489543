"""A tokenizer as the settings of a GGUF file, from which llama.cpp and `gguf_tokenizer.py` give the same ids.

Our SentencePiece models of byte pairs are llama.cpp's kind "llama": pieces, their scores and types, no space put before
a text. Byte-level tokenizers of published models are its kind "gpt2", where the way they cut text is one that llama.cpp
has a name for (PRE_TOKENIZERS). What is neither is refused: a unigram model, which llama.cpp's "llama" would cut
greedily, a published SentencePiece tokenizer, whose scores its tokenizer.json does not have, and a list of symbols.
A literal U+2581, which we write as its bytes, is a space to llama.cpp.
"""

import json
import re
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from pretrain.data.tokenizers.published import PublishedTokenizer
from pretrain.data.tokenizers.sentencepiece import SPECIALS, WHITESPACE_PIECES, SentencePieceTokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf.gguf_tokenizer import BYTE, CONTROL, NORMAL, PRE_TOKENIZERS, UNKNOWN, UNUSED, USER, NoTokenizer
from pretrain.storage import parse_json


def tokenizer_settings(tokenizer: Tokenizer, num_rows: int) -> dict[str, Any]:
    """The settings, by key without "tokenizer.".

    Args:
        tokenizer: of the run.
        num_rows: rows of the embedding; those without a token get an unused one.

    Raises:
        NoTokenizer: a ValueError, of a tokenizer that cannot be mapped exactly.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        settings, pieces, kinds = _of_sentencepiece(tokenizer)
    elif isinstance(tokenizer, PublishedTokenizer):
        settings, pieces, kinds = _of_published(tokenizer)
    else:
        raise NoTokenizer("is a list of symbols, which no other software reads")
    names = [pieces.get(number, f"[PAD{number}]") for number in range(num_rows)]
    settings |= {
        "ggml.tokens": names, "ggml.token_type": [kinds.get(number, UNUSED) for number in range(num_rows)],
        "ggml.bos_token_id": tokenizer.bos_id, "ggml.eos_token_id": tokenizer.eos_id,
        "ggml.padding_token_id": tokenizer.pad_id, "ggml.add_eos_token": False,
    }  # fmt: skip
    if "ggml.scores" in settings:
        settings["ggml.scores"] += [0.0] * (num_rows - len(settings["ggml.scores"]))
    if (template := tokenizer.usage.default_template) is not None:
        settings["chat_template"] = template
    return settings


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> tuple[dict[str, Any], dict[int, str], dict[int, int]]:
    processor = tokenizer.processor
    pieces = {number: processor.IdToPiece(number) for number in range(tokenizer.vocab_size)}
    kinds = dict.fromkeys(pieces, NORMAL)
    for number, piece in pieces.items():
        if processor.IsByte(number):
            kinds[number] = BYTE
        elif number < len(SPECIALS):
            kinds[number] = UNKNOWN if number == tokenizer.unk_id else CONTROL
        elif piece in WHITESPACE_PIECES:
            kinds[number] = USER
    scores = [processor.GetScore(number) for number in pieces]
    if not all(scores[number].is_integer() for number, kind in kinds.items() if kind == NORMAL):
        raise NoTokenizer("is a unigram model, of which GGUF's kind llama would make other tokens")
    settings = {
        "ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores, "ggml.unknown_token_id": tokenizer.unk_id,
        "ggml.add_bos_token": True, "ggml.add_space_prefix": False, "ggml.remove_extra_whitespaces": False,
    }  # fmt: skip
    return settings, pieces, kinds


def _of_published(tokenizer: PublishedTokenizer) -> tuple[dict[str, Any], dict[int, str], dict[int, int]]:
    content = parse_json(tokenizer.original)
    name = _pre_tokenizer(tokenizer.original, content)
    pieces = {number: piece for piece, number in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(pieces, NORMAL)
    specials = {tokenizer.bos_token, tokenizer.eos_token, *tokenizer.new_tokens}
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    for number, token in added.items():
        pieces[number] = token["content"]
        kinds[number] = CONTROL if token.get("special") else USER
    pieces |= {number: piece for piece, number in tokenizer.new_tokens.items()}
    kinds |= {number: CONTROL for number, piece in pieces.items() if piece in specials}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    settings = {"ggml.model": "gpt2", "ggml.pre": name, "ggml.merges": merges, "ggml.add_bos_token": tokenizer.adds_bos}
    return settings, pieces, kinds


def _pre_tokenizer(original: str, content: dict[str, Any]) -> str:
    """llama.cpp's name of the way a tokenizer.json cuts text."""
    if content["model"].get("byte_fallback"):
        raise NoTokenizer("is a published SentencePiece model, whose scores its tokenizer.json does not have")
    backend = Backend.from_str(original)
    own = _written(backend)
    for name, make in PRE_TOKENIZERS.items():
        backend.pre_tokenizer, backend.normalizer = make(), normalizers.NFC() if name == "qwen2" else None
        if _written(backend) == own:
            return name
    raise NoTokenizer(f"cuts text before it by rules that are none of {', '.join(PRE_TOKENIZERS)}")


def _written(backend: Backend) -> str:
    """What acts on a text before the merges do, without the places of pieces in it."""
    content = parse_json(backend.to_str())
    return re.sub(r'"trim_offsets": \w+', "", json.dumps([content["normalizer"], content["pre_tokenizer"]]))
