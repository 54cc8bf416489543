"""A GGUF file of Llama, Qwen 2 or Qwen 3 as the folder of a published model, from which it is imported like any other.

llama.cpp has each tensor under a name of its own, and for Llama the rows of queries and keys of a head in another
order, as its rotation turns neighbours and that of transformers halves: row 2i + j of a head there is row j·(d/2) + i
here.
Quantised weights become float32.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from pretrain.hf.gguf_file import GGUFFile
from pretrain.hf.gguf_tokenizer import NoTokenizer, write_tokenizer
from pretrain.storage import is_there

FILE_BYTES = 2 << 30
"""A file of weights is closed once it holds so many."""
ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
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
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name in tqdm(file.tensors, desc="read", unit="tensor", disable=None):
        if name in _OUTSIDE:
            yield _OUTSIDE[name], file.read(name)
            continue
        found = _IN_LAYER.fullmatch(name)
        if found is None or found[2] not in _PARTS:
            raise ValueError(f"{file.path}: the tensor {name[:60]} has no place in a {config['architectures'][0]}")
        tensor = file.read(name)
        if config["model_type"] == "llama" and found[2] in heads:
            tensor = _halves(tensor, heads[found[2]], f"{file.path}: {name}")
        yield f"model.layers.{int(found[1])}.{_PARTS[found[2]]}.{found[3]}", tensor


def _halves(tensor: Tensor, num_heads: int, what: str) -> Tensor:
    """Rows of queries or keys in the order of transformers."""
    if len(tensor) % (2 * num_heads):
        raise ValueError(f"{what} has {len(tensor)} rows, which are no even number for each of {num_heads} heads")
    pairs = tensor.reshape(num_heads, len(tensor) // num_heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()


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
