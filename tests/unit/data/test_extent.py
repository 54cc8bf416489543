"""Documents, tokens and epochs of a run, said in the dry run and at its start."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.data import SourceSection
from pretrain.config.read import resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.data.extent import describe, measure
from pretrain.data.manifest import Manifest
from pretrain.data.shards import index_name
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.train import main
from tests.support.corpus import make_texts, make_tokenizer, write_source

FRACTION = 0.25


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extent")


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Tokenizer:
    return make_tokenizer(root / "tokenizer.model")


@pytest.fixture(scope="module")
def folders(root: Path, tokenizer: Tokenizer) -> dict[str, Path]:
    texts = make_texts(600)
    return {
        kind: write_source(root / kind, texts, 40, tokenizer, as_text=kind == "text") for kind in ("tokens", "text")
    }


def make_config(root: Path, *sources: SourceSection, steps: int = 10, **data: Any) -> RunConfig:
    values = {"tokenizer": str(root / "tokenizer.model"), "validation_fraction": FRACTION, "sources": sources} | data
    return RunConfig.model_validate(
        {
            "run": {"name": "extent", "root": str(root)},
            "model": {
                "vocab_size": 320, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 24, "num_prelude_layers": 1,
                "num_loop_layers": 1, "num_coda_layers": 1, "num_loops": 2,
            },
            "data": values,
            "optimizer": {"warmup_steps": 0},
            "train": {"steps": steps, "seq_len": 64, "global_batch": 16, "micro_batch": 16},
        }
    )  # fmt: skip


def folder_of(path: Path, weight: float = 1.0) -> SourceSection:
    return SourceSection(path=str(path), weight=weight)


def test_tokens_and_epochs_are_those_of_the_manifest(
    root: Path, folders: dict[str, Path], tokenizer: Tokenizer
) -> None:
    header = Manifest.open(folders["tokens"]).header
    assert header.num_tokens
    (extent,) = measure(make_config(root, folder_of(folders["tokens"])), tokenizer)
    served = (header.num_tokens + 2 * 600) * (1 - FRACTION)
    assert extent.epochs == pytest.approx(10 * 16 * 64 / served)
    line = (
        f"{folders['tokens']}: 600 documents, {header.num_tokens:,} tokens, this run reads {extent.epochs:.3g} epochs"
    )
    assert str(extent) == line


def test_tokens_of_text_are_estimated_and_said_to_be_so(
    root: Path, folders: dict[str, Path], tokenizer: Tokenizer
) -> None:
    exact = Manifest.open(folders["tokens"]).header.num_tokens
    assert exact
    (extent,) = measure(make_config(root, folder_of(folders["text"])), tokenizer)
    assert extent.is_estimated and "(estimated)" in str(extent)
    assert abs(extent.tokens / exact - 1) < 0.05


def test_the_estimate_passes_over_what_is_lost(tmp_path: Path, root: Path, tokenizer: Tokenizer) -> None:
    folder = write_source(tmp_path / "text", make_texts(100), 4, tokenizer, as_text=True)
    (before,) = measure(make_config(root, folder_of(folder)), tokenizer)
    (folder / "shard-000000.tar").unlink()
    (folder / index_name("shard-000001.tar")).write_bytes(b"")
    (after,) = measure(make_config(root, folder_of(folder)), tokenizer)
    assert abs(after.tokens / before.tokens - 1) < 0.2
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match="none of a sample of its documents can be read"):
        list(measure(make_config(root, folder_of(folder)), tokenizer))


def test_sources_share_the_tokens_of_the_run_by_weight(
    root: Path, folders: dict[str, Path], tokenizer: Tokenizer
) -> None:
    task = SourceSection(task="addition", parameters={"num_operands": [2], "num_digits": 2}, weight=4.0)
    tokens, text = folder_of(folders["tokens"], 3.0), folder_of(folders["text"])
    (alone,) = measure(make_config(root, tokens), tokenizer)
    first, second = measure(make_config(root, tokens, text, task), tokenizer)
    assert first.epochs == pytest.approx(alone.epochs * 3 / 8)
    assert second.epochs == pytest.approx(alone.epochs / 8, rel=0.05)


@pytest.mark.parametrize("above", [False, True])
def test_above_four_epochs_a_warning(root: Path, folders: dict[str, Path], tokenizer: Tokenizer, above: bool) -> None:
    (extent,) = measure(make_config(root, folder_of(folders["tokens"]), steps=1), tokenizer)
    steps = int(4 / extent.epochs) + above
    lines = list(describe(make_config(root, folder_of(folders["tokens"]), steps=steps)))
    assert len(lines) == 1 + above
    assert not above or lines[1].startswith(f"warning: {folders['tokens']}: this run reads its text 4")


def dry_run(config: RunConfig, root: Path, *options: str) -> int:
    path = root / "config.yaml"
    path.write_text(resolved_yaml(config))
    return main(["--config", str(path), "--dry-run", *options])


def test_the_dry_run_ends_with_a_line_for_each_source(
    root: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    task = SourceSection(task="addition", parameters={"num_operands": [2], "num_digits": 2})
    sources = [folder_of(folders["tokens"]), folder_of(folders["text"]), task]
    assert dry_run(make_config(root, *sources), root) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index(next(line for line in lines if line.startswith("data ")))
    assert lines[begin - 1].startswith("run directory  ") and len(lines) == begin + 3
    first, second, third = (line[15:] for line in lines[begin:])
    assert first.startswith(f"{folders['tokens']}: 600 documents, ") and ", this run reads " in first
    assert second.startswith(f"{folders['text']}: 600 documents, about ")
    assert first.endswith(" epochs, 33.3 % of its tokens")
    assert third == "task addition: new examples for ever, 33.3 % of the tokens of this run"


def cut_a_shard(folder: Path) -> str:
    shard = folder / Manifest.open(folder)[0].shard
    shard.write_bytes(shard.read_bytes()[:-512])
    return f"{shard}: has {shard.stat().st_size} bytes, the manifest says {shard.stat().st_size + 512}; "


def remove_a_shard(folder: Path) -> str:
    shard = folder / Manifest.open(folder)[3].shard
    shard.unlink()
    return f"{shard}: is not there; "


def remove_all(folder: Path) -> str:
    shutil.rmtree(folder)
    return f"{folder}: no manifest.jsonl; make shards there with tools/prepare_data.py"


@pytest.mark.parametrize("damage", [cut_a_shard, remove_a_shard, remove_all])
def test_the_dry_run_prints_the_plan_and_refuses_shards_that_are_not_there(
    root: Path, folders: dict[str, Path], damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folders["tokens"], tmp_path / "copy")
    reason = damage(copy)
    config = make_config(root, folder_of(folders["text"]), folder_of(copy))
    assert dry_run(config, tmp_path) == 2
    said = capsys.readouterr()
    (error,) = said.err.splitlines()
    assert error.startswith(f"error: {reason}")
    assert "parameters  " in said.out and said.out.count(" this run reads ") == 1  # of the folder that is there
    assert dry_run(config, tmp_path, "--without-data") == 0
    said = capsys.readouterr()
    assert said.err == "" and "parameters  " in said.out and "this run reads" not in said.out


def test_the_dry_run_refuses_a_task_that_is_none_whether_or_not_its_tokenizer_is_there(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = SourceSection(task="additions", parameters={})
    for tokenizer in ("none.model", "symbols:0123456789+="):
        assert dry_run(make_config(root, task, tokenizer=tokenizer), tmp_path) == 2
        assert "error: task additions: no such task, did you mean addition" in capsys.readouterr().err


def test_the_dry_run_refuses_a_tokenizer_that_does_not_fit(
    root: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is missing, another than that of the shards, or larger than the model's vocabulary; a smaller one is
    none."""
    source = folder_of(folders["tokens"])
    assert dry_run(make_config(root, source, folder_of(tmp_path / "none"), tokenizer="none.model"), tmp_path) == 2
    first, second = capsys.readouterr().err.splitlines()  # all that is missing at once
    assert first.startswith("error: none.model: no such tokenizer file; make one with tools/train_tokenizer.py")
    assert second.startswith(f"error: {tmp_path / 'none'}: no manifest.jsonl")
    config = make_config(root, source, tokenizer="symbols:abc")
    assert dry_run(config, tmp_path) == 2
    assert f"{folders['tokens']}: its tokens were made by another tokenizer" in capsys.readouterr().err
    small, large = (
        config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})
        for size in (4, 1 << 20)
    )
    text = {"data": config.data.model_copy(update={"sources": (folder_of(folders["text"]),)})}
    assert dry_run(small.model_copy(update=text), tmp_path) == 2
    assert "symbols:abc has 10 tokens, more than model.vocab_size=4" in capsys.readouterr().err
    fits = {"data": make_config(root, source).data}
    assert dry_run(large.model_copy(update=fits), tmp_path) == 0
