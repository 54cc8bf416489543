"""What the plan says that a teacher takes, against what a step with it allocates and computes."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from pretrain.config.layout import check_layout
from pretrain.config.read import resolved_yaml
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.model.config import ModelSection
from pretrain.model.count import attention_flops, forward_flops_per_token, head_flops
from pretrain.model.kernels import blocked_attention
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups, start_world
from pretrain.plan.__main__ import main as find_layouts
from pretrain.plan.cost import step_cost
from pretrain.plan.machine import COMPILED, GPUS
from pretrain.plan.plan import make_plan
from pretrain.plan.room import model_needs
from pretrain.run.other_runs import saved_teacher
from pretrain.train import main
from tests.support.memory import allocations
from tests.unit.hf.test_convert import make_run, tokenizer

__all__ = ["tokenizer"]
SEQ_LEN = 16
LOGITS = {"vocab_size": 4096}
"""A teacher whose logits outweigh its pass."""
WIDE = {"vocab_size": 320, "hidden_size": 256, "ffn_size": 1024, "num_loops": 2}
"""A teacher whose pass outweighs its logits."""


@pytest.fixture
def device() -> Iterator[torch.device]:
    yield start_world()
    dist.destroy_process_group()


def config_of(teacher: Path, vocab_size: int, **train: Any) -> RunConfig:
    model = {
        "vocab_size": vocab_size, "hidden_size": 32, "num_attention_heads": 4, "ffn_size": 48, "num_loop_layers": 2,
    }  # fmt: skip
    settings = {"seq_len": SEQ_LEN, "micro_batch": 64, "global_batch": 128, "teacher": {"run": str(teacher)}, **train}
    return RunConfig.model_validate({"model": model, "train": settings, "validation": {"every": 0}})


@pytest.mark.parametrize("shape", [LOGITS, WIDE], ids=["logits", "pass"])
@pytest.mark.parametrize("train", [{"precision": "bf16"}, {"precision": "fp32", "recompute": "loop"}], ids=str)
def test_a_step_with_a_teacher_holds_what_is_planned(
    tmp_path: Path, tokenizer: Path, shape: dict[str, Any], train: dict[str, Any], device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(blocked_attention, "SCRATCH_ELEMENTS", 2**14)
    config = config_of(make_run(tmp_path / "teacher", tokenizer, shape), shape["vocab_size"], **train)
    engine = Engine(config, make_groups(config.parallel, device), Separators(bos_id=1, eos_id=2))
    rows = torch.full((128, 2, SEQ_LEN), 3)
    engine.train_step(rows, 1, lr=1e-3)  # makes the states of the optimizer
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        engine.train_step(rows, 1, lr=1e-3)
    peak = max(itertools.accumulate(size for _, size in allocations(trace)))
    (stage,), (alone,) = (make_plan(config, 1, teacher).stages for teacher in (saved_teacher(config), None))
    assert stage.activations + stage.working == pytest.approx(peak, rel=0.05)
    assert stage.activations + stage.working > 1.5 * (alone.activations + alone.working)
    assert engine.teacher is not None
    assert stage.teacher == sum(weight.nbytes for weight in engine.teacher.model.parameters())
    assert stage.total - alone.total == pytest.approx(
        stage.teacher + stage.activations + stage.working - alone.activations - alone.working
    )
    needs = {need.what: need.bytes for need in model_needs(config, check_layout(config, 1), saved_teacher(config))}
    assert needs[f"the model of train.teacher.run={tmp_path / 'teacher'}"] == stage.teacher


def test_a_step_takes_its_pass_and_the_head_once_more() -> None:
    """On a card whose memory takes no time: the products that are counted, at the rate of a product."""
    config = RunConfig.model_validate(
        {"model": {"vocab_size": 320}, "train": {"seq_len": SEQ_LEN, "micro_batch": 64, "global_batch": 128}}
    )
    shape = ModelSection.model_validate(WIDE | {"num_prelude_layers": 1, "num_loop_layers": 2})
    saved = SavedModel(
        run="teacher", model=shape, seq_len=SEQ_LEN, precision="bf16", tokenizer="symbols:ab", max_loops=2
    )
    card = replace(GPUS["h100"], memory_rate=1e30)
    software = replace(COMPILED, launch=0.0)
    with_it, without = (step_cost(make_plan(config, 1, teacher), card, software) for teacher in (saved, None))
    attention = shape.effective_depth() * attention_flops(shape, SEQ_LEN)
    products = forward_flops_per_token(shape, SEQ_LEN) - attention + 3 * head_flops(config.model)
    rate = software.matrices * card.peak_flops / (128 * SEQ_LEN)
    assert (with_it.times.matrices - without.times.matrices) * rate == pytest.approx(products, rel=1e-6)
    causal = (with_it.times.attention - without.times.attention) * software.attention_forward * card.peak_flops
    assert causal / (128 * SEQ_LEN) == pytest.approx(attention / 2, rel=1e-6)
    assert with_it.flops == without.flops and with_it.mfu < without.mfu


def test_dry_run_and_planner_count_it(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(make_run(tmp_path / "teacher", tokenizer, LOGITS), LOGITS["vocab_size"], precision="bf16")
    file = tmp_path / "config.yaml"
    file.write_text(resolved_yaml(config))
    assert main(["--config", str(file), "--dry-run", "--without-data"]) == 0
    headings, stage = capsys.readouterr().out.split("GiB a rank")[1].splitlines()[:2]
    assert headings.split()[3] == "teacher" and float(stage.split()[5]) > 0
    long = ["train.seq_len=65536", "train.micro_batch=1", "train.global_batch=8"]
    assert find_layouts(["--config", str(file), "--gpus", "8", *long]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(line.split() for line in lines if line.split()[:1] == ["1"])
    assert first[:7] == ["1", "1", "1", "8", "1", "×", "1"]  # whole models on each rank
    logits_gib = 4 * 65536 * LOGITS["vocab_size"] / 2**30
    assert float(first[8]) == pytest.approx(5 * logits_gib, rel=0.2)


def test_a_teacher_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(resolved_yaml(config_of(tmp_path / "absent", 320, precision="bf16")))
    assert main(["--config", str(file), "--dry-run", "--without-data"]) == 0
    assert "without the teacher, which is not counted: train.teacher.run: " in capsys.readouterr().out
    assert find_layouts(["--config", str(file), "--gpus", "8"]) == 2
    assert capsys.readouterr().err.startswith(f"error: train.teacher.run: {tmp_path / 'absent'}: no checkpoints there")
