"""Tokenizers of published models (GPT-2, Llama, Qwen, OLMo, SmolLM), used as they are, by the `tokenizers` library.

The file is one JSON object of ours: the text of the original tokenizer.json, unchanged, the names of its bos and eos,
whether the publisher's tokenizer puts the bos before a text, the tokens that were added for latent thoughts, and how
the model is meant to be used (`usage.py`), which the tokenizer's sha256 is not of: it says nothing about ids.
`import_tokenizer` makes it from a folder of a published model; nothing in that folder is executed.

1. Added tokens get the ids after the last row of the model's embedding, which may be longer than the vocabulary (Qwen
   pads it).
2. Special tokens in text are encoded as text: the library does not look for them, and no merge makes one (the merges
   that would are left out). Tokens that the publisher added without calling them special stay pieces of text.
3. Nothing is put around a text, cut off or padded, whatever the file asks for.

With byte-level tokenizers decode(encode(text)) == text, up to the normal form of Unicode where the publisher's file has
one (Qwen: NFC).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from pretrain.data.tokenizers.tokenizer import FORMAT_VERSION, THOUGHT_TOKENS, Tokenizer, read_fields
from pretrain.data.tokenizers.usage import Usage, read_settings, read_usage
from pretrain.storage import is_there, parse_json, read_file, require_content

FORMAT = "looped-published-tokenizer"


class PublishedTokenizer(Tokenizer):
    """A published tokenizer. bos and eos may be one token; padding is never looked at, so pad is the eos where
    the publisher has none."""

    def __init__(self, content: bytes) -> None:
        """Args: content, the bytes that `import_tokenizer` returned. Use `Tokenizer.load` for a file.

        Raises:
            ValueError: they are not of this format.
        """
        fields = read_fields(content, FORMAT, ("tokenizer_json", "bos_token", "eos_token", "new_tokens"))
        usage = fields.pop("usage", None)
        self.sha256 = hashlib.sha256(content if usage is None else _to_bytes(fields)).hexdigest()
        self.usage = Usage() if usage is None else Usage.of(usage)
        self.original: str = fields["tokenizer_json"]
        """Text of the published tokenizer.json."""
        self.bos_token: str = fields["bos_token"]
        self.eos_token: str = fields["eos_token"]
        self.new_tokens: dict[str, int] = fields["new_tokens"]
        """Ids of the tokens that were added: all of THOUGHT_TOKENS, or none."""
        self._backend = _load_backend(self.original, (self.bos_token, self.eos_token))
        ids = self._backend.get_vocab()
        self.bos_id, self.eos_id = ids[self.bos_token], ids[self.eos_token]
        own = fields.get("adds_bos")  # files from before it was kept follow the published template
        self.adds_bos = own if isinstance(own, bool) else _begins_with(self._backend, self.bos_id)
        self.pad_id = ids.get(self.usage.pad_token or self.eos_token, self.eos_id)
        self.vocab_size = 1 + max((*ids.values(), *self.new_tokens.values()))

    def thought_id(self, name: str) -> int:
        if not self.new_tokens:
            missing = " ".join(THOUGHT_TOKENS)
            raise ValueError(f"the tokenizer was imported without {missing}: import it again with new_tokens=True")
        return self.new_tokens[name]

    @property
    def special_names(self) -> dict[str, str]:
        return {"bos_token": self.bos_token, "eos_token": self.eos_token}

    def encode_markup(self, text: str) -> list[int]:
        backend = Backend.from_str(self.original)  # not deaf to special tokens
        backend.no_truncation()
        backend.no_padding()
        return backend.encode(text, add_special_tokens=False).ids

    def iterate(self, text: str) -> Iterator[int]:
        """The ids of `encode`, all of them at once: where a text may be cut differs for every published tokenizer."""
        text.encode()  # the library would call a lone surrogate "not a string"
        return iter(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        # Ids that the publisher does not know, the new ones among them, are dropped by the library.
        return self._backend.decode([int(number) for number in ids], skip_special_tokens=True)


def import_tokenizer(folder: Path, *, new_tokens: bool = True, first_new_id: int | None = None) -> bytes:
    """The bytes of a tokenizer file, made from the folder of a published model.

    Args:
        folder: with tokenizer.json, or with GPT-2's vocab.json and merges.txt.
        new_tokens: whether to add THOUGHT_TOKENS.
        first_new_id: id of the first of them: rows of the model's embedding. Default: the vocabulary's last id plus 1.

    Raises:
        ValueError: there is no tokenizer in the folder, it cannot be read, or its vocabulary does not go with the
            arguments.
    """
    original = _read_original(folder)
    backend = _parse_backend(original, folder)
    eos_token = _special_token(folder, "eos", backend)
    if eos_token is None:
        raise ValueError(f"{folder}: no end-of-text token: name it as eos_token in tokenizer_config.json")
    bos_token = _special_token(folder, "bos", backend) or eos_token
    for name in (bos_token, eos_token):
        if backend.token_to_id(name) is None:
            raise ValueError(f"{folder}: {name} is named as bos or eos, but its tokenizer has no such token")
    _check_specials(folder, _load_backend(original, (bos_token, eos_token)))
    ids = _new_ids(folder, backend, first_new_id) if new_tokens else {}
    fields = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "new_tokens": ids,
        "adds_bos": _adds_bos(folder, backend, bos_token),
    }
    usage = read_usage(folder, _special_token(folder, "pad", backend)).to_dict()
    return _to_bytes({**fields, "tokenizer_json": original, **({"usage": usage} if usage else {})})


def _to_bytes(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, indent=1).encode()


def _adds_bos(folder: Path, backend: Backend, bos_token: str) -> bool:
    """Whether transformers puts the bos before a text: its option, else the template of tokenizer.json."""
    option = read_settings(folder / "tokenizer_config.json").get("add_bos_token")
    return option if isinstance(option, bool) else _begins_with(backend, backend.token_to_id(bos_token))


def _begins_with(backend: Backend, number: int | None) -> bool:
    return backend.encode("a", add_special_tokens=True).ids[:1] == [number]


def _load_backend(original: str, specials: tuple[str, str]) -> Backend:
    """The library's tokenizer, deaf to special tokens in text; `specials`, bos and eos, count as special whatever the
    file says."""
    content = parse_json(original)
    names = {token["content"] for token in content.get("added_tokens", []) if token.get("special")} | set(specials)
    merges = content["model"].get("merges", [])
    kept = [merge for merge in merges if "".join(merge.split(" ") if isinstance(merge, str) else merge) not in names]
    if len(kept) < len(merges):
        content["model"]["merges"] = kept
        original = json.dumps(content)
    backend = Backend.from_str(original)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


def _new_ids(folder: Path, backend: Backend, first_new_id: int | None) -> dict[str, int]:
    taken = {name: number for name in THOUGHT_TOKENS if (number := backend.token_to_id(name)) is not None}
    if len(taken) == len(THOUGHT_TOKENS):
        return taken  # an export of this project: they are there
    if taken:
        own = f"a token {next(iter(taken))} of its own"
        raise ValueError(f"{folder}: its tokenizer has {own}: import it without new tokens")
    last = max(backend.get_vocab().values())
    first = last + 1 if first_new_id is None else first_new_id
    if first <= last:
        raise ValueError(
            f"{folder}: its tokenizer has ids up to {last}, its config.json {first} rows of vocabulary: no ids are "
            "free for the tokens of latent thoughts; import it with --no-new-tokens"
        )
    return {name: first + number for number, name in enumerate(THOUGHT_TOKENS)}


def _check_specials(folder: Path, backend: Backend) -> None:
    """Raise where a special token's name still gives its id, the token for unknown characters aside."""
    for number, token in backend.get_added_tokens_decoder().items():
        is_unknown = isinstance(backend.model, models.BPE) and token.content == backend.model.unk_token
        if token.special and not is_unknown and number in backend.encode(token.content, add_special_tokens=False).ids:
            what = f"its tokenizer gives the special id {number} for the text {token.content}"
            raise ValueError(f"{folder}: {what}: it cannot be used")


