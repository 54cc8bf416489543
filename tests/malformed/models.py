"""Malformed files of published models: config.json, weights and their index."""

import json
from collections.abc import Iterator
from typing import Any

from tests.malformed.case import BINARY, DEEP_LIST, DEEP_MAP, Case

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 24, "hidden_act": "silu",
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
VALUES = {
    "a text": "x", "digits": "32", "a float": 32.5, "negative": -4, "0": 0, "a list": [32], "a map": {}, "null": None,
    "100 bits": 10**30,
}  # fmt: skip
ODD: tuple[tuple[str, Any], ...] = (
    ("rope_theta", "x"), ("rope_theta", -1), ("rms_norm_eps", "x"), ("rms_norm_eps", -1), ("initializer_range", "x"),
    ("hidden_act", 3), ("hidden_act", "nope"), ("rope_scaling", "x"), ("rope_scaling", {"type": "linear", "factor": 2}),
    ("tie_word_embeddings", "x"), ("head_dim", "x"), ("head_dim", -1), ("layer_types", 3), ("layer_types", ["a"] * 2),
    ("quantization_config", 3), ("attention_bias", "x"), ("mlp_bias", True), ("pretraining_tp", "x"),
    ("num_hidden_layers", 10**9), ("hidden_size", 34), ("num_key_value_heads", 3),
)  # fmt: skip


def imported(name: str, files: dict[str, str | bytes], *words: str) -> Case:
    return Case(
        name=name, command="tools.convert_checkpoint", files={f"model/{file}": it for file, it in files.items()},
        arguments=("import", "--model", "{here}/model", "--run", "{here}/new"), words=words,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    contents: dict[str, str | bytes] = {
        "a list": "[]", "a number": "3", "a text": '"a"', "null": "null", "no JSON": "{", "empty": "", "binary": BINARY,
        "nested": DEEP_LIST, "nested maps": DEEP_MAP, "no model_type": "{}", "model_type a list": '{"model_type": []}',
        "model_type unknown": '{"model_type": "nope"}',
        "looped, of text": '{"model_type": "looped_gpt", "hidden_size": "x"}',
    }  # fmt: skip
    sizes = "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads max_position_embeddings"
    for key in (*sizes.split(), "intermediate_size"):
        contents |= {
            f"{key} {name}": json.dumps(LLAMA | {key: value})
            for name, value in VALUES.items()
            if (key, name) not in (("num_key_value_heads", "null"), ("max_position_embeddings", "100 bits"))
        }
    contents |= {f"{key}={value!r}": json.dumps(LLAMA | {key: value}) for key, value in ODD}
    for name, content in contents.items():
        yield imported(f"config.json, {name}", {"config.json": content}, "model/config.json: ")
    maps: dict[str, str] = {
        "a list": '{"weight_map": [1]}', "of numbers": '{"weight_map": {"a": 1}}', "null": '{"weight_map": null}',
        "nested": '{"weight_map": {"a": ' + DEEP_LIST, "outside": '{"weight_map": {"a": "../b"}}', "missing": "{}",
    }  # fmt: skip
    for file in ("model.safetensors", "pytorch_model.bin"):
        for name in ("nested", "empty", "a list", "no JSON", "null", "binary"):
            files = {"config.json": json.dumps(LLAMA), "tokenizer.json": "{}"}
            yield imported(f"{file}, {name}", {**files, file: contents[name]}, f"model/{file}: ")
            yield imported(f"index of {file}, {name}", {**files, f"{file}.index.json": contents[name]}, file)
        for name, content in maps.items():
            files = {"config.json": json.dumps(LLAMA), f"{file}.index.json": content}
            yield imported(f"map of {file}, {name}", files, f"model/{file}.index.json: ")
