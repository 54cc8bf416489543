"""Import of GGUF files: weights of every type, the order of queries and keys, tokenizers of both kinds, and what is
cut, damaged or not known."""

import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from gguf.quants import quantize
from tokenizers import Tokenizer as Backend
from torch import Tensor

from pretrain.api import load_run
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.hf.gguf_file import GGUFFile
from pretrain.hf.gguf_folder import write_folder
from pretrain.hf.gguf_tokenizer import PRE_TOKENIZERS, NoTokenizer, write_tokenizer
from pretrain.hf.importing import import_gguf
from tests.unit.hf.test_convert import LLAMA, VOCAB, byte_level  # noqa: F401
from tools import convert_checkpoint

SHAPE = LLAMA | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}  # rows are whole blocks of 32
CASES: dict[str, dict[str, Any]] = {
    "llama": {}, "llama, wide heads, tied": {"head_dim": 32, "tie_word_embeddings": True}, "qwen2": {}, "qwen3": {},
}  # fmt: skip
NAMES = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers.": "blk.",
}  # fmt: skip
TEXT = "the loop runs, don't it?\n\n  1234 äöü 你好 \U0001f642 THE END"


def random_model(case: str) -> Any:
    torch.manual_seed(0)
    name = case.split(",")[0].capitalize()
    config = getattr(transformers, f"{name}Config")(**SHAPE | CASES[case], initializer_range=0.2)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def permute(weight: Tensor, heads: int) -> Tensor:
    """As llama.cpp's convert_hf_to_gguf.py does it."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(
    path: Path, model: Any, tokens: dict[str, Any], kind: str = "F32", *, more: dict[str, str] | None = None
) -> Path:
    config, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if arch != "qwen2":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    for key, value in tokens.items():
        writer.add_key_value(key, *value)
    for key, text in (more or {}).items():
        writer.add_string(key, text)
    type_ = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = name
        for ours, other in NAMES.items():
            theirs = theirs.replace(ours, other)
        for part, heads in (("attn_q.", config.num_attention_heads), ("attn_k.", config.num_key_value_heads)):
            tensor = permute(tensor, heads) if arch == "llama" and part in theirs else tensor
        numbers = tensor.numpy()
        if tensor.dim() == 1 or kind == "F32":
            writer.add_tensor(theirs, numbers)
        elif kind == "F16":
            writer.add_tensor(theirs, numbers.astype(np.float16))
        else:
            writer.add_tensor(theirs, quantize(numbers, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def texts(values: list[str]) -> tuple[Any, ...]:
    return values, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING


def numbers(values: list[int]) -> tuple[Any, ...]:
    return values, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32


def tokens_of(backend: Backend, pre: str) -> dict[str, Any]:
    """The settings of a byte-level tokenizer, as llama.cpp writes them."""
    content = json.loads(backend.to_str())
    ids = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    special = {token["content"] for token in content["added_tokens"]}
    pad = VOCAB - len(ids)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    end = ids.index("<|endoftext|>")
    return {
        "tokenizer.ggml.model": ("gpt2", gguf.GGUFValueType.STRING),
        "tokenizer.ggml.pre": (pre, gguf.GGUFValueType.STRING),
        "tokenizer.ggml.tokens": texts([*ids, *(f"[PAD{number}]" for number in range(pad))]),
        "tokenizer.ggml.token_type": numbers([3 if each in special else 1 for each in ids] + [5] * pad),
        "tokenizer.ggml.merges": texts(merges),
        **{f"tokenizer.ggml.{name}_token_id": (end, gguf.GGUFValueType.UINT32) for name in ("bos", "eos")},
        "tokenizer.chat_template": ("{{ messages[0].content }}", gguf.GGUFValueType.STRING),
    }


@pytest.fixture(scope="module")
def tokens(byte_level: Path) -> dict[str, Any]:  # noqa: F811
    return tokens_of(Backend.from_file(str(byte_level / "tokenizer.json")), "gpt-2")


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_source(tmp_path: Path, tokens: dict[str, Any], case: str, byte_level: Path) -> None:  # noqa: F811
    model = random_model(case)
    path = write_gguf(tmp_path / "a.gguf", model, tokens)
    lines = import_gguf(path, tmp_path / "run", new_tokens=False)
    assert lines[0].startswith(f"{tmp_path}/run: {case.split(',')[0]}, 2 layers deep, {VOCAB} rows of vocabulary")
    run = load_run(tmp_path / "run")
    ids = torch.arange(20) * 7 % VOCAB
    with torch.no_grad():
        wanted = model(ids[None]).logits[0, :, : run.tokenizer.vocab_size]
        torch.testing.assert_close(run.logits(ids.tolist()), wanted, rtol=0, atol=1e-4)
    theirs = Backend.from_file(str(byte_level / "tokenizer.json"))
    assert run.tokenizer.encode(TEXT) == theirs.encode(TEXT).ids and run.tokenizer.decode(run.encode(TEXT)) == TEXT
    assert (run.tokenizer.adds_bos, run.tokenizer.usage.chat_template) == (False, "{{ messages[0].content }}")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("kind", "step"), [("F16", 2**-11), ("BF16", 2**-8), ("Q8_0", 1 / 254), ("Q4_0", 1 / 14)])
def test_weights_of_every_type_are_as_near_as_the_type_allows(
    tmp_path: Path, tokens: dict[str, Any], kind: str, step: float
) -> None:
    """Of a block of 32, the error is at most half a step of the largest number; the tensors are those that the gguf
    package reads."""
    model = random_model("llama")
    path = write_gguf(tmp_path / "a.gguf", model, tokens, kind)
    file, reader = GGUFFile(path), gguf.GGUFReader(path)
    for theirs in reader.tensors:
        wanted = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        torch.testing.assert_close(file.read(theirs.name).float(), torch.tensor(wanted), rtol=0, atol=0)
    stored, exact = file.read("blk.1.ffn_up.weight").float(), model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    largest = exact.reshape(-1, 32).abs().amax(1, keepdim=True)
    error = (stored - exact).reshape(-1, 32).abs()
    assert 0 < float((error / largest).max()) <= step * (1 if kind != "Q4_0" else 2) + 2**-11  # of the scale
    import_gguf(path, tmp_path / "run")
    ids = list(range(20))
    with torch.no_grad():
        ours, source = load_run(tmp_path / "run").logits(ids)[:, :VOCAB], model(torch.tensor([ids])).logits[0]
    assert 0 < float((ours - source).abs().max()) < 60 * step * float(source.abs().max())


def test_what_transformers_reads_of_a_file_is_the_same(tmp_path: Path, tokens: dict[str, Any]) -> None:
    path = write_gguf(tmp_path / "a.gguf", random_model("llama"), tokens, "Q8_0")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    import_gguf(path, tmp_path / "run", new_tokens=False)
    with torch.no_grad():
        wanted = theirs.eval()(torch.tensor([[5, 6, 7, 8]])).logits[0]
    found = load_run(tmp_path / "run").logits([5, 6, 7, 8])
    torch.testing.assert_close(found, wanted[:, : found.shape[1]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("add_prefix", [True, False])
def test_a_sentencepiece_tokenizer_gives_its_own_ids(tmp_path: Path, add_prefix: bool) -> None:
    model, draw = io.BytesIO(), random.Random(0)
    words = ["loop", "ring", "runs", "round", "again", "folding", "folds", "12", "a", "b", "the", "Heinrich", "ä"]
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(400)]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=330, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=add_prefix, remove_extra_whitespaces=False,
        minloglevel=2, user_defined_symbols=["<|user|>"],
    )  # fmt: skip
    theirs: Any = sentencepiece.SentencePieceProcessor()
    theirs.LoadFromSerializedProto(model.getvalue())
    size = theirs.GetPieceSize()
    kinds = [
        2 if theirs.IsUnknown(each) else 3 if theirs.IsControl(each) else 6 if theirs.IsByte(each)
        else 4 if theirs.IdToPiece(each) == "<|user|>" else 1 for each in range(size)
    ]  # fmt: skip
    settings = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [theirs.IdToPiece(each) for each in range(size)],
        "tokenizer.ggml.scores": [theirs.GetScore(each) for each in range(size)], "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": add_prefix,
    }  # fmt: skip
    write_tokenizer(settings, tmp_path)
    ours = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for _ in range(400):
        text = "".join(draw.choices([*words, " ", "  ", "\n", "x", "你", "\U0001f642", "9"], k=draw.randint(1, 20)))
        ids = theirs.EncodeAsIds(text)
        assert ours.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids) == theirs.DecodeIds(ids)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["add_bos_token"]) == ("<s>", "</s>", True)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_text_is_cut_as_the_file_says_before_merges(tmp_path: Path, tokens: dict[str, Any], name: str) -> None:
    """The words of each rule, as published tokenizers of that kind cut them."""
    plain = {key: value[0] for key, value in tokens.items()} | {"tokenizer.ggml.pre": name}
    write_tokenizer(plain, tmp_path)
    cut = Backend.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer.pre_tokenize_str("I'm 1234!!\n\nok  DON'T")
    words = [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in cut]
    assert (
        words
        == {
            "gpt-2": ["I", "'m", " 1234", "!!", "\n", "\n", "ok", " ", " DON", "'", "T"],
            "smollm": ["I", "'m", " ", "1", "2", "3", "4", "!!", "\n", "\n", "ok", " ", " DON", "'", "T"],
            "llama-bpe": ["I", "'m", " ", "123", "4", "!!\n\n", "ok", " ", " DON", "'T"],
            "llama3": ["I", "'m", " ", "123", "4", "!!\n\n", "ok", " ", " DON", "'T"],
            "qwen2": ["I", "'m", " ", "1", "2", "3", "4", "!!\n\n", "ok", " ", " DON", "'T"],
        }[name]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "poro-chat"}, "cuts text before it by the rules 'poro-chat'; those of gpt-2"),
        ({"tokenizer.ggml.model": "t5"}, "is of kind 't5'"),
        ({"tokenizer.ggml.tokens": None}, "has no list of tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "tokens and 1 types of them"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "has a merge 'a b c' of what are no tokens"),
        ({"tokenizer.ggml.model": "llama"}, "has no list of scores"),
    ],
)
def test_a_tokenizer_that_cannot_be_mapped_asks_for_another(
    tmp_path: Path, tokens: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(NoTokenizer) as caught:
        write_tokenizer({key: value[0] for key, value in tokens.items()} | changes, tmp_path)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokens: dict[str, Any]) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.gguf"
    return write_gguf(path, random_model("llama"), tokens, "Q8_0").read_bytes()


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        GGUFFile(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "whole.gguf").write_bytes(whole)
    file = GGUFFile(tmp_path / "whole.gguf")
    end = max(tensor.offset + file.num_bytes(name) for name, tensor in file.tensors.items())  # padding follows
    for size in (*range(1, 40), *range(40, end, end // 50), end - 1):
        refusal(tmp_path / "a.gguf", whole[:size])
    assert refusal(tmp_path / "a.gguf", b"") == "is empty"
    assert "cut, or not whole yet" in refusal(tmp_path / "a.gguf", whole[: end - 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4" + bytes(60), "is no GGUF file: it does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "a GGUF file of version 1; 2 and 3 are read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a GGUF file of the other byte order"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), f"declares {2**62} tensors, more than it can hold"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), f"declares {2**62} settings, more than it can hold"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60) + bytes(99), f"{2**60} bytes at byte 32 of 131: cut"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 2**50) + bytes(99),
            f"declares {2**50} texts in a, more than it can hold",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1) + bytes(99), "'a' is a list of type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"a", 9) + bytes(99), "a tensor of 9 dimensions"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"a", 2, 2**32, 2**32, 0, 0) + bytes(99),
            f"a ends at byte {2**66 + 64 + 32} of 164: cut, or not whole yet",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"a", 1, 32, 99, 0) + bytes(99), "a is of type 99, which"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file"),
    ],
)  # fmt: skip
def test_what_is_no_whole_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(tmp_path / "a.gguf", content)


def test_no_damaged_byte_ends_in_anything_but_one_line(tmp_path: Path, whole: bytes) -> None:
    draw, path, refused = random.Random(0), tmp_path / "a.gguf", 0
    for number in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(2000 if number % 2 else 20_000)] = draw.choice((0, 255, draw.randrange(256)))
        path.write_bytes(damaged)
        folder = tmp_path / f"folder{number}"
        folder.mkdir()
        try:
            write_folder(path, folder, None)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refused > 100


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"general.architecture": "phi3"}, "its architecture is 'phi3'; those that are read: llama, qwen2, qwen3"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling is not supported (yarn)"),
        ({"llama.expert_count": "8"}, "mixture of experts is not supported (expert_count)"),
        ({"llama.block_count": "many"}, "llama.block_count is many: a number above 0 is needed"),
        ({"llama.rope.dimension_count": "8"}, "llama.rope.dimension_count is 8: a number above 0"),
    ],
)
def test_what_the_model_here_cannot_compute_is_named(
    tmp_path: Path, tokens: dict[str, Any], more: dict[str, str], message: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", random_model("llama"), tokens)
    file = GGUFFile(path)
    file.settings.update(more)
    from pretrain.hf import gguf_folder

    with pytest.raises(ValueError) as caught:
        gguf_folder._config(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_imports_a_file_and_takes_another_tokenizer(
    tmp_path: Path,
    tokens: dict[str, Any],
    byte_level: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = tokens | {"tokenizer.ggml.pre": ("odd", gguf.GGUFValueType.STRING)}
    path = write_gguf(tmp_path / "a.gguf", random_model("llama"), odd)
    command = ["import", "--model", str(path), "--run", str(tmp_path / "run")]
    assert convert_checkpoint.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}: its tokenizer cuts text") and error.endswith("with --tokenizer")
    assert not (tmp_path / "run").exists() and [each.name for each in tmp_path.iterdir()] == ["a.gguf"]
    assert convert_checkpoint.main([*command, "--tokenizer", str(byte_level)]) == 0
    assert f"<- {path} (llama)" in (tmp_path / "run" / "conversion.txt").read_text()
    tokenizer = Tokenizer.load(tmp_path / "run" / "tokenizer.json")
    assert tokenizer.encode("the loop") == Backend.from_file(str(byte_level / "tokenizer.json")).encode("the loop").ids
    assert convert_checkpoint.main(["import", "--model", str(tmp_path), "--run", "x", "--tokenizer", "y"]) == 2
    assert convert_checkpoint.main(["import", "--model", str(tmp_path / "no.gguf"), "--run", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path}/no.gguf: No such file or directory"