def _read_original(folder: Path) -> str:
    """Text of tokenizer.json, or of the one that GPT-2's old files stand for."""
    path, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if is_there(path):
        content = read_file(path)
        require_content(path, content)
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8 text") from None
    if is_there(vocab) and is_there(merges):
        try:
            backend = Backend(models.BPE.from_file(str(vocab), str(merges)))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{vocab} and {merges.name}: the tokenizers library cannot read them: {error}") from None
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        return backend.to_str()
    if is_there(folder / "tokenizer.model"):
        require_content(folder / "tokenizer.model", read_file(folder / "tokenizer.model"))
        raise ValueError(
            f"{folder}: only a SentencePiece model: write its tokenizer.json with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    raise ValueError(f"{folder}: no tokenizer there: it needs tokenizer.json, or vocab.json with merges.txt")


def _parse_backend(original: str, folder: Path) -> Backend:
    path = folder / "tokenizer.json"
    try:
        backend = Backend.from_str(original)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: the tokenizers library cannot read it: {error}") from None
    if not isinstance(backend.model, models.BPE):
        raise ValueError(f"{path}: its model is {type(backend.model).__name__}: only BPE tokenizers are read")
    return backend


def _special_token(folder: Path, kind: str, backend: Backend) -> str | None:
    """The bos or eos: named by the tokenizer's files, or by id in the model's."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        name = read_settings(folder / file).get(f"{kind}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if name:
            return name
    for file in ("generation_config.json", "config.json"):
        number = read_settings(folder / file).get(f"{kind}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        name = backend.id_to_token(number) if isinstance(number, int) else None
        if name:
            return name
    return None
