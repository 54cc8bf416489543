"""Looped models of unlooped ones: what the loop block is made of, what stays equal, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pretrain.hf import layer_choice
from pretrain.hf.exporting import export_run
from pretrain.hf.importing import import_model
from pretrain.hf.surgery import Surgery, loop_model
from pretrain.run.trained_model import load_trained_model
from tests.unit.hf.test_convert import OURS, SEQ_LEN, assert_bitwise, make_run, saved_weights, tokenizer

__all__ = ["tokenizer"]
TOKENS = torch.randint(0, 300, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(run: Path, num_loops: int | None = None) -> Tensor:
    model = load_trained_model(run, torch.device("cpu")).model
    return model.logits(model(TOKENS, num_loops))


def operated(source: Path, out: Path, **surgery: Any) -> Path:
    loop_model(source, out, Surgery(**surgery))
    return out


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A run of eight layers."""
    return make_run(tmp_path_factory.mktemp("surgery") / "eight", tokenizer, {"num_loop_layers": 8})


@pytest.mark.parametrize(("merge", "block"), [("average", None), ("first", 0), ("middle", 1), ("last", 2), (1, 1)])
def test_the_loop_block_is_the_mean_or_one_of_the_blocks(
    tmp_path: Path, eight: Path, merge: Any, block: int | None
) -> None:
    shape = {"num_loop_layers": 2, "num_prelude_layers": 1, "num_coda_layers": 1}
    looped = operated(eight, tmp_path / "looped", **shape, merge=merge)
    before, after = saved_weights(eight), saved_weights(looped)
    trained = load_trained_model(looped, torch.device("cpu"))
    assert (trained.saved.model.num_loops, trained.saved.model.effective_depth()) == (3, 8)
    assert torch.equal(after["weights/prelude.0.ffn.up.weight"], before["weights/loop.0.ffn.up.weight"])
    assert torch.equal(after["weights/coda.0.ffn.up.weight"], before["weights/loop.7.ffn.up.weight"])
    for number in range(2):
        layers = [1 + number + 2 * part for part in range(3)]
        expected = torch.stack([before[f"weights/loop.{layer}.attention.key.weight"] for layer in layers])
        wanted = expected.mean(0) if block is None else expected[block]
        assert torch.equal(after[f"weights/loop.{number}.attention.key.weight"], wanted)
    assert torch.equal(after["weights/embedding.weight"], before["weights/embedding.weight"])
    dropped = (looped / "conversion.txt").read_text().count("\ndropped")
    assert dropped == (0 if block is None else 4 * 9)


def test_a_looped_model_of_equal_blocks_is_the_same_model(tmp_path: Path, tokenizer: Path) -> None:
    run = make_run(tmp_path / "run", tokenizer, {"num_loop_layers": 2, "num_loops": 2})
    export_run(run=run, out=tmp_path / "unrolled", unroll=True)
    import_model(folder=tmp_path / "unrolled", run=tmp_path / "deep")
    looped = operated(tmp_path / "deep", tmp_path / "looped", num_loop_layers=2)
    assert_bitwise(saved_weights(looped), saved_weights(run))


@pytest.mark.parametrize("case", ["llama", "grouped queries", "olmo"])
@pytest.mark.parametrize("merge", ["average", "last"])
def test_lora_of_full_rank_leaves_the_model_what_it_was(tmp_path: Path, tokenizer: Path, case: str, merge: Any) -> None:
    """Grouped queries have narrower keys, and so a lower full rank: widened here to that of the others."""
    shape = {"num_loop_layers": 6, **OURS[case]}
    shape |= {"num_key_value_heads": 4} if case == "grouped queries" else {}
    run = make_run(tmp_path / "run", tokenizer, shape)
    cut = {"num_loop_layers": 2, "num_loops": 2, "num_prelude_layers": 1, "merge": merge}
    whole = operated(run, tmp_path / "whole", **cut, lora_rank=32)
    torch.testing.assert_close(logits(whole), logits(run), rtol=1e-3, atol=1e-3)
    half = operated(run, tmp_path / "half", **cut, lora_rank=16)
    none = operated(run, tmp_path / "none", **cut)
    errors = [(logits(other) - logits(run)).norm().item() for other in (whole, half, none)]
    assert errors[0] < 1e-3 * errors[1] and errors[1] < errors[2]


