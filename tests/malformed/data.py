"""Malformed data: shards, tokenizers, examples, prompts, text."""

import json
from collections.abc import Iterator
from typing import Any

from tests.malformed.case import BINARY, DEEP_LIST, DEEP_MAP, Case, finetune, train

HUGE = 10**30
TYPES = {"text": "x", "list": [1], "map": {}, "float": 2.5, "negative": -3, "of 100 bits": HUGE, "null": None}


def manifests() -> Iterator[Case]:
    """The header and the rows of the manifest of a source."""
    header: dict[str, Any] = {
        "kind": "tokens", "tokenizer_sha256": None, "vocab_size": 320, "problems": {}, "num_shards": 1,
        "num_documents": 3, "num_tokens": 9, "row_bytes": 10, "rows_sha256": "", "format": "looped-shards",
        "version": 1,
    }  # fmt: skip
    files = {
        f"{key}: {what}": json.dumps(header | {key: value}) + '\n{"a": 1} \n'
        for key in header
        for what, value in TYPES.items()
        if header[key] != value and not (key == "rows_sha256" and what == "text")
    }
    files |= {
        "an unknown key": json.dumps(header | {"more": 1}) + "\n", "a list": "[]\n", "a number": "3\n", "a text": '"a"',
        "no JSON": "{\n", "empty": "", "nested lists": DEEP_LIST + "\n", "nested maps": DEEP_MAP + "\n", "null": "null",
    }  # fmt: skip
    files["binary"] = BINARY  # type: ignore[assignment]
    for name, content in files.items():
        yield train(
            f"manifest, {name}", "data.sources=[{path: {here}/data}]", files={"data/manifest.jsonl": content},
            words=("data",),
        )  # fmt: skip
    row = {"shard": "a.tar", "documents": 3, "tokens": 9, "bytes": 10, "sha256": "", "index_sha256": ""}
    rows = {f"{key}: {what}": json.dumps(row | {key: value}) for key in row for what, value in TYPES.items()}
    rows |= {"of another folder": json.dumps(row | {"shard": "../a.tar"}), "a list": "[1]", "no JSON": "{"}
    for name, line in rows.items():
        head = json.dumps(header | {"row_bytes": len(line) + 1, "kind": "text"}) + "\n"
        yield train(
            f"row of a manifest, {name}", "data.sources=[{path: {here}/data}]",
            files={"data/manifest.jsonl": head + line + "\n"}, words=("data",),
        )  # fmt: skip


def tokenizers() -> Iterator[Case]:
    """Tokenizer files."""
    symbols = {"format": "looped-symbol-tokenizer", "version": 1, "symbols": ["a"]}
    published = {"format": "looped-bpe-tokenizer", "version": 1}
    lists = {
        "none": [],
        "a text": "abc",
        "numbers": [1, 2],
        "an empty one": ["a", ""],
        "twice": ["a", "a"],
        "null": None,
    }
    contents: dict[str, str | bytes] = {
        f"symbols, {name}": json.dumps(symbols | {"symbols": it}) for name, it in lists.items()
    }
    contents |= {
        "nested": json.dumps(symbols).replace('["a"]', DEEP_LIST), "nested maps": DEEP_MAP, "no JSON": "{", "empty": "",
        "a list": "[]", "binary": BINARY, "version a text": json.dumps(symbols | {"version": "x"}),
        "a published one without fields": json.dumps(published),
        "a published one, nested": json.dumps(published | {"tokenizer_json": DEEP_MAP}),
    }  # fmt: skip
    for name, content in contents.items():
        at, files = "data.tokenizer={here}/t.json", {"t.json": content}
        yield train(f"tokenizer, {name}", at, files=files, words=("t.json",))
        yield finetune(f"tokenizer, {name}", at, files=files, words=("t.json",))
    for name in ("nested maps", "symbols, numbers", "empty"):
        files = {"t.json": contents[name]}
        arguments = ("--input", "{world}/text.jsonl", "--output", "{here}/out", "--workers", "0")
        yield Case(
            name=f"tokenizer, {name}", command="tools.prepare_data", files=files, words=("t.json",),
            arguments=(*arguments, "--tokenizer", "{here}/t.json"), is_light=True,
        )  # fmt: skip
        yield Case(
            name=f"tokenizer, {name}", command="tools.generate", files=files, words=("t.json",),
            arguments=("--run", "{world}/pretrained", "--prompt", "1", "--tokenizer", "{here}/t.json"),
        )  # fmt: skip


