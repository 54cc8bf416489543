"""A GGUF file of Llama, Qwen 2 or Qwen 3 as the folder of a published model, from which it is imported like any other.

Names and the order of rows are those of `gguf_names.py`. Quantised weights become float32.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from pretrain.hf.gguf_file import GGUFFile
from pretrain.hf.gguf_names import ARCHITECTURES, published_name, turned_heads
from pretrain.hf.gguf_tokenizer import NoTokenizer, write_tokenizer
from pretrain.hf.names import turned_rows
from pretrain.storage import is_there

FILE_BYTES = 2 << 30
"""A file of weights is closed once it holds so many."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_REFUSED = {"rope_freqs.weight": "rope scaling", "expert_count": "mixture of experts"}


def write_folder(path: Path, folder: Path, tokenizer: Path | None) -> None:
    """Write configuration, weights and tokenizer.

    Args:
        path: the GGUF file.
        folder: an empty folder.
        tokenizer: folder with the tokenizer's files of the same model. Default: that of the GGUF file.

    Raises:
        ValueError: it is damaged, of another architecture, or has what this model or the tokenizers here do not.
        OSError: reading or writing failed.
        ImportError: it is quantised in a way that takes the gguf package, and that is not installed.
    """
    file = GGUFFile(path)
    config = _config(file)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if tokenizer is None:
        try:
            write_tokenizer(file.settings, folder)
        except NoTokenizer as error:
            raise ValueError(f"{path}: its tokenizer {error}: name a folder that has it with --tokenizer") from None
    else:
        _copy_tokenizer(tokenizer, folder)
    _write_weights(file, folder, config)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    found = [name for name in TOKENIZER_FILES if is_there(source / name)]
    if not found:
        raise ValueError(f"--tokenizer {source}: holds none of {', '.join(TOKENIZER_FILES[:3])}")
    for name in found:
        shutil.copyfile(source / name, folder / name)


def _config(file: GGUFFile) -> dict[str, Any]:
    """The values of config.json."""
    path, settings = file.path, file.settings
    kind = settings.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(f"{path}: its architecture is {kind!r}; those that are read: {', '.join(ARCHITECTURES)}")
    for name, feature in _REFUSED.items():
        if name in file.tensors or settings.get(f"{kind}.{name}"):
            raise ValueError(f"{path}: {feature} is not supported ({name})")
    if settings.get(f"{kind}.rope.scaling.type", "none") != "none":
        raise ValueError(f"{path}: rope scaling is not supported ({settings[f'{kind}.rope.scaling.type']})")

    def number(name: str, default: float | None = None, of: type = int) -> Any:
        value = settings.get(f"{kind}.{name}", default)
        if not isinstance(value, (of, int)) or isinstance(value, bool) or value <= 0:
            raise ValueError(f"{path}: {kind}.{name} is {str(value)[:60]}: a number above 0 is needed")
        return value

    width, heads = number("embedding_length"), number("attention.head_count")
    head = number("attention.key_length", width // heads or None)
    if number("rope.dimension_count", head) != head or number("attention.value_length", head) != head:
        raise ValueError(f"{path}: {kind}.rope.dimension_count and heads differ: partial rotation is not supported")
    if "token_embd.weight" not in file.tensors:
        raise ValueError(f"{path}: has no tensor token_embd.weight")
    return {
        "architectures": [f"{ARCHITECTURES[kind]}ForCausalLM"], "model_type": kind, "hidden_size": width,
        "num_attention_heads": heads, "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head, "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"), "max_position_embeddings": number("context_length"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", of=float),
        "rope_theta": number("rope.freq_base", 10000.0, of=float), "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors, **_ids(file),
    }  # fmt: skip


def _ids(file: GGUFFile) -> dict[str, Any]:
    """bos, eos and pad; a token that ends a turn of a chat ends a text, too."""
    found = {name: file.settings.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding", "eot")}
    ends = list(dict.fromkeys(found[name] for name in ("eos", "eot") if found[name] is not None))
    ids = {"bos_token_id": found["bos"], "pad_token_id": found["padding"]}
    return ids | {"eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def _tensors(file: GGUFFile, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its name in the published model."""
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    for name in tqdm(file.tensors, desc="read", unit="tensor", disable=None):
        if (published := published_name(name)) is None:
            raise ValueError(f"{file.path}: the tensor {name[:60]} has no place in a {config['architectures'][0]}")
        tensor = file.read(name)
        if turned := turned_heads(config["model_type"], name, *heads):
            if len(tensor) % (2 * turned):
                what = f"{len(tensor)} rows, which are no even number for each of {turned} heads"
                raise ValueError(f"{file.path}: {name} has {what}")
            tensor = turned_rows(tensor, turned, (-1, 2)).contiguous()
        yield published, tensor


def _write_weights(file: GGUFFile, folder: Path, config: dict[str, Any]) -> None:
    held: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    number = 0

    def close() -> None:
        nonlocal number
        number += 1
        name = f"model-{number:05d}.safetensors"
        save_file(held, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(held, name))
        held.clear()

    for name, tensor in _tensors(file, config):
        held[name] = tensor
        if sum(each.nbytes for each in held.values()) > FILE_BYTES:
            close()
    if held:
        close()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
