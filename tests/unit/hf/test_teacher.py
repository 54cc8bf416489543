"""A frozen model that training imitates: the divergence is what torch computes, it falls, and what cannot be is
refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.run import RunConfig
from pretrain.data.stream.batch import make_inputs
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups, start_world
from pretrain.parallel.teacher import Teacher
from pretrain.run.trained_model import load_trained_model
from tests.unit.hf.test_convert import SEQ_LEN, make_run, tokenizer

__all__ = ["tokenizer"]
SHAPE = {"vocab_size": 320, "hidden_size": 32, "num_attention_heads": 4, "ffn_size": 48, "num_loop_layers": 4}
ROWS = torch.randint(3, 300, (4, 2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
ROWS[:, 1, 5:9] = -100


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    yield start_world()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> tuple[Path, Path]:
    """The run that teaches, and that from which the model starts."""
    root = tmp_path_factory.mktemp("teacher")
    return tuple(make_run(root / f"run{seed}", tokenizer, {}, seed=seed) for seed in (0, 1))  # type: ignore[return-value]


def config_of(teacher: Path | None, precision: str = "fp32", **sections: Any) -> RunConfig:
    train = {"seq_len": SEQ_LEN, "global_batch": 4, "micro_batch": 2, "precision": precision}
    if teacher is not None:
        train["teacher"] = {"run": str(teacher), "weight": 0.5}
    return RunConfig.model_validate({"model": SHAPE, "train": train | sections.pop("train", {}), **sections})


def engine_of(config: RunConfig, start: Path, device: torch.device) -> Engine:
    engine = Engine(config, make_groups(config.parallel, device), Separators(bos_id=1, eos_id=2))
    engine.load_weights(open_checkpoint(start)[0])
    return engine


@torch.no_grad()
def divergence(teacher: Path, model: Path) -> float:
    """Nats per supervised token, by torch."""
    inputs = make_inputs(ROWS, 1, document_mask=False)
    models = [load_trained_model(run, torch.device("cpu")).model for run in (teacher, model)]
    theirs, ours = (one.logits(one(inputs.tokens)).log_softmax(-1) for one in models)
    each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return each[inputs.labels.flatten() >= 0].mean().item()


def test_the_divergence_is_that_of_torch_and_falls(runs: tuple[Path, Path], device: torch.device) -> None:
    teacher, start = runs
    engine = engine_of(config_of(teacher), start, device)
    assert engine.teacher is not None
    frozen = {name: weight.clone() for name, weight in engine.teacher.model.named_parameters()}
    results = [engine.train_step(ROWS, 1, lr=3e-3) for _ in range(5)]
    added = [result.objective - result.loss for result in results if result.objective is not None]
    assert added[0] == pytest.approx(0.5 * divergence(teacher, start), rel=1e-4)
    assert len(added) == 5 and added == sorted(added, reverse=True) and added[-1] < 0.95 * added[0]
    assert all(torch.equal(weight, frozen[name]) for name, weight in engine.teacher.model.named_parameters())


def test_a_rank_holds_one_teacher(
    runs: tuple[Path, Path], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, start = runs
    loaded, load = [], Teacher.__init__

    def note(self: Teacher, *arguments: Any) -> None:
        loaded.append(self)
        load(self, *arguments)

    monkeypatch.setattr(Teacher, "__init__", note)
    engine = engine_of(config_of(teacher), start, device)
    assert loaded == [engine.teacher]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_own_teacher_changes_nothing(runs: tuple[Path, Path], device: torch.device, precision: str) -> None:
    results = []
    for teacher in (runs[0], None):
        results.append(engine_of(config_of(teacher, precision), runs[0], device).train_step(ROWS, 1, lr=1e-3))
    taught, alone = results
    assert alone.objective is None and taught.objective == pytest.approx(taught.loss, abs=1e-6)
    assert taught.loss == alone.loss
    assert taught.grad_norm == pytest.approx(alone.grad_norm, rel=1e-4 if precision == "fp32" else 1e-2)


def test_what_cannot_teach_is_refused(
    runs: tuple[Path, Path], device: torch.device, tokenizer: Path, tmp_path: Path
) -> None:
    for sections, message in (
        ({"parallel": {"tensor": 2}}, "train.teacher: .* parallel.tensor=1 and parallel.pipeline=1"),
        ({"parallel": {"pipeline": 2}}, "train.teacher: .* parallel.tensor=1 and parallel.pipeline=1"),
        ({"train": {"loop_loss": {"over": "every"}}}, r"train\.loop_loss\.over=last"),
    ):
        with pytest.raises(ValueError, match=message):
            config_of(runs[0], **sections)
    other = make_run(tmp_path / "other", tokenizer, {"vocab_size": 328})
    for teacher, message in ((other, "has 328 rows of vocabulary"), (tmp_path / "absent", "no checkpoints there")):
        with pytest.raises(ValueError, match=message):
            engine_of(config_of(teacher), runs[0], device)