def examples() -> Iterator[Case]:
    """Examples to fine-tune on and to answer, and prompts."""
    good = '[{"question": "a", "steps": ["b"], "answer": "c"}]'
    contents: dict[str, str | bytes] = {
        "nested": DEEP_LIST, "nested maps": DEEP_MAP, "a map": "{}", "empty": "", "no JSON": "[", "binary": BINARY,
        "no rows": "[]", "rows of numbers": "[1]", "steps a text": good.replace('["b"]', '"b"'),
        "answer a number": good.replace('"c"', "3"), "question a list": good.replace('"a"', "[]"),
        "an empty question": good.replace('"a"', '""'), "steps of numbers": good.replace('"b"', "1"),
        "a lone surrogate": good.replace('"a"', '"\\udcff"'), "a row that lacks its answer": '[{"question": "a"}]',
    }  # fmt: skip
    for name, content in contents.items():
        section = "data.train={path: {here}/e.json, task: null, num_examples: null, parameters: {}}"
        yield finetune(f"examples, {name}", section, files={"e.json": content}, words=("e.json",))
        yield Case(
            name=f"--data, {name}", command="tools.eval_coconut", files={"e.json": content}, words=("e.json",),
            arguments=("--run", "{world}/finetuned", "--data", "{here}/e.json"),
        )  # fmt: skip
    run = ("--run", "{world}/pretrained")
    for name, content, words in (("binary", BINARY, "p.txt"), ("empty", b"", "prompt"), ("blank", b"\n \n", "prompt")):
        yield Case(
            name=f"prompts, {name}", command="tools.generate", files={"p.txt": content}, words=(words,), is_light=True,
            arguments=(*run, "--prompt-file", "{here}/p.txt"),
        )  # fmt: skip
    for name, prompt in (("a lone surrogate", "1\udcff"), ("other symbols", "1x")):
        yield Case(
            name=f"--prompt, {name}", command="tools.generate", arguments=(*run, "--prompt", "1", "--prompt", prompt),
            words=("prompt 2: character 1",),
        )  # fmt: skip


def texts() -> Iterator[Case]:
    """Text to make shards and tokenizers of."""
    prepare = ("--output", "{here}/out", "--keep-text", "--workers", "0")
    contents: dict[str, str | bytes] = {
        "nested": DEEP_LIST, "binary": BINARY * 20, "empty": "", "numbers": "1\n2\n", "no text": '{"txt": "a"}\n' * 50,
        "text a number": '{"text": 3}\n', "text null": '{"text": null}\n', "a lone surrogate": '{"text": "\\udcff"}\n',
        "blank": '{"text": " "}\n', "cut": '{"text": "a', "a NUL": "\0\n",
    }  # fmt: skip
    for name, content in contents.items():
        arguments = ("--input", "{here}/a.jsonl", *prepare)
        yield Case(
            name=f"text, {name}", command="tools.prepare_data", files={"a.jsonl": content}, arguments=arguments,
            words=("a.jsonl", "the inputs hold no document"), is_light=True,
        )  # fmt: skip
        yield Case(
            name=f"text, {name}, --strict", command="tools.prepare_data", files={"a.jsonl": content},
            arguments=(*arguments, "--strict"), words=("a.jsonl",), is_light=True,
        )  # fmt: skip
    for name, pattern, words in (
        ("a folder", "{here}", "is a folder"), ("no file", "{here}/*.jsonl", "no such file"),
        ("another kind", "{world}/tokenizer.model", "tokenizer.model"), ("an unknown scheme", "nope://a.txt", "nope"),
    ):  # fmt: skip
        yield Case(
            name=f"--input, {name}", command="tools.prepare_data", arguments=("--input", pattern, *prepare),
            words=(words,), is_light=True,
        )  # fmt: skip
    for name in ("empty", "no text", "nested"):
        arguments = ("--input", "{here}/a.jsonl", "--output", "{here}/t.model", "--vocab-size", "300")
        yield Case(
            name=f"text, {name}", command="tools.train_tokenizer", files={"a.jsonl": contents[name]},
            arguments=arguments, words=("a.jsonl", "hold no document"), is_light=True,
        )  # fmt: skip


def cases() -> Iterator[Case]:
    for kind in (manifests, tokenizers, examples, texts):
        yield from kind()
