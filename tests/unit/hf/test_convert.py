"""Weights in and out: every architecture both ways, bitwise round trips, refusals, the command line on real runs."""

import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from pretrain.checkpoint.run import open_checkpoint, save_weights
from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import THOUGHT_TOKENS
from pretrain.hf import check, exporting
from pretrain.hf.exporting import export_run
from pretrain.hf.importing import import_model
from pretrain.hf.modeling_looped_gpt import LoopedGPTForCausalLM
from pretrain.hf.names import _LAYERS
from pretrain.model.weights import stage_weights
from pretrain.run.trained_model import load_trained_model
from tests.support.commands import Commands
from tests.support.corpus import make_tokenizer

ROOT = Path(__file__).parents[3]
SEQ_LEN, VOCAB = 24, 300
GPT2 = {"n_positions": SEQ_LEN, "n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": VOCAB}
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": SEQ_LEN,
}  # fmt: skip
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA),
    "llama, tied, wide heads": ("Llama", {**LLAMA, "head_dim": 12, "tie_word_embeddings": True, "rope_theta": 5e5}),
    "mistral without a window": ("Mistral", {**LLAMA, "sliding_window": None, "head_dim": 8}),
    "qwen2": ("Qwen2", LLAMA), "qwen3": ("Qwen3", {**LLAMA, "head_dim": 12}),
    "olmo": ("Olmo", LLAMA), "olmo2": ("Olmo2", LLAMA),
    "gpt2": ("GPT2", GPT2), "gpt2, wide": ("GPT2", {**GPT2, "n_inner": 48}),
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "llama": {}, "grouped queries": {"num_key_value_heads": 2}, "qwen2": {"bias": "qkv"},
    "qwen3": {"qk_norm": "head", "head_size": 12}, "olmo": {"norm": "plain"},
    "olmo2": {"qk_norm": "all", "norm_place": "after", "tied_head": True},
    "gpt2": {"norm": "layer", "positions": "learned", "activation": "gelu", "bias": "all", "tied_head": True},
    "blocks": {"num_loop_layers": 4, "loop_regulariser": {"block_size": 2, "weight": 1.0}},
}  # fmt: skip
LOOPED = {"num_prelude_layers": 1, "num_loop_layers": 2, "num_coda_layers": 1, "num_loops": 3}
STOCK = {
    "llama": "Llama", "grouped queries": "Llama", "qwen3": "Qwen3", "olmo": "Olmo", "olmo2": "Olmo2", "gpt2": "GPT2",
    "blocks": "Llama",
}  # fmt: skip


def stock_class(name: str) -> str:
    return "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer of GPT-2's kind with one separator."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 5, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(["the loop runs and folds again " * 50], trainer)
    folder = tmp_path_factory.mktemp("byte-level")
    backend.save(str(folder / "tokenizer.json"))
    separator = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(separator))
    return folder


