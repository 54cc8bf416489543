"""What a published model says of its use survives import, surgery and export, and generation obeys it: chat template,
all end tokens, padding, temperature, top p and top k."""

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from pretrain.api import load_run
from pretrain.data.tokenizers.published import import_tokenizer
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.usage import Usage
from pretrain.eval.chat import chat_prompt
from pretrain.generation.sampling import Generation, choose_tokens
from pretrain.hf.exporting import export_run
from pretrain.hf.importing import import_model
from pretrain.hf.surgery import Surgery, loop_model
from tests.unit.hf.test_convert import LLAMA, VOCAB, byte_level, publish  # noqa: F401
from tools import generate as generate_tool

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou fold.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + '<|im_start|>assistant\n' }}{% endif %}"
)
SETTINGS = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, byte_level: Path) -> Path:  # noqa: F811
    """A model that chats: two end tokens, one for padding, settings of its own."""
    folder = publish(tmp_path_factory.mktemp("published"), byte_level, "Llama", LLAMA)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<|pad|>")])
    backend.save(str(folder / "tokenizer.json"))
    ids = {name: backend.token_to_id(name) for name in ("<|endoftext|>", "<|im_end|>", "<|pad|>")}
    update(folder / "tokenizer_config.json", pad_token="<|pad|>", eos_token="<|im_end|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    numbers = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ends, "pad_token_id": ids["<|pad|>"]}
    update(folder / "config.json", **numbers)
    (folder / "generation_config.json").write_text(json.dumps(numbers | SETTINGS))
    return folder


@pytest.fixture(scope="module")
def run(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "imported"
    import_model(published, directory, new_tokens=False)
    return directory


def update(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def files_of_use(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return {
        "ids": {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokens": {name: settings[name] for name in ("bos_token", "eos_token", "pad_token")},
        "generation": json.loads((folder / "generation_config.json").read_text()),
        "template": AutoTokenizer.from_pretrained(folder).chat_template,
    }


def test_an_export_says_what_the_publisher_said(published: Path, run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out")
    assert files_of_use(tmp_path / "out") == files_of_use(published)
    loop_model(run, tmp_path / "looped", Surgery(num_loop_layers=2, num_loops=2))
    export_run(tmp_path / "looped", tmp_path / "out2")
    assert files_of_use(tmp_path / "out2") == files_of_use(published)
    import_model(tmp_path / "out", tmp_path / "again", new_tokens=False)
    assert load_run(tmp_path / "again").tokenizer.usage == load_run(run).tokenizer.usage


def test_a_model_without_such_files_says_what_it_always_did(tmp_path: Path, byte_level: Path) -> None:  # noqa: F811
    folder = publish(tmp_path / "plain", byte_level, "Llama", LLAMA)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config = json.loads((folder / "config.json").read_text())
        config.pop(name, None)
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    tokenizer = Tokenizer.from_bytes(import_tokenizer(folder))
    assert tokenizer.usage == Usage() and tokenizer.end_ids == (tokenizer.eos_id,)
    assert tokenizer.pad_id == tokenizer.eos_id


def test_the_tokenizer_is_the_same_whatever_is_said_of_its_use(published: Path, tmp_path: Path) -> None:
    """Shards and runs made with it stay usable."""
    content = import_tokenizer(published, new_tokens=False)
    fields = json.loads(content)
    assert fields.pop("usage")["chat_template"] == TEMPLATE
    before = json.dumps(fields, ensure_ascii=False, indent=1).encode()  # the file of an import that did not keep it
    assert Tokenizer.from_bytes(content).sha256 == Tokenizer.from_bytes(before).sha256 == sha256(before).hexdigest()
    assert Tokenizer.from_bytes(content).pad_id != Tokenizer.from_bytes(before).pad_id


@pytest.mark.parametrize("message", ["the loop runs", " two\nlines <|im_end|> ", "äöü {{ 7 * 7 }}", ""])
def test_a_chat_has_the_ids_that_transformers_makes(published: Path, run: Path, message: str) -> None:
    tokenizer = load_run(run).tokenizer
    theirs = AutoTokenizer.from_pretrained(published).apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
    )
    assert chat_prompt(tokenizer, message) == theirs


def test_generation_ends_at_each_of_the_end_tokens(run: Path) -> None:
    loaded = load_run(run)
    assert len(loaded.tokenizer.end_ids) == 2
    for end in loaded.tokenizer.end_ids:
        with torch.no_grad():
            saved = loaded.model.get_parameter("head.weight").clone()
            loaded.model.get_parameter("head.weight").zero_()[end] = 0.0
        # the likeliest token of every state, or of its opposite
        states = loaded.states("the loop", num_loops=[1])[0][-1]
        with torch.no_grad():
            loaded.model.get_parameter("head.weight")[end] = states
        assert loaded.generate("the loop", temperature=0.0) == ""
        with torch.no_grad():
            loaded.model.get_parameter("head.weight").copy_(saved)


def test_settings_are_the_publishers_unless_given(run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(run)
    how: dict[str, Any] = {"max_new_tokens": 12, "seed": 3}
    given = loaded.generate("the loop", temperature=0.7, top_p=0.9, top_k=20, **how)
    assert loaded.generate("the loop", **how) == given
    assert loaded.generate("the loop", temperature=0.0, **how) == loaded.generate(
        "the loop", temperature=0.0, top_k=0, top_p=1.0, **how
    )
    options = ["generate.py", "--run", str(run), "--prompt", "the loop", "--max-new-tokens", "12", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", options)
    assert generate_tool.main() == 0
    said = capsys.readouterr()
    assert said.out == "the loop" + given + "\n"
    assert "warning: repetition_penalty=1.1 of the model's own settings is not obeyed" in said.err
    monkeypatch.setattr(sys, "argv", [*options, "--chat", "--temperature", "0", "--top-k", "0", "--top-p", "1"])
    assert generate_tool.main() == 0
    assert capsys.readouterr().out == loaded.generate("the loop", chat=True, temperature=0.0, **how) + "\n"


def test_top_k_draws_among_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(1000, 4)
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    settings = Generation(max_new_tokens=1, vocab_size=4, temperature=1.0, top_k=2)
    drawn = choose_tokens(logits, settings, uniforms)
    share = float(torch.tensor([3.0, 2.0]).softmax(0)[0])
    assert set(drawn.tolist()) == {1, 3} and float((drawn == 1).double().mean()) == pytest.approx(share, abs=0.002)
    cut = choose_tokens(
        logits, Generation(max_new_tokens=1, vocab_size=4, temperature=1.0, top_k=2, top_p=0.73), uniforms
    )
    assert set(cut.tolist()) == {1}  # 0.731 of the two, 0.64 of all four


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "this model has no chat template: its prompts are plain text"),
        ("{{ raise_exception('no users here') }}", "the model's chat template fails: no users here"),
        ("{% for", "the model's chat template fails: "),
        ("{{ messages.append(1) }}", "the model's chat template fails: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "the model's chat template fails: "),
        ("{{ 1 // 0 }}", "the model's chat template fails: "),
        ("{{ messages[7].role.name }}", "the model's chat template fails: "),
    ],
)
def test_a_template_that_fails_is_one_line_and_runs_nothing(run: Path, template: str | None, message: str) -> None:
    tokenizer = load_run(run).tokenizer
    tokenizer.usage = Usage(chat_template=template)
    with pytest.raises(ValueError) as caught:
        chat_prompt(tokenizer, "hello")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"eos_token_id": ["a"]}, "eos_token_id: needs ids of tokens, got 'a'"),
        ("generation_config.json", {"eos_token_id": -1}, "eos_token_id: needs ids of tokens, got '-1'"),
        ("generation_config.json", {"temperature": "hot"}, "temperature: needs a number, got 'hot'"),
        ("generation_config.json", {"top_k": 0.5}, "top_k: needs a number, got '0.5'"),
        ("tokenizer_config.json", {"chat_template": [{"name": "tool_use", "template": "a"}]}, "chat_template: needs"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template: needs a text, or a list"),
    ],
)
def test_files_that_are_not_of_their_form_are_named(
    published: Path, tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    for path in published.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").unlink()
    text = (tmp_path / file).read_text()
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(text)
    update(tmp_path / file, **values)
    with pytest.raises(ValueError) as caught:
        import_tokenizer(tmp_path, new_tokens=False)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_symbol_or_own_tokenizer_has_no_chat(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load("symbols:abc")
    assert tokenizer.end_ids == (tokenizer.eos_id,)
    with pytest.raises(ValueError, match="no chat template"):
        chat_prompt(tokenizer, "abc")
    with pytest.raises(ValueError, match="no special tokens"):
        tokenizer.encode_markup("abc")
