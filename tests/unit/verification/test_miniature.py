"""The miniature of every shipped configuration: the same structure, narrow, and fit for each of its layouts."""

from pathlib import Path

import pytest

from pretrain.config.layout import check_layout
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.verification import miniature
from pretrain.verification.miniature import Degrees, make_miniature

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = [*sorted((CONFIGS / "pretrain").glob("*.yaml")), *sorted((CONFIGS / "tasks").glob("*.yaml"))]
CUT = {
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_size", "ffn_size", "init_std",
}  # fmt: skip
"""Keys of the model that are its width."""
KEPT = {
    "data": {"document_mask", "on_damage"},
    "train": {"deterministic", "precision", "recompute", "z_loss_weight", "loop_sampling", "max_bad_steps"},
    "optimizer": {"name", "lr", "beta1", "beta2", "epsilon", "weight_decay", "clip_grad_norm", "schedule"},
    "parallel": {"sequence"},
    "validation": {"num_loops"},
    "checkpoint": {"asynchronous"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature._write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_structure_is_kept_and_width_is_not(
    path: Path, tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miniature, "_write_tokenizer", lambda _: tokenizer)
    config = read_config(path, RunConfig)
    replicas = 4 if config.train.global_batch >= 512 else 1
    layout = check_layout(config, replicas * config.ranks_per_replica)
    small = make_miniature(config, layout, tmp_path)
    mine, theirs = small.config.model_dump(), config.model_dump()
    assert {key for key in mine["model"] if mine["model"][key] != theirs["model"][key]} <= CUT
    for section, keys in KEPT.items():
        assert {key: mine[section][key] for key in keys} == {key: theirs[section][key] for key in keys}
    assert [(s["task"], s["weight"]) for s in mine["data"]["sources"]] == [
        (s["task"], s["weight"]) for s in theirs["data"]["sources"]
    ]
    model, large = small.config.model, config.model
    assert model.num_attention_heads * large.kv_heads == large.num_attention_heads * model.kv_heads
    assert (model.head_size is None) == (large.head_size is None)
    assert model.hidden_size <= 16 * max(4, large.num_attention_heads // large.kv_heads), "two heads of keys of 8"
    fitting, others = small.layouts(4)
    assert small.whole in [Degrees(), *fitting, *others]
    for degrees in fitting:
        assert check_layout(small.on(degrees), degrees.world_size).data_parallel == degrees.data


def test_degrees_become_their_smallest_prime_factors(tmp_path: Path) -> None:
    overrides = ["parallel.tensor=8", "parallel.pipeline=3", "train.global_batch=120", "data.num_streams=50"]
    config = read_config(CONFIGS / "pretrain" / "24x1.yaml", RunConfig, overrides)
    small = make_miniature(config, check_layout(config, 8 * 3 * 5), tmp_path)
    assert small.whole == Degrees(tensor=2, pipeline=3, data=5)
    fitting, others = small.layouts(4)
    assert [str(degrees) for degrees in fitting] == ["tensor 2", "pipeline 3"]
    assert [degrees.world_size for degrees in others] == [5, 6, 10, 15, 30]
