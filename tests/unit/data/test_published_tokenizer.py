"""Published tokenizers: used as they are, deaf to special tokens in text, new ids after the model's embedding."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from pretrain.data.shards import EXTENSIONS, encode_tokens
from pretrain.data.stream.framing import frame_document
from pretrain.data.tokenizers.published import FORMAT, PublishedTokenizer, import_tokenizer
from pretrain.data.tokenizers.tokenizer import THOUGHT_TOKENS, Tokenizer
from tests.support.corpus import make_texts

ONE, BOS, EOS = "<|endoftext|>", "<|begin|>", "<|end|>"
SPELLED = st.sampled_from([ONE, BOS, EOS, "<think>", "</s>", "  ", "\n\n", *THOUGHT_TOKENS])
TEXTS = st.lists(st.one_of(SPELLED, st.text(st.characters(exclude_categories=["Cs"]), max_size=20)), max_size=8).map(
    "".join
)


def train_backend(*specials: str) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
    )
    backend.train_from_iterator([*make_texts(40), f"{ONE}{BOS}{EOS}" * 50], trainer)
    return backend


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def write_one_separator(folder: Path) -> None:
    """As OLMo: one token for bos and eos, named in tokenizer_config.json."""
    train_backend(ONE).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": None, "eos_token": {"content": ONE}})


def write_two_separators(folder: Path) -> None:
    """As Llama 3: bos and eos by id, a template that adds both, a piece of text that was added; with truncation and
    padding on."""
    backend = train_backend(BOS, EOS)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    backend.enable_truncation(8)
    backend.enable_padding(length=8, pad_id=1, pad_token=EOS)
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"clean_up_tokenization_spaces": True})
    write_json(folder / "config.json", {"bos_token_id": 0, "eos_token_id": 5})
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 0]})


def write_old_form(folder: Path) -> None:
    """As GPT-2: vocab.json and merges.txt, the separator a plain entry of the vocabulary."""
    train_backend(ONE).model.save(str(folder))
    write_json(folder / "special_tokens_map.json", {"eos_token": ONE})


def write_merged_special(folder: Path) -> None:
    """As Llama 2: characters, no pre-tokenizer, and merges that lead to the special token's name."""
    vocabulary = {
        piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", "<", "/", "s", ">", "</", "s>", " "])
    }
    backend = Backend(models.BPE(vocabulary, [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s>")], unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})


FORMS = {"one separator": write_one_separator, "two separators": write_two_separators, "old form": write_old_form}


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    FORMS[request.param](folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PublishedTokenizer:
    return PublishedTokenizer(import_tokenizer(folder, first_new_id=400))


@given(text=TEXTS)
@settings(deadline=None, max_examples=150)
def test_decode_inverts_encode_and_no_text_gives_a_special_id(tokenizer: PublishedTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert max(ids, default=0) < 400
    (batch,) = tokenizer.encode_batch([text])
    assert batch.dtype == np.int32 and batch.tolist() == ids


def test_plain_text_gets_the_publishers_ids(folder: Path, tokenizer: PublishedTokenizer) -> None:
    theirs = Backend.from_str(tokenizer.original)
    theirs.no_truncation()
    theirs.no_padding()
    for text in make_texts(20):
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert len(tokenizer.encode("one two three four five " * 10)) > 8
    if (folder / "tokenizer.json").exists():
        assert tokenizer.original.encode() == (folder / "tokenizer.json").read_bytes()


def test_a_token_that_was_added_but_is_not_special_is_text() -> None:
    backend = train_backend(BOS, EOS)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    content = {"format": FORMAT, "version": 1, "bos_token": BOS, "eos_token": EOS, "new_tokens": {}}
    tokenizer = PublishedTokenizer(json.dumps({**content, "tokenizer_json": backend.to_str()}).encode())
    ids = tokenizer.encode("a<think>b")
    assert backend.token_to_id("<think>") in ids
    assert tokenizer.decode(ids) == "a<think>b"


def test_new_tokens_follow_the_embedding_and_are_silent(tokenizer: PublishedTokenizer) -> None:
    assert (tokenizer.bot_id, tokenizer.eot_id, tokenizer.latent_id, tokenizer.pause_id) == (400, 401, 402, 403)
    assert tokenizer.vocab_size == 404
    word = tokenizer.encode("the loop")
    framed = [tokenizer.bos_id, *word, tokenizer.bot_id, tokenizer.latent_id, tokenizer.eot_id, 350, tokenizer.eos_id]
    assert tokenizer.decode(framed) == "the loop"


def test_without_new_tokens_there_are_none(folder: Path) -> None:
    tokenizer = PublishedTokenizer(import_tokenizer(folder, new_tokens=False))
    last = max(Backend.from_str(tokenizer.original).get_vocab().values())
    assert tokenizer.vocab_size == last + 1
    with pytest.raises(ValueError, match=r"imported without <bot> .* new_tokens=True"):
        _ = tokenizer.bot_id
    assert PublishedTokenizer(import_tokenizer(folder)).bot_id == last + 1


def test_the_file_is_known_by_its_content(folder: Path, tmp_path: Path) -> None:
    content = import_tokenizer(folder)
    assert content == import_tokenizer(folder)
    (tmp_path / "tokenizer.model").write_bytes(content)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.model")
    assert isinstance(tokenizer, PublishedTokenizer)
    assert tokenizer.sha256 == PublishedTokenizer(content).sha256


def test_separators_are_found_where_publishers_name_them(tmp_path: Path) -> None:
    expected = {"one separator": (ONE, ONE), "two separators": (BOS, EOS), "old form": (ONE, ONE)}
    for name, write in FORMS.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        tokenizer = PublishedTokenizer(import_tokenizer(tmp_path / name))
        assert (tokenizer.bos_token, tokenizer.eos_token) == expected[name]
        assert tokenizer.separators.are_one == (name != "two separators")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_one_separator_stands_before_a_document_and_two_around_it(
    tokenizer: PublishedTokenizer, extension: str
) -> None:
    text = "one two\n"
    ids = tokenizer.encode(text)
    npy = encode_tokens(np.array(ids, dtype=np.int32), tokenizer.vocab_size)
    payload = {"npy": npy, "txt": text.encode(), "json": json.dumps({"text": text}).encode()}[extension]
    framed = frame_document(payload, EXTENSIONS.index(extension), tokenizer).read(0, 99).tolist()
    assert framed == [tokenizer.bos_id, *ids, *(() if tokenizer.separators.are_one else (tokenizer.eos_id,))]


def test_merges_that_spell_a_special_token_are_left_out(tmp_path: Path) -> None:
    write_merged_special(tmp_path)
    assert Backend.from_file(str(tmp_path / "tokenizer.json")).model.tokenize("</s>")[0].id == 2
    tokenizer = PublishedTokenizer(import_tokenizer(tmp_path))
    assert tokenizer.encode("<s> </s>") == [3, 8, 9, 7, 8]


def test_a_lone_surrogate_is_refused(tokenizer: PublishedTokenizer) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        tokenizer.encode("a\ud800b")


def test_what_cannot_be_imported_says_why(tmp_path: Path) -> None:
    def refused(match: str, **arguments: int) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            import_tokenizer(tmp_path, **arguments)
        assert "\n" not in str(caught.value)

    refused("no tokenizer there")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    refused("only a SentencePiece model: .* transformers")
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    refused(r"tokenizer\.json: the tokenizers library cannot read it")
    Backend(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    refused("its model is WordLevel")
    train_backend(ONE).save(str(tmp_path / "tokenizer.json"))
    refused("no end-of-text token")
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    refused("</s> is named as bos or eos, but")
    (tmp_path / "tokenizer_config.json").write_text("{")
    refused(r"tokenizer_config\.json: not JSON")
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": ONE})
    refused(
        "its tokenizer has ids up to 3\\d*, its config.json 10 rows of vocabulary: .* with --no-new-tokens",
        first_new_id=10,
    )
    train_backend(ONE, "<pause>").save(str(tmp_path / "tokenizer.json"))
    refused("has a token <pause> of its own")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "it is not JSON"),
        ("{}", "its format is not"),
        (f'{{"format": "{FORMAT}", "version": 2}}', "its version is 2"),
        (
            f'{{"format": "{FORMAT}", "version": 1, "new_tokens": {{}}}}',
            "it has no bos_token, eos_token, tokenizer_json",
        ),
    ],
)
def test_a_file_that_is_not_of_the_format_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"t\.json: not a tokenizer of this project: {message}"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("form", "option", "expected"),
    [
        ("one separator", None, False), ("one separator", True, True), ("two separators", None, True),
        ("two separators", False, False), ("old form", None, False),
    ],
)  # fmt: skip
def test_a_text_begins_with_bos_as_the_publisher_says(
    tmp_path: Path, form: str, option: bool | None, expected: bool
) -> None:
    """By the option of tokenizer_config.json, else by the template of tokenizer.json, which also tells what files from
    before it was kept mean."""
    FORMS[form](tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, settings if option is None else settings | {"add_bos_token": option})
    fields = json.loads(import_tokenizer(tmp_path))
    assert PublishedTokenizer(json.dumps(fields).encode()).adds_bos is expected
    del fields["adds_bos"]
    assert PublishedTokenizer(json.dumps(fields).encode()).adds_bos is (form == "two separators")