def test_the_share_that_lora_holds_is_that_of_the_largest_singular_values(tmp_path: Path, eight: Path) -> None:
    cut = {"num_loop_layers": 2, "num_loops": 2, "num_prelude_layers": 0}
    shares = []
    for rank in (4, 8, 32):
        lines = loop_model(eight, tmp_path / str(rank), Surgery(**cut, lora_rank=rank))
        (line,) = [line for line in lines if line.startswith(f"LoRA of rank {rank} holds ")]
        shares.append(float(line.split()[5].rstrip("%")))
    assert 0 < shares[0] < shares[1] < shares[2] == 100.0


@pytest.mark.parametrize("injection", ["none", "concat"])
def test_where_all_layers_are_kept_one_loop_is_the_original(tmp_path: Path, eight: Path, injection: str) -> None:
    cut = {"num_loop_layers": 2, "merge": "none", "injection": injection, "num_prelude_layers": 3}
    plain = operated(eight, tmp_path / "plain", **cut)
    saved = load_trained_model(plain, torch.device("cpu")).saved
    assert (saved.model.num_loops, saved.model.num_coda_layers, saved.model.effective_depth(3)) == (1, 3, 12)
    with_lora = operated(eight, tmp_path / "lora", **cut, lora_rank=4, num_loops=3)
    for run in (plain, with_lora):
        torch.testing.assert_close(logits(run), logits(eight), rtol=1e-5, atol=1e-5)
        if injection == "none":
            continue
        cut["injection"] = "none"  # it changes nothing at more loops either
        without = operated(eight, tmp_path / f"{run.name}_without", **cut)
        assert not torch.equal(logits(without, 3), logits(without, 1))
        torch.testing.assert_close(logits(run, 3), logits(without, 3), rtol=1e-5, atol=1e-5)
    pairs = {name: w for name, w in saved_weights(with_lora).items() if ".per_loop." in name}
    assert {name.split(".")[3] for name in pairs} == {"0", "1", "2"}
    assert all(bool(weight.any()) == name.endswith("down.weight") for name, weight in pairs.items())


def test_the_kept_stack_is_bitwise_the_original(tmp_path: Path, eight: Path) -> None:
    plain = operated(eight, tmp_path / "plain", num_loop_layers=3, num_prelude_layers=2, merge="none")
    assert torch.equal(logits(plain), logits(eight))


def test_the_likest_blocks_are_found(tmp_path: Path, eight: Path, tokenizer: Path) -> None:
    """Layers 5 and 6 are copies of 3 and 4, nearly."""
    weights = {name.removeprefix("weights/"): weight for name, weight in saved_weights(eight).items()}
    for name in list(weights):
        for layer in (5, 6):
            if name.startswith(f"loop.{layer}."):
                twin = weights[name.replace(f"loop.{layer}.", f"loop.{layer - 2}.")]
                weights[name] = twin + 0.01 * weights[name]
    run = make_run(tmp_path / "run", tokenizer, {"num_loop_layers": 8}, weights=weights)
    lines = loop_model(run, tmp_path / "by_loops", Surgery(num_loop_layers=2, num_loops=2))
    (chosen,) = [line for line in lines if line.endswith("*")]
    assert chosen.split()[:2] == ["3", "1"] and len(lines) == 2 + 5 + 1
    by_layers = operated(run, tmp_path / "by_layers", num_loop_layers=2, num_layers=6)
    assert_bitwise(saved_weights(by_layers), saved_weights(tmp_path / "by_loops"))


