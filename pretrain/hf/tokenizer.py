"""A tokenizer for the outside world: a folder that `transformers.AutoTokenizer` reads, and what is built on it (vLLM,
lm-eval).

Ours, a SentencePiece model, becomes a tokenizer.json that gives the same ids:

1. Pieces are written with a plain space for SentencePiece's mark, and there is no normaliser, so that a literal U+2581
   is in no piece and falls back to its bytes, as ours writes it. Newlines and tabs that are pieces by decree become
   added tokens.
2. A byte-pair model's merges are all splits of a piece into two pieces, ranked as SentencePiece ranks them: by the
   score of what they make. Splits of one piece tie in SentencePiece, where the leftmost goes first, and cannot tie
   here; no text is known for which that matters.
3. A unigram model keeps its scores. The library's model would find a special piece in text that spells it, which
   SentencePiece never does: those pieces get a score below any other way to write the text. Where two cuts of a text
   are equally likely (odd runs of newlines, long runs of spaces), SentencePiece's rounding decides, which the library
   does not share: there the ids may differ, the text never does.
4. Decoding gives our text, but for a run of byte pieces that is not UTF-8 as a whole: the library writes U+FFFD for
   each of its bytes, ours keeps the characters in it that are whole.

With `add_special_tokens` (the default of transformers) a text begins with the bos, as the documents of pretraining did.
Special tokens in text stay text (`split_special_tokens`).

A published tokenizer is written as it came; with tokens for latent thoughts, these are added to it under their ids.
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

# The class without rules of its own in every version of transformers: it takes tokenizer.json as it is. Only next to a
# config.json of type qwen2 does transformers 5 not ask for it, and splits text by Qwen's rules, wrong for ours.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def export_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, and for ours tokenizer.model, the SentencePiece model itself
    (llama.cpp reads it).

    Args:
        tokenizer: ours or a published one.
        folder: where to; made if missing, other files in it stay.

    Raises:
        ValueError: the new tokens of a published one cannot be written under their ids, or it is a list of symbols.
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
        settings = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    (folder / "tokenizer.json").write_bytes(content.encode())
    settings |= {"tokenizer_class": TOKENIZER_CLASS, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _build(tokenizer: SentencePieceTokenizer) -> Backend:
    """The `tokenizers` library's equal of a SentencePiece model."""
    processor = tokenizer.processor
    pieces = [processor.IdToPiece(number).replace(SPACE_MARK, " ") for number in range(tokenizer.vocab_size)]
    scores = {
        piece: processor.GetScore(number)
        for number, piece in enumerate(pieces)
        if number >= len(SPECIALS) and piece not in WHITESPACE_PIECES and not processor.IsByte(number)
    }
    # The byte-pair trainer scores its merges 0, -1, -2, ...; logarithms of probabilities are no whole numbers.
    backend = (
        _byte_pair(pieces, scores) if all(score.is_integer() for score in scores.values()) else _unigram(pieces, scores)
    )
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in WHITESPACE_PIECES])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    bos = ("<bos>", tokenizer.bos_id)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[bos]
    )
    return backend


def _byte_pair(pieces: list[str], scores: dict[str, float]) -> Backend:
    """Args: pieces: of all ids; scores: of those that merge."""
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))


def _unigram(pieces: list[str], scores: dict[str, float]) -> Backend:
    """Args: pieces: of all ids; scores: of those learned."""
    never = (1 + max(map(len, SPECIALS))) * min(scores.values()) - 1  # below a special name written letter by letter
    backend = Backend(
        models.Unigram([(piece, scores.get(piece, never)) for piece in pieces], SPECIALS.index("<unk>"), True)
    )
    # A letter that no longer piece holds is cut off, so that a name with a letter unknown to the model, or a byte's
    # name, is not found.
    alone = set("".join((*SPECIALS, "<0x>"))) - set("".join(piece for piece in scores if len(piece) > 1))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{re.escape(''.join(sorted(alone)))}]"), "isolated")
    return backend


def _with_new_tokens(tokenizer: PublishedTokenizer) -> str:
    """Text of the published tokenizer.json with the added tokens in it, unchanged if there are none."""
    if not tokenizer.new_tokens:
        return tokenizer.original
    # The library numbers added tokens one after the other, so rows of the embedding that have no token get one each.
    content = json.loads(tokenizer.original)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = {number: name for name, number in tokenizer.new_tokens.items()}
    known = 1 + max(Backend.from_str(tokenizer.original).get_vocab().values())
    content.setdefault("added_tokens", []).extend(
        {"id": number, "content": names.get(number, f"<unused_{number}>"), **flags}
        for number in range(known, tokenizer.vocab_size)
    )
    text = json.dumps(content, ensure_ascii=False, indent=2)
    written = Backend.from_str(text)
    if [written.token_to_id(name) for name in tokenizer.new_tokens] != [*tokenizer.new_tokens.values()]:
        raise ValueError(
            "the ids of this published tokenizer have gaps, so tokens cannot be added to it: "
            "import it without new tokens"
        )
    return text
