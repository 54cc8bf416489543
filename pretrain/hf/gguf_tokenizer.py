"""The tokenizer in a GGUF file as the files that Hugging Face's libraries read.

Byte-pair tokenizers ("gpt2") are written with the pre-tokenizer that the file names, where it is one of PRE_TOKENIZERS;
SentencePiece's ("llama") as transformers converts them: merges are the splits of each piece, ranked by its score. What
is neither is refused: the files of the model's own tokenizer say more.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Types of tokens."""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2, "smollm": _smollm, "llama-bpe": lambda: _split(_LLAMA3), "llama3": lambda: _split(_LLAMA3),
    "qwen2": lambda: _split(_QWEN2),
}  # fmt: skip
"""By llama.cpp's names."""


class NoTokenizer(ValueError):  # noqa: N818 - reads as what it reports
    """The tokenizer of the file cannot be mapped exactly."""


def write_tokenizer(settings: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        settings: of the file.
        folder: where.

    Raises:
        NoTokenizer: a ValueError, of a tokenizer that cannot be mapped exactly.
    """
    tokens, kinds = _list(settings, "tokens", str), _list(settings, "token_type", int)
    if len(tokens) != len(kinds):
        raise NoTokenizer(f"has {len(tokens)} tokens and {len(kinds)} types of them")
    pieces = {token: number for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    if len(pieces) < sum(kind != UNUSED for kind in kinds):
        raise NoTokenizer("has two tokens of one name")
    model = settings.get("tokenizer.ggml.model")
    if model == "gpt2":
        backend = _byte_level(settings, pieces)
    elif model == "llama":
        backend = _sentencepiece(settings, tokens, kinds, pieces)
    else:
        raise NoTokenizer(f"is of kind {model!r}")
    controls = [token for token, number in pieces.items() if kinds[number] in (CONTROL, UNKNOWN)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
    users = [token for token, number in pieces.items() if kinds[number] == USER]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in users])
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = settings.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(number, int) and number < len(tokens) and tokens[number] in pieces:
            config[f"{ours}_token"] = tokens[number]
    adds_bos = settings.get("tokenizer.ggml.add_bos_token", model == "llama")
    config["add_bos_token"] = bool(adds_bos)
    if isinstance(template := settings.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _list(settings: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = settings.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise NoTokenizer(f"has no list of {name}")
    return values


def _byte_level(settings: Mapping[str, Any], pieces: dict[str, int]) -> Backend:
    name = settings.get("tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise NoTokenizer(f"cuts text before it by the rules {name!r}; those of {known} are known")
    merges = [tuple(merge.split(" ")) for merge in _list(settings, "merges", str)]
    bad = next((pair for pair in merges if len(pair) != 2 or not {*pair, "".join(pair)} <= pieces.keys()), None)
    if bad is not None:
        raise NoTokenizer(f"has a merge {' '.join(bad)[:60]!r} of what are no tokens")
    whole_first = name in ("llama-bpe", "llama3")  # a piece that is a token is one, whatever the merges make of it
    backend = Backend(models.BPE(pieces, merges, ignore_merges=whole_first))
    backend.normalizer = normalizers.NFC() if name == "qwen2" else None
    backend.pre_tokenizer = PRE_TOKENIZERS[name]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(settings: Mapping[str, Any], tokens: list[str], kinds: list[int], pieces: dict[str, int]) -> Backend:
    scores = _list(settings, "scores", float)
    if len(scores) != len(tokens):
        raise NoTokenizer(f"has {len(tokens)} tokens and {len(scores)} scores")
    unknown = next((token for token, number in pieces.items() if kinds[number] == UNKNOWN), None)
    learned = {token: scores[number] for token, number in pieces.items() if kinds[number] == NORMAL}
    ranked = sorted(learned, key=lambda token: (-learned[token], pieces[token]))
    merges = [
        (token[:cut], token[cut:])
        for token in ranked
        for cut in range(1, len(token))
        if token[:cut] in learned and token[cut:] in learned
    ]
    backend = Backend(models.BPE(pieces, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    ends: list[decoders.Decoder] = []
    if settings.get("tokenizer.ggml.add_space_prefix", True):
        steps = [normalizers.Prepend("\u2581"), *steps]
        ends = [decoders.Strip(content=" ", left=1)]
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return backend
