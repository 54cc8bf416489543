"""Documents, tokens and epochs of a run, said in the dry run and at its start."""

from pathlib import Path
from typing import Any

import pytest

from pretrain.config.run import RunConfig, SourceSection
from pretrain.data.extent import describe, measure
from pretrain.data.manifest import Manifest
from pretrain.data.shards import index_name
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.train import plan
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
    lines = describe(make_config(root, folder_of(folders["tokens"]), steps=steps))
    assert len(lines) == 1 + above
    assert not above or lines[1].startswith(f"warning: {folders['tokens']}: this run reads its text 4")


def test_the_dry_run_says_it_or_what_is_not_there_yet(root: Path, folders: dict[str, Path]) -> None:
    rows = plan(make_config(root, folder_of(folders["tokens"])), 1)
    assert [name for name, text in rows if "600 documents" in text] == ["data"]
    (missing,) = [text for name, text in plan(make_config(root, folder_of(root / "none")), 1) if name == "data"]
    assert missing.startswith(f"not looked at: {root / 'none'}: no manifest.jsonl")
    config = make_config(root, folder_of(folders["tokens"]), tokenizer=str(root / "none.model"))
    assert describe(config)[0].startswith(f"not looked at: {root / 'none.model'}: no such tokenizer file")


def test_a_task_has_no_epochs(root: Path) -> None:
    task = SourceSection(task="addition", parameters={"num_operands": [2], "num_digits": 2})
    assert describe(make_config(root, task)) == []