@pytest.mark.parametrize("merge", ["average", "none"])
def test_a_text_chooses_the_place_with_the_least_loss(tmp_path: Path, eight: Path, merge: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the loop runs and folds again " * 40)
    cut = {"num_loop_layers": 2, "merge": merge, **({"num_loops": 2} if merge == "average" else {})}
    lines = loop_model(eight, tmp_path / "looped", Surgery(**cut, text=text))
    rows = [line.split() for line in lines[2:-1]]
    best = min(rows, key=lambda row: float(row[3]))
    assert len(rows) == 5 and best[4] == "*" and sum(len(row) == 5 for row in rows) == 1
    model = load_trained_model(tmp_path / "looped", torch.device("cpu")).saved.model
    assert (model.num_prelude_layers, model.num_coda_layers) == (int(best[0]), int(best[1]))
    text.write_text("")
    with pytest.raises(ValueError, match="it has 0 tokens, too few"):
        operated(eight, tmp_path / "out", **cut, text=text)


@torch.no_grad()
def test_measured_losses_are_those_of_the_operated_models(tmp_path: Path, eight: Path) -> None:
    model = load_trained_model(eight, torch.device("cpu")).model
    found = [layer_choice.Place(first, 8 - first - 4, 0.0) for first in range(5)]
    blocks = {first: [[first, first + 1], [first + 2, first + 3]] for first in range(5)}
    for merge, block in (("average", None), ("last", 1)):
        measured, before = layer_choice.with_losses(found, model, TOKENS, blocks.__getitem__, block)
        whole = model.logits(model(TOKENS[:, :-1]))
        assert before == pytest.approx(cross_entropy(whole, TOKENS[:, 1:].flatten()).item(), rel=1e-5)
        for place in measured:
            cut = {"num_loop_layers": 2, "num_prelude_layers": place.first, "num_coda_layers": place.after}
            looped = operated(eight, tmp_path / f"{merge}{place.first}", **cut, merge=merge)
            other = load_trained_model(looped, torch.device("cpu")).model
            expected = cross_entropy(other.logits(other(TOKENS[:, :-1])), TOKENS[:, 1:].flatten()).item()
            assert place.loss == pytest.approx(expected, rel=1e-5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_loop_layers": 3}, "8 layers less 0 before and 0 after the loop leave 8, which are not whole blocks of 3"),
    ({"num_loop_layers": 2, "merge": 4}, "block 4 of 4 does not exist"),
    ({"num_loop_layers": 3, "num_loops": 3}, "8 layers do not hold 3 blocks of 3, 9 layers"),
    ({"num_loop_layers": 9, "merge": "none"}, "8 layers do not hold a block of 9, 9 layers"),
    ({"num_loop_layers": 5, "num_loops": 1}, "8 layers hold no two blocks of 5 to compare"),
    ({"num_loop_layers": 2, "num_layers": 5}, "--num-layers 5: .* not 3 layers"),
    ({"num_loop_layers": 2, "num_loops": 2, "num_prelude_layers": 5}, "5 layers before the loop, 2 x 2 in it and -1"),
    (
        {"num_loop_layers": 2, "num_loops": 2, "num_prelude_layers": 2, "num_coda_layers": 3},
        "2 layers before the loop, 2 x 2 in it and 3 after it are not the 8 of the model",
    ),
    ({"num_loop_layers": 2, "lora_rank": 33}, "--lora-rank 33: the smallest matrix of a layer has rank 32"),
    ({"num_loop_layers": 2, "injection": "gated"}, "--injection gated has no weights .*; concat has"),
    ({"num_loop_layers": 2, "injection": "add"}, "--injection add has no weights"),
    ({"num_loop_layers": 2, "merge": "none", "num_layers": 6}, "with --merge none the model keeps all"),
    ({"num_loop_layers": 2, "merge": "none", "num_loops": 2}, "--num-loops and --lora-rank belong together"),
    ({"num_loop_layers": 2, "text": Path("text")}, "--text chooses the place of the loop"),
]


@pytest.mark.parametrize(("surgery", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, eight: Path, surgery: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        operated(eight, tmp_path / "out", **surgery)
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_looped_models_and_taken_names_are_refused(tmp_path: Path, eight: Path, tokenizer: Path) -> None:
    looped = make_run(tmp_path / "looped", tokenizer, {"num_loops": 2})
    with pytest.raises(ValueError, match="is not an unlooped model"):
        operated(looped, tmp_path / "out", num_loop_layers=2)
    with pytest.raises(ValueError, match=r"looped exists: name a new run directory"):
        operated(eight, looped, num_loop_layers=2)
