"""Likeness of blocks against the formula written out, and the tool on a run."""

import csv
from pathlib import Path

import pytest

from pretrain.checkpoint.run import save_weights
from pretrain.config.saved_model import SavedModel
from pretrain.model.block_similarity import BlockSimilarity, block_similarities
from pretrain.model.config import ModelSection
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.rows.identity import RunIdentity
from tools import block_similarity

LAYERS, BLOCK = 6, 2
PATHS = {"query": "attention.query", "attention_output": "attention.output", "up": "ffn.up", "down": "ffn.down"}


def make_model(seed: int, num_loop_layers: int = LAYERS, **more: object) -> LoopedGPT:
    shape = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 24, "activation": "gelu"}
    config = ModelSection.model_validate({**shape, "num_loop_layers": num_loop_layers, **more})
    model = LoopedGPT(config, 8)
    initialise(model, seed=seed)
    return model


def save_run(folder: Path, model: LoopedGPT, **meta: object) -> Path:
    saved = SavedModel(
        run=folder.name, model=model.config, seq_len=8, precision="fp32", tokenizer="symbols:ab", max_loops=1
    )
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_weights(folder, weights, {"saved_model": saved.model_dump(mode="json"), **meta})
    return folder


def naive(model: LoopedGPT, path: str, first: int, second: int) -> float:
    a, b = (model.get_parameter(f"loop.{number}.{path}.weight").flatten().tolist() for number in (first, second))
    norms = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_cosines_are_the_formula(block_size: int) -> None:
    model = make_model(0)
    found = {one.group: one for one in block_similarities(model.config, block_size, model.get_parameter)}
    assert list(found) == ["query", "key", "value", "attention_output", "up", "down"]  # no gate without SwiGLU
    for group, path in PATHS.items():
        wanted = [naive(model, path, i, i + block_size) for i in range(LAYERS - block_size)]
        assert found[group].cosines == pytest.approx(wanted, abs=1e-6)  # type: ignore[index]
        assert found[group].mean == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)  # type: ignore[index]


def test_the_tool_tells_equal_blocks_from_different_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alike = make_model(1, loop_regulariser={"block_size": BLOCK})
    for number in range(BLOCK, LAYERS):
        for name, value in alike.get_submodule(f"loop.{number}").named_parameters():
            value.data.copy_(alike.get_parameter(f"loop.{number - BLOCK}.{name}"))
    runs = [save_run(tmp_path / "alike-seed0", alike), save_run(tmp_path / "apart-seed0", make_model(2))]
    assert block_similarity.main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("cosine of layers i and i + 2:")  # of the run that has a block size
    assert printed[2].startswith("alike-seed0") and printed[2].endswith("1.000")
    assert float(printed[3].split()[-1]) < 0.3
    with (tmp_path / "out" / "block_similarity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 6 * (LAYERS - BLOCK) and rows[0]["other_layer"] == "2"
    for suffix in ("png", "svg"):
        assert (tmp_path / "out" / f"block_similarity.{suffix}").stat().st_size > 1000


def test_runs_of_one_configuration_are_one_bar_that_says_how_many_they_are() -> None:
    found = {f"8x1-weight10-seed{seed}": [BlockSimilarity("query", (0.1 * seed,))] for seed in (0, 1)}
    found |= {"12x2": [BlockSimilarity("query", (1.0,))], "more": [BlockSimilarity("query", (0.3,))]}
    kinds = {"8x1-weight10-seed0": "a", "8x1-weight10-seed1": "a", "more": "a"}
    for known, seeds in (({}, {"8⊗1-weight10 (2 seeds)": 2, "12⊗2": 1, "more": 1}),
                         (kinds, {"8⊗1-weight10, more (3 seeds)": 3, "12⊗2": 1})):  # fmt: skip
        pools = block_similarity.pooled(found, known)
        assert {name: len(similarities) for name, similarities in pools.items()} == seeds


def test_runs_that_only_their_names_call_seeds_are_bars_of_their_own(tmp_path: Path) -> None:
    """Of two sweeps: one name, and two configurations."""
    runs = []
    for seed in (0, 1):
        said = RunIdentity(run_id=f"{seed}", seed=seed, variant=f"variant {seed}", data="d").as_meta()
        runs.append(save_run(tmp_path / f"sweep{seed}" / f"8x1-seed{seed}", make_model(seed), identity=said))
    assert block_similarity.main([*map(str, runs), "--block-size", "2", "--out", str(tmp_path)]) == 0
    figure = (tmp_path / "block_similarity.svg").read_text()
    assert "8⊗1-seed0" in figure and "8⊗1-seed1" in figure and "seeds)" not in figure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--block-size: give the layers of a block: no run has one in its configuration"),
        (["--block-size", "6"], "its 6 looped layers are one block of 6: there is nothing to compare"),
        (["--block-size", "4"], "number of looped layers"),
    ],
)
def test_blocks_that_cannot_be_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    run = save_run(tmp_path / "run", make_model(0))
    assert block_similarity.main([str(run), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