def publish(
    folder: Path, tokenizer: Path, name: str, fields: dict[str, Any], dtype: torch.dtype = torch.float32
) -> Path:
    """A folder of a published model with random weights in every tensor."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**fields, initializer_range=0.2)
    model = getattr(transformers, stock_class(name))(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    torch.nn.Module.to(model, dtype).save_pretrained(folder)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def make_run(
    directory: Path, tokenizer: Path, model: dict[str, Any], *, seed: int = 0, weights: dict[str, Tensor] | None = None
) -> Path:
    """A run of random weights in every tensor, or of these."""
    shape = {
        "vocab_size": 320, "hidden_size": 32, "num_attention_heads": 4, "ffn_size": 48, "num_loop_layers": 4,
        "init_std": 0.2,
    }  # fmt: skip
    sections = {
        "run": {"name": directory.name, "root": str(directory.parent)}, "model": shape | model,
        "data": {"tokenizer": str(tokenizer)}, "train": {"seq_len": SEQ_LEN, "precision": "fp32"},
    }  # fmt: skip
    config = RunConfig.model_validate(sections)
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, weight in stage_weights(config.model, SEQ_LEN).items():
        noise = torch.randn(weight.shape, generator=generator)
        drawn[name] = 1 + 0.3 * noise if name.endswith("norm.weight") else 0.2 * noise
    meta = {"config": config.model_dump(mode="json"), "tokenizer_sha256": sha256(tokenizer.read_bytes()).hexdigest()}
    save_weights(directory, weights or drawn, meta)
    return directory


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    make_tokenizer(path)
    return path


def saved_weights(run: Path) -> dict[str, Tensor]:
    reader, _ = open_checkpoint(run)
    return {name: reader.read_whole(name) for name in reader.tensors}


def assert_bitwise(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


# In, and out again


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_in_and_out_is_bitwise(tmp_path: Path, byte_level: Path, case: str) -> None:
    name, fields = PUBLISHED[case]
    folder = publish(tmp_path / "published", byte_level, name, fields)
    lines = import_model(folder=folder, run=tmp_path / "run", new_tokens=False)
    assert "logits on random tokens differ by at most" in lines[-1]
    export_run(run=tmp_path / "run", out=tmp_path / "out")
    before, after = (load_file(tmp_path / part / "model.safetensors") for part in ("published", "out"))
    assert_bitwise(after, {key: tensor for key, tensor in before.items() if key in after})
    assert {key for key in before if key not in after} <= {"lm_head.weight"}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (byte_level / "tokenizer.json").read_bytes()
    expected = "Llama" if name == "Mistral" else name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [stock_class(expected)]


def test_new_tokens_are_the_mean_and_the_others_stay(tmp_path: Path, byte_level: Path) -> None:
    folder = publish(tmp_path / "published", byte_level, "Llama", LLAMA, torch.bfloat16)
    import_model(folder=folder, run=tmp_path / "run")
    trained = load_trained_model(tmp_path / "run", torch.device("cpu"))
    # 300 + 4, a multiple of 8
    assert trained.saved.precision == "bf16" and trained.saved.model.vocab_size == 304
    assert [trained.tokenizer.thought_id(name) for name in THOUGHT_TOKENS] == [300, 301, 302, 303]
    published = load_file(folder / "model.safetensors")
    for ours, theirs in (("embedding.weight", "model.embed_tokens.weight"), ("head.weight", "lm_head.weight")):
        table, old = saved_weights(tmp_path / "run")[f"weights/{ours}"], published[theirs].float()
        assert torch.equal(table[:300], old) and torch.equal(table[300:], old.mean(0).expand(4, -1))
    export_run(run=tmp_path / "run", out=tmp_path / "out", dtype="bfloat16")
    after = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name: tensor[:300] if tensor.shape[0] == 304 else tensor for name, tensor in after.items()}
    assert_bitwise(kept, published)
    import_model(folder=tmp_path / "out", run=tmp_path / "again")  # the new tokens are there already
    again = load_trained_model(tmp_path / "again", torch.device("cpu"))
    assert again.saved.model == trained.saved.model and again.tokenizer.bot_id == 300


def test_new_tokens_begin_as_the_token_that_is_named_and_dropout_is_told(tmp_path: Path, byte_level: Path) -> None:
    folder = publish(tmp_path / "published", byte_level, "GPT2", GPT2, torch.float32)
    lines = import_model(folder=folder, run=tmp_path / "run", new_tokens_like="e")
    assert "attn_pdrop 0.1: not of the model here; train.dropout=0.1 fine-tunes with it" in lines[1]
    tokenizer = load_trained_model(tmp_path / "run", torch.device("cpu")).tokenizer
    (like,), table = tokenizer.encode("e"), saved_weights(tmp_path / "run")["weights/embedding.weight"]
    assert torch.equal(table[300:], table[like].expand(4, -1))
    with pytest.raises(ValueError, match=r"new tokens like 'e  zz': the tokenizer makes \d tokens of it, not one"):
        import_model(folder=folder, run=tmp_path / "other", new_tokens_like="e  zz")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("case", OURS)
def test_a_run_out_and_in_is_bitwise(tmp_path: Path, tokenizer: Path, case: str) -> None:
    run = make_run(tmp_path / "run", tokenizer, OURS[case])
    # transformers takes Qwen's own tokenizer for such a model, whatever the files say: it must not pass unseen
    if case == "qwen2":
        with pytest.raises(ValueError, match=r"Qwen2Tokenizer.* gives other ids"):
            export_run(run=run, out=tmp_path / "out")
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.unfinished"))
        return
    lines = export_run(run=run, out=tmp_path / "out")
    assert lines[1].startswith(stock_class(STOCK.get(case, "Llama")))
    import_model(folder=tmp_path / "out", run=tmp_path / "again")
    assert_bitwise(saved_weights(tmp_path / "again"), saved_weights(run))
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == tokenizer.read_bytes()


@pytest.mark.parametrize("case", ["llama", "qwen3", "olmo2", "gpt2"])
@pytest.mark.parametrize(
    "loop", [{}, {"injection": "add"}, {"keys": "every", "residual": "hyper"}], ids=["plain", "add", "keys and streams"]
)
def test_a_looped_run_out_and_in_is_bitwise(tmp_path: Path, tokenizer: Path, case: str, loop: dict[str, str]) -> None:
    run = make_run(tmp_path / "run", tokenizer, OURS[case] | LOOPED | {"loop": loop})
    lines = export_run(run=run, out=tmp_path / "out")
    assert lines[1].startswith("LoopedGPTForCausalLM, 3 loops, 8 layers deep")
    import_model(folder=tmp_path / "out", run=tmp_path / "again")
    assert_bitwise(saved_weights(tmp_path / "again"), saved_weights(run))


@pytest.mark.parametrize("case", ["llama", "qwen3", "olmo2", "gpt2"])
def test_unrolled_equals_looped_at_every_loop_count(tmp_path: Path, tokenizer: Path, case: str) -> None:
    run = make_run(tmp_path / "run", tokenizer, OURS[case] | LOOPED)
    tokens = torch.randint(300, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    export_run(run=run, out=tmp_path / "compact")
    compact = LoopedGPTForCausalLM.from_pretrained(tmp_path / "compact")
    for num_loops in (1, 3):
        out = tmp_path / f"unrolled-{num_loops}"
        export_run(run=run, out=out, unroll=True, num_loops=num_loops)
        unrolled = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert unrolled.config.num_hidden_layers == 2 + 2 * num_loops
        theirs = unrolled(input_ids=tokens).logits
        torch.testing.assert_close(theirs, compact(input_ids=tokens, num_loops=num_loops).logits, rtol=1e-4, atol=1e-4)


def test_several_files_hold_the_same(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", tokenizer, {})
    export_run(run=run, out=tmp_path / "one")
    monkeypatch.setattr(exporting, "FILE_BYTES", 20_000)
    export_run(run=run, out=tmp_path / "many")
    files = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 3
    parts = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert_bitwise(parts, load_file(tmp_path / "one" / "model.safetensors"))
    import_model(folder=tmp_path / "many", run=tmp_path / "again")
    assert_bitwise(saved_weights(tmp_path / "again"), saved_weights(run))


# The check, the report, what is refused


def test_a_wrong_conversion_is_not_kept(
    tmp_path: Path, tokenizer: Path, byte_level: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", tokenizer, {})
    folder = publish(tmp_path / "published", byte_level, "Llama", LLAMA)
    names = _LAYERS["llama"]
    monkeypatch.setitem(_LAYERS, "llama", names | {"ffn.gate": names["ffn.up"], "ffn.up": names["ffn.gate"]})
    with pytest.raises(ValueError, match=r"logits differ by .* nothing was kept"):
        export_run(run=run, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"logits differ by .* nothing was kept"):
        import_model(folder=folder, run=tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published", "run"]
    assert check.TOLERANCE == 1e-5


def test_the_report_names_every_tensor(tmp_path: Path, byte_level: Path) -> None:
    folder = publish(tmp_path / "published", byte_level, "GPT2", GPT2)
    stored = load_file(folder / "model.safetensors")
    # as the published GPT-2 has them
    old_names = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    save_file({**old_names, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, folder / "model.safetensors")
    import_model(folder=folder, run=tmp_path / "run")
    report = (tmp_path / "run" / "conversion.txt").read_text()
    qkv = "loop.0.attention.query.weight + loop.0.attention.key.weight + loop.0.attention.value.weight"
    assert f"mapped  {qkv} <- transformer.h.0.attn.c_attn.weight  [32, 96] float32" in report
    assert "dropped h.0.attn.bias  a constant of the computation" in report
    assert "made    embedding.weight <- the mean of all rows  rows 300 to 303: 4" in report
    assert report.count("\nmapped") == len(stored)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "rope scaling": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
                     r"rope scaling \(linear\)"),
    "sliding window": ("Mistral", {"sliding_window": 8, "head_dim": 8}, r"sliding windows \(sliding_window=8\)"),
    "sliding layers": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
                       "sliding window"),
    "clipping": ("Olmo", {"clip_qkv": 8.0}, r"clip_qkv=8\.0"),
    "biases": ("Llama", {"attention_bias": True}, "attention_bias of model_type=llama"),
    "activation": ("Llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
    "mixture": ("Mixtral", {"num_local_experts": 2}, "model_type='mixtral' is not supported; those that are: llama"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path: Path, case: str) -> None:
    name, fields, message = REFUSED[case]
    getattr(transformers, f"{name}Config")(**LLAMA | fields).save_pretrained(tmp_path / "published")
    with pytest.raises(ValueError, match=message):
        import_model(folder=tmp_path / "published", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_folders_are_named(tmp_path: Path, byte_level: Path) -> None:
    folder = publish(tmp_path / "published", byte_level, "Llama", LLAMA)
    weights = folder / "model.safetensors"
    stored = load_file(weights)
    fewer = {name: stored[name] for name in stored if "layers.2.mlp.up" not in name}
    other = {**stored, "model.norm.weight": torch.ones(31)}
    for tensors, message in (
        (fewer, r"1 tensors .* missing.*layers\.2\.mlp\.up_proj"),
        ({**stored, "model.layers.0.self_attn.sinks": torch.ones(4)}, r"self_attn\.sinks has no place in this model"),
        (other, r"model\.norm\.weight has shape \[31\], config\.json makes it \[32\]"),
    ):
        save_file(tensors, weights)
        with pytest.raises(ValueError, match=message):
            import_model(folder=folder, run=tmp_path / "run")
    weights.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        import_model(folder=folder, run=tmp_path / "run")
    weights.unlink()
    with pytest.raises(ValueError, match=r"no weights there: it needs model\.safetensors or pytorch_model\.bin"):
        import_model(folder=folder, run=tmp_path / "run")
    with pytest.raises(ValueError, match=r"no config\.json in it"):
        import_model(folder=tmp_path / "absent", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_forms_that_do_not_exist_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    injected = make_run(tmp_path / "injected", tokenizer, LOOPED | {"loop": {"injection": "add"}})
    shared = make_run(tmp_path / "shared", tokenizer, LOOPED | {"loop": {"keys": "first"}})
    sandwich = make_run(tmp_path / "sandwich", tokenizer, LOOPED | {"norm_place": "both"})
    mixed = make_run(tmp_path / "mixed", tokenizer, LOOPED | {"norm": "layer"})
    refused = {
        injected: "model.loop.injection=add cannot be unrolled", shared: "model.loop.keys=first cannot be unrolled",
        mixed: "no class of transformers computes these layers",
        sandwich: "no class of transformers computes these layers",
    }  # fmt: skip
    for run, message in refused.items():
        with pytest.raises(ValueError, match=message):
            export_run(run=run, out=tmp_path / "out", unroll=True)
    blocks = {"num_loop_layers": 4, "loop": {"injection": "add"}, "loop_regulariser": {"weight": 0.1, "block_size": 2}}
    pulled = make_run(tmp_path / "pulled", tokenizer, blocks)
    with pytest.raises(ValueError, match=r"block-regularised model with model\.loop\.injection=add has no form"):
        export_run(run=pulled, out=tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists: name a new folder"):
        export_run(run=mixed, out=tmp_path / "out")


def test_transformers_has_nothing_to_say_about_a_looped_export(tmp_path: Path, tokenizer: Path) -> None:
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # pyright: ignore[reportAttributeAccessIssue]
    logging.getLogger("transformers").addHandler(handler)
    try:
        export_run(run=make_run(tmp_path / "run", tokenizer, LOOPED), out=tmp_path / "out")
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert said == []


# As a user


def test_the_command_line_and_what_follows_it(tmp_path: Path, byte_level: Path, commands: Commands) -> None:
    folder = publish(tmp_path / "published", byte_level, "GPT2", GPT2)
    tool, run, out = ROOT / "tools" / "convert_checkpoint.py", tmp_path / "runs" / "gpt2", tmp_path / "out"
    done = commands.run(tool, "import", "--model", folder, "--run", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{run}: gpt2, 4 layers deep, 304 rows of vocabulary" in done.stdout
    asked = ("--prompt", "the loop", "--max-new-tokens", "5", "--temperature", "0")
    sample = commands.run(ROOT / "tools" / "generate.py", "--run", run, *asked)
    assert sample.returncode == 0 and sample.stdout.startswith("the loop")
    bad = commands.run(tool, "export", "--run", tmp_path / "absent", "--out", out)
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
    assert not out.exists()
