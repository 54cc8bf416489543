"""What the ranks save is every logical tensor once; training that continues on any layout equals training that never
stopped."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint.names import step_name
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.run import OptimizerSection, RunConfig
from pretrain.optim.optimizers import OPTIMIZERS, Group
from pretrain.parallel.engine import StepResult
from tests.distributed.cases import (
    Reference,
    SavedPart,
    make_engine,
    make_rows,
    own_rows,
    save,
    saved_parts,
    saved_tensors,
    tiny_config,
    world_size,
)
from tests.distributed.pool import RankPool

LOOPS = (2, 1, 3, 2)
SAVED_STEP = 2
OPTIMIZER = {"epsilon": 1e-2}  # above the rounding error of gradients
HOME = {"tensor": 2, "pipeline": 2}
AWAY: list[tuple[dict, int]] = [({}, 1), ({"pipeline": 4}, 1), ({}, 2), ({"tensor": 2, "sequence": True}, 2)]
STATES = {"adamw": ("exp_avg", "exp_avg_sq"), "adafactor": ("row_var", "col_var", "variance")}
MUON = ("momentum_buffer",)  # of the matrices of the layers; the rest has AdamW's states


@dataclass(frozen=True, kw_only=True)
class Trained:
    results: list[StepResult]
    saved: list[SavedPart]


def _config(name: str, layout: dict, precision: str = "fp32") -> RunConfig:
    family = "gpt2" if name == "adamw" else "llama"
    return tiny_config(family, **layout, train={"precision": precision}, optimizer={**OPTIMIZER, "name": name})


def train(config: RunConfig, folder: str) -> Trained:
    """All steps, with a checkpoint after step SAVED_STEP."""
    engine, groups = make_engine(config)
    results = []
    for step, loops in enumerate(LOOPS):
        results.append(engine.train_step(own_rows(make_rows(8, step), groups), loops, 0.01))
        if step + 1 == SAVED_STEP:
            save(engine, folder, SAVED_STEP)
    return Trained(results=results, saved=saved_parts(engine))


def resume(config: RunConfig, folder: str) -> Trained:
    """From the checkpoint to the end."""
    engine, groups = make_engine(config)
    engine.load(CheckpointReader(Path(folder, step_name(SAVED_STEP))), SAVED_STEP)
    results = [
        engine.train_step(own_rows(make_rows(8, step), groups), LOOPS[step], 0.01)
        for step in range(SAVED_STEP, len(LOOPS))
    ]
    return Trained(results=results, saved=saved_parts(engine))


def go_on_from_torchs(config: RunConfig, folder: str) -> tuple[list[SavedPart], list[SavedPart], StepResult]:
    """What torch's Adafactor saves after some steps, what ours has after loading it, and its next step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPTIMIZERS, "adafactor", replace(OPTIMIZERS["adafactor"], make=_torchs_adafactor))
        engine, groups = make_engine(config)
        for step in range(SAVED_STEP):
            engine.train_step(own_rows(make_rows(8, step), groups), LOOPS[step], 0.01)
        save(engine, folder, SAVED_STEP)
        before = saved_parts(engine)
    engine, groups = make_engine(config)
    engine.load(CheckpointReader(Path(folder, step_name(SAVED_STEP))), SAVED_STEP)
    return before, saved_parts(engine), engine.train_step(own_rows(make_rows(8), groups), LOOPS[0], 0.01)


def _torchs_adafactor(groups: list[Group], settings: OptimizerSection) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=settings.lr)


def _states(name: str, key: str, weight: Tensor) -> tuple[str, ...]:
    """Names of the states that an optimizer keeps for a weight."""
    if name == "adafactor":
        return STATES[name][:2] if weight.dim() > 1 else STATES[name][2:]
    is_matrix = weight.dim() > 1 and key.startswith(("prelude", "loop", "coda"))
    return MUON if name == "muon" and is_matrix else STATES["adamw"]


def test_checkpoints_of_torchs_adafactor_go_on(pool: RankPool, tmp_path: Path) -> None:
    """Runs from before this project had its own."""
    ((before, after, result),) = pool.run(go_on_from_torchs, _config("adafactor", {}), str(tmp_path), world_size=1)
    assert [part.name for part in before] == [part.name for part in after]
    for old, new in zip(before, after, strict=True):
        assert (old.shape, old.values.tobytes()) == (new.shape, new.values.tobytes()), old.name
    assert any(part.name.startswith("row_var/") and part.values.any() for part in after)
    assert not result.skipped


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize(
    ("layout", "data"), [({"tensor": 2, "pipeline": 2}, 1), ({"tensor": 2}, 2), ({"pipeline": 2}, 2), ({}, 2)]
)
def test_every_element_is_saved_once(pool: RankPool, tmp_path: Path, name: str, layout: dict, data: int) -> None:
    config = _config(name, layout)
    trained = pool.run(train, config, str(tmp_path), world_size=world_size(config, data))
    saved = saved_tensors([of_rank.saved for of_rank in trained])
    weights = Reference(config=config).weights()
    assert {key for key in saved if key.startswith("weights/")} == {f"weights/{key}" for key in weights}
    for key, weight in weights.items():
        assert saved[f"weights/{key}"].shape == weight.shape
        assert {saved_key for saved_key in saved if saved_key.endswith(f"/{key}")} == {
            f"{state}/{key}" for state in ("weights", *_states(name, key, weight))
        }
    assert len(saved) == sum(1 + len(_states(name, key, weight)) for key, weight in weights.items())


@pytest.mark.parametrize(
    ("name", "precision"),
    [("adamw", "fp32"), ("adamw", "bf16"), ("adafactor", "fp32"), ("muon", "fp64")],
)
def test_resumed_training_equals_uninterrupted(pool: RankPool, tmp_path: Path, name: str, precision: str) -> None:
    """Bitwise on the same layout; on another one to 1e-6 of each tensor's largest entry (not in bf16, where layouts
    round differently; Muon in fp64, since its updates are computed in bf16)."""
    config, folder = _config(name, HOME, precision), str(tmp_path)
    straight = pool.run(train, config, folder, world_size=4)
    for here, there in zip(pool.run(resume, config, folder, world_size=4), straight, strict=True):
        assert here.results == there.results[SAVED_STEP:]
        for resumed, kept in zip(here.saved, there.saved, strict=True):
            assert resumed.values.tobytes() == kept.values.tobytes(), resumed.name
    if precision == "bf16":
        return
    wanted = saved_tensors([of_rank.saved for of_rank in straight])
    for layout, data in AWAY:
        other = _config(name, layout, precision)
        resumed_ranks = pool.run(resume, other, folder, world_size=world_size(other, data))
        resumed_tensors = saved_tensors([of_rank.saved for of_rank in resumed_ranks])
        assert resumed_tensors.keys() == wanted.keys()
        for key, tensor in resumed_tensors.items():
            if key.startswith("weights/"):
                scale = wanted[key].abs().max().clamp_min(config.model.init_std)
                assert torch.le((tensor - wanted[key]).abs().max(), 1e-6 * scale), f"{key} on {layout}"
        for result, expected in zip(resumed_ranks[0].results, straight[0].results[SAVED_STEP:], strict=True):
            assert result.loss == pytest.approx(expected.loss, rel=1e-6)
