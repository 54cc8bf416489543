"""Export of a tokenizer to a folder that `transformers.AutoTokenizer` reads, and so vLLM and lm-eval.

Ours, a SentencePiece model, becomes a tokenizer.json that gives the same ids:

1. Pieces are written with a plain space for SentencePiece's mark and without a normaliser, so no piece contains a
   literal U+2581 and it falls back to its bytes, as in ours. Newlines and tabs defined as pieces become added tokens.
2. The merges of a byte-pair model are all splits of a piece into two pieces, ranked by the score of the merged piece,
   as in SentencePiece. There, splits of one piece tie and the leftmost is first; here ties are impossible. No text is
   known for which this matters.
3. A unigram model keeps its scores. The library would match a special piece in text that spells it, which SentencePiece
   never does, so these pieces get a score below that of any other segmentation. Between equally likely segmentations
   (odd runs of newlines, long runs of spaces) SentencePiece's rounding decides and the library's may differ: then the
   ids differ, the text never does.
4. Decoding gives the same text, except for a run of byte pieces that is not valid UTF-8 as a whole: the library writes
   U+FFFD for each of its bytes, ours keeps the valid characters in it.

With `add_special_tokens` (the default of transformers) a text begins with bos, as documents do in pretraining. Special
tokens written in text stay text (`split_special_tokens`).

A published tokenizer is written unchanged, except that tokens for latent thoughts are added under their ids.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from pretrain.data.tokenizers.published import PublishedTokenizer
from pretrain.data.tokenizers.sentencepiece import SPACE_MARK, SPECIALS, WHITESPACE_PIECES, SentencePieceTokenizer
from pretrain.data.tokenizers.symbols import SymbolTokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.usage import TEMPLATE_FILE
from pretrain.storage import parse_json

# The class that uses tokenizer.json unchanged in every version of transformers. Exception: beside a config.json of type
# qwen2, transformers 5 ignores the class and splits text by Qwen's rules, which is wrong for our tokenizer.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def export_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, for llama.cpp, our SentencePiece model as tokenizer.model.

    Raises:
        ValueError: the tokenizer is a list of symbols, or tokens added to a published one would change their ids.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, SentencePieceTokenizer):
        content = _build(tokenizer).to_str()
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        settings: dict[str, Any] = {**names, "split_special_tokens": True}
    elif isinstance(tokenizer, SymbolTokenizer):
        raise ValueError(
            "a tokenizer of symbols cannot be exported: tasks of symbols are scored with this project's own commands"
        )
    else:
        assert isinstance(tokenizer, PublishedTokenizer)
        content = _with_new_tokens(tokenizer)
        settings = tokenizer.special_names | _usage_settings(tokenizer, folder)
    (folder / "tokenizer.json").write_bytes(content.encode())
    settings |= {"tokenizer_class": TOKENIZER_CLASS, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _usage_settings(tokenizer: PublishedTokenizer, folder: Path) -> dict[str, Any]:
    """What the publisher's settings say of padding and chats; one template is in a file of its own, too."""
    usage = tokenizer.usage
    if isinstance(usage.chat_template, str):
        (folder / TEMPLATE_FILE).write_text(usage.chat_template, encoding="utf-8")
    found = {"pad_token": usage.pad_token, "chat_template": usage.chat_template}
    return {name: value for name, value in found.items() if value is not None}


def _build(tokenizer: SentencePieceTokenizer) -> Backend:
    """The equivalent of a SentencePiece model in the `tokenizers` library."""
    processor = tokenizer.processor
    pieces = [processor.IdToPiece(number).replace(SPACE_MARK, " ") for number in range(tokenizer.vocab_size)]
    scores = {
        piece: processor.GetScore(number)
        for number, piece in enumerate(pieces)
        if number >= len(SPECIALS) and piece not in WHITESPACE_PIECES and not processor.IsByte(number)
    }
    # byte-pair scores are 0, -1, -2, ...; unigram scores are log probabilities, which are not integers
    make = _byte_pair if all(score.is_integer() for score in scores.values()) else _unigram
    backend = make(pieces, scores)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in WHITESPACE_PIECES])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    bos = ("<bos>", tokenizer.bos_id)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[bos]
    )
    return backend


def _byte_pair(pieces: list[str], scores: dict[str, float]) -> Backend:
    """`pieces` are those of all ids, `scores` those of the pieces made by merges."""
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))


def _unigram(pieces: list[str], scores: dict[str, float]) -> Backend:
    """`pieces` are those of all ids, `scores` those of the learned pieces."""
    never = (1 + max(map(len, SPECIALS))) * min(scores.values()) - 1  # below a special name spelled letter by letter
    backend = Backend(
        models.Unigram([(piece, scores.get(piece, never)) for piece in pieces], SPECIALS.index("<unk>"), True)
    )
    # Characters of these names that are in no longer piece are split off, so that the names of special and byte pieces
    # never match.
    alone = set("".join((*SPECIALS, "<0x>"))) - set("".join(piece for piece in scores if len(piece) > 1))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{re.escape(''.join(sorted(alone)))}]"), "isolated")
    return backend


def _with_new_tokens(tokenizer: PublishedTokenizer) -> str:
    """Text of the published tokenizer.json with the added tokens, if any."""
    if not tokenizer.new_tokens:
        return tokenizer.original
    # the library numbers added tokens consecutively, so every embedding row without a token gets an unused one
    content = parse_json(tokenizer.original)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = {number: name for name, number in tokenizer.new_tokens.items()}
    first_free = 1 + max(Backend.from_str(tokenizer.original).get_vocab().values())
    content.setdefault("added_tokens", []).extend(
        {"id": number, "content": names.get(number, f"<unused_{number}>"), **flags}
        for number in range(first_free, tokenizer.vocab_size)
    )
    text = json.dumps(content, ensure_ascii=False, indent=2)
    written = Backend.from_str(text)
    if [written.token_to_id(name) for name in tokenizer.new_tokens] != [*tokenizer.new_tokens.values()]:
        reason = "the ids of this published tokenizer have gaps, so tokens cannot be added to it"
        raise ValueError(f"{reason}: import it without new tokens")
    return text
