"""Export of unrolled models as GGUF files: read by the gguf package, by our own import, and what cannot be held."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pretrain.api import load_run
from pretrain.data.tokenizers.train import train_tokenizer
from pretrain.hf.exporting import export_run
from pretrain.hf.gguf_export import FILE
from pretrain.hf.importing import import_gguf, import_model
from pretrain.run.trained_model import load_trained_model
from tests.support.corpus import make_texts
from tests.unit.hf.test_convert import (  # noqa: F401
    LLAMA,
    LOOPED,
    PUBLISHED,
    SEQ_LEN,
    byte_level,
    make_run,
    publish,
    saved_weights,
    tokenizer,
)
from tools import convert_checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "rope_theta": 5e5, "norm_epsilon": 1e-6}, "qwen2": {"bias": "qkv"},
    "qwen3": {"qk_norm": "head", "head_size": 12, "tied_head": True},
}  # fmt: skip
TEXT = "the loop runs, don't it?\n\n\tagain  1234 äöü 你好 \U0001f642 THE END"


@pytest.mark.parametrize("case", SHAPES)
def test_a_looped_run_comes_back_as_the_same_stack(tmp_path: Path, tokenizer: Path, case: str) -> None:  # noqa: F811
    run = make_run(tmp_path / "run", tokenizer, LOOPED | SHAPES[case])
    lines = export_run(run, tmp_path / "out", published="gguf", num_loops=2)
    assert any("2 copies of 2 shared layers, 6 layers in all" in line for line in lines), lines
    import_gguf(tmp_path / "out" / FILE, tmp_path / "back", new_tokens=False)
    ours, theirs = (load_trained_model(path, torch.device("cpu")) for path in (run, tmp_path / "back"))
    assert theirs.saved.model.num_loop_layers == 6 and theirs.saved.seq_len == SEQ_LEN
    assert theirs.tokenizer.encode(TEXT) == ours.tokenizer.encode(TEXT)
    tokens = torch.randint(320, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    wanted, found = (model.logits(model(tokens, loops)) for model, loops in ((ours.model, 2), (theirs.model, 1)))
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_gguf_package_reads_what_was_written(tmp_path: Path, tokenizer: Path) -> None:  # noqa: F811
    """Rows of queries and keys as llama.cpp's conversion orders them, the shared layer in each of its copies."""
    run = make_run(tmp_path / "run", tokenizer, LOOPED | SHAPES["llama"])
    export_run(run, tmp_path / "out", published="gguf", num_loops=3)
    reader, weights = gguf.GGUFReader(tmp_path / "out" / FILE), saved_weights(run)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.architecture"] == "llama" and values["general.file_type"] == 0
    wanted = {"block_count": 8, "context_length": SEQ_LEN, "attention.head_count_kv": 2, "rope.freq_base": 5e5}
    assert {key: values[f"llama.{key}"] for key in wanted} == wanted
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    kinds = values["tokenizer.ggml.token_type"]
    assert len(values["tokenizer.ggml.tokens"]) == len(values["tokenizer.ggml.scores"]) == len(kinds) == 320
    assert kinds[:4] == [3, 2, 3, 3] and values["tokenizer.ggml.bos_token_id"] == 2
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 8 * 9 + 3
    for block, ours in enumerate(["prelude.0", *["loop.0", "loop.1"] * 3, "coda.0"]):
        query = weights[f"weights/{ours}.attention.query.weight"]  # [4 heads of 8, 32]
        turned = query.reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32)
        assert np.array_equal(tensors[f"blk.{block}.attn_q.weight"], turned.numpy())
        assert not np.array_equal(tensors[f"blk.{block}.attn_q.weight"], query.numpy())
        down = weights[f"weights/{ours}.ffn.down.weight"]
        assert np.array_equal(tensors[f"blk.{block}.ffn_down.weight"], down.numpy())


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_matrices_of_half_the_size_and_vectors_whole(
    tmp_path: Path,
    tokenizer: Path,  # noqa: F811
    dtype: str,
    kind: str,
) -> None:
    run = make_run(tmp_path / "run", tokenizer, {})
    lines = export_run(run, tmp_path / "out", published="gguf", dtype=dtype)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / FILE).tensors}
    assert types["blk.0.attn_q.weight"] == kind and types["blk.0.attn_norm.weight"] == "F32"
    assert sum("differ by at most" in line for line in lines) == 1


@pytest.mark.parametrize("case", ["llama, tied, wide heads", "qwen3"])
def test_a_published_model_goes_through_a_gguf_file_unchanged(tmp_path: Path, byte_level: Path, case: str) -> None:  # noqa: F811
    name, config = PUBLISHED[case]
    publish(tmp_path / "published", byte_level, name, config)
    import_model(tmp_path / "published", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", published="gguf")
    import_gguf(tmp_path / "out" / FILE, tmp_path / "back")
    first, again = load_run(tmp_path / "run"), load_run(tmp_path / "back")
    assert again.tokenizer.encode(TEXT) == first.tokenizer.encode(TEXT)
    assert again.tokenizer.bot_id == first.tokenizer.bot_id, "the tokens of thoughts keep their ids"
    theirs = saved_weights(tmp_path / "back")
    assert all(torch.equal(weight, theirs[key]) for key, weight in saved_weights(tmp_path / "run").items())


def test_an_exit_is_dropped_and_named(tmp_path: Path, tokenizer: Path) -> None:  # noqa: F811
    run = make_run(tmp_path / "run", tokenizer, LOOPED | {"loop": {"exit": "linear"}})
    lines = export_run(run, tmp_path / "out", published="gguf")
    assert "model.loop.exit=linear is dropped: tokens have no exit there, all run all loops" in lines
    report = (tmp_path / "out" / "conversion.txt").read_text()
    assert "dropped exit.direction" in report and "model.loop.exit=linear is dropped" in report


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"loop": {"injection": "add"}},
            "a model with model.loop.injection=add cannot be unrolled into the plain layers",
        ),
        ({"loop": {"keys": "first"}}, "a model with model.loop.keys=first cannot be unrolled into the plain layers"),
        ({"norm": "plain"}, "these are layers of OlmoForCausalLM: a GGUF file is written of Llama, Qwen2, Qwen3"),
        ({"norm_place": "both"}, "no stock model has such layers: a GGUF file is written of Llama, Qwen2, Qwen3"),
    ],
)
def test_what_no_plain_model_holds_is_refused(
    tmp_path: Path,
    tokenizer: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    model: dict[str, Any],
    said: str,
) -> None:
    run = make_run(tmp_path / "run", tokenizer, LOOPED | model)
    command = ["export", "--run", str(run), "--out", str(tmp_path / "out"), "--format", "gguf"]
    assert convert_checkpoint.main(command) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_tokenizer_that_would_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_tokenizer(make_texts(400), vocab_size=320, model_type="unigram")[0])
    run = make_run(tmp_path / "run", path, {})
    with pytest.raises(
        ValueError, match="the tokenizer is a unigram model, of which GGUF's kind llama would make other"
    ):
        export_run(run, tmp_path / "out", published="gguf")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.unfinished"))
