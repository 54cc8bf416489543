"""Fine-tuning under the real DeepSpeed: ranks, ZeRO stages and tensor parallelism change nothing, resuming is exact,
the best is kept."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import FinetuneConfig
from pretrain.checkpoint.names import list_checkpoints, parse_step
from pretrain.checkpoint.verify import newest_good
from pretrain.rows.evaluation import ScoredModel
from pretrain.run.trained_model import load_trained_model
from tests.distributed.finetuning import TASK, finetune, finetune_config
from tests.distributed.pool import RankError, RankPool
from tests.distributed.training import Interruption
from tests.support.run_rows import scored

EXACT = ("step", "epoch", "stage", "loss", "grad_norm", "lr", "thoughts_per_example", "skipped")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetuning")


def run(pool: RankPool, config: FinetuneConfig, world_size: int, interruption: Interruption | None = None) -> list[Any]:
    answers = pool.run(finetune, config, interruption, world_size=world_size, timeout_s=120)
    assert [code for code, _ in answers] == [0] * world_size
    return answers[0][1]


def rows(root: Path, name: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs" / name / file).read_text().splitlines()]


def exact_rows(root: Path, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in EXACT) for row in rows(root, name)]


def scores(root: Path, name: str) -> list[tuple[Any, ...]]:
    return [
        tuple(row[key] for key in ("split", "step", "accuracy", "new_tokens"))
        for row in rows(root, name, "eval/coconut.jsonl")
    ]


def tensors(root: Path, name: str) -> dict[str, torch.Tensor]:
    reader, problems = newest_good(root / "runs" / name / "checkpoints")
    assert reader is not None and not problems
    return {key: reader.read_whole(key) for key in reader.tensors}


def tokens(root: Path, name: str, last_step: int) -> int:
    """Tokens of the first steps, as their rows have them."""
    steps = [row for row in rows(root, name) if row["step"] <= last_step]
    return sum(round(row["tokens_per_s"] * row["step_time_s"]) for row in steps)


@pytest.fixture(scope="module")
def reference(root: Path, pool: RankPool) -> str:
    """An uninterrupted run in one process, without ZeRO. The large epsilon keeps AdamW's update smooth in the gradient;
    norms of heads are weights that every tensor-parallel rank holds and uses for heads of its own; the loop has weights
    inside and outside the layers, which no module's own forward pass reads."""
    run(pool, smooth(root, "reference"), 1)
    return "reference"


LOOP = {"injection": "diagonal", "injection_at": "every", "start": "noise", "per_loop": "lora"}


def smooth(root: Path, name: str, **engine: int) -> FinetuneConfig:
    return finetune_config(
        root, name, model={"qk_norm": "head", "loop": LOOP}, optimizer={"lr": 0.1, "epsilon": 1.0},
        engine={"zero_stage": 0, **engine}, train={"epochs": 3, "dropout": 0.1}, data={"test": {}},
        curriculum={"thoughts_per_step": 1},
    )  # fmt: skip


@pytest.mark.parametrize(
    "engine", [*({"zero_stage": stage} for stage in range(4)), {"tensor": 2, "zero_stage": 2}], ids=str
)
def test_ranks_and_zero_change_nothing(root: Path, pool: RankPool, reference: str, engine: dict[str, int]) -> None:
    name = f"ranks-{'-'.join(f'{key}{value}' for key, value in engine.items())}"
    run(pool, smooth(root, name, **engine), 2)
    ours, theirs = rows(root, name), rows(root, reference)
    assert max(row["thoughts_per_example"] for row in ours) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["thoughts_per_example"] == other["thoughts_per_example"]
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-6)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)
    state, wanted = tensors(root, name), tensors(root, reference)
    assert state.keys() == wanted.keys()
    for key, tensor in wanted.items():
        if tensor.is_floating_point():
            assert (state[key] - tensor).abs().max() <= 2e-5 * tensor.abs().max(), key
    assert scores(root, name) == scores(root, reference)


@pytest.mark.parametrize(
    ("precision", "zero_stage"), [("fp32", 0), ("fp32", 2), ("fp32", 3), ("bf16", 0), ("bf16", 2), ("bf16", 3)]
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    root: Path, pool: RankPool, precision: str, zero_stage: int
) -> None:
    changes = {
        "train": {"precision": precision, "epochs": 3, "deterministic": True},
        "data": {"train": {**TASK, "num_examples": 12}, "test": {}},
        "curriculum": {"thoughts_per_step": 1}, "engine": {"zero_stage": zero_stage},
    }  # fmt: skip
    names = [f"{name}-{precision}-{zero_stage}" for name in ("whole", "cut")]
    whole, cut = (finetune_config(root, name, **changes) for name in names)
    run(pool, whole, 2)
    # in the middle of stage 1
    assert len(run(pool, cut, 2, Interruption(rank=1, method="train_step", call=2, signal=signal.SIGTERM))) == 3
    assert (root / "runs" / names[1] / "state").read_text() == "stopped by SIGTERM\n"
    assert len(run(pool, cut, 2)) == 3
    assert exact_rows(root, names[0]) == exact_rows(root, names[1])
    ours, theirs = tensors(root, names[0]), tensors(root, names[1])
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert any(key.startswith("optimizer/exp_avg_sq/") for key in ours)
    assert scores(root, names[0]) == scores(root, names[1])
    counted = [scored(root / "runs" / name).counters for name in names]
    assert counted[0] == counted[1] and counted[0].tokens_seen == tokens(root, names[0], last_step=6)


def test_fp16_without_a_gpu_is_refused_by_its_key(root: Path, pool: RankPool) -> None:
    with pytest.raises(RankError, match=r"train\.precision=fp16: DeepSpeed has it on GPUs only; use bf16 or fp32"):
        run(pool, finetune_config(root, "fp16", train={"precision": "fp16"}), 1)


def test_a_run_goes_on_with_other_ranks_and_another_zero_stage(root: Path, pool: RankPool, reference: str) -> None:
    stop = Interruption(rank=0, method="train_step", call=3, signal=signal.SIGUSR1)
    run(pool, smooth(root, "moved", zero_stage=3), 2, stop)
    run(
        pool,
        smooth(root, "moved", zero_stage=2),
        1,
        Interruption(rank=0, method="train_step", call=2, signal=signal.SIGINT),
    )
    run(pool, smooth(root, "moved", zero_stage=1), 2)
    for key, tensor in tensors(root, reference).items():
        if tensor.is_floating_point():
            assert (tensors(root, "moved")[key] - tensor).abs().max() <= 2e-5 * tensor.abs().max(), key


def test_a_signal_during_validation_leaves_it_to_the_next_start(root: Path, pool: RankPool) -> None:
    config = finetune_config(root, "validating", train={"epochs": 2}, data={"test": {}})
    stop = Interruption(rank=1, method="score", part="answering", call=0, signal=signal.SIGTERM)
    assert len(run(pool, config, 2, stop)) == 3
    assert rows(root, "validating", "eval/coconut.jsonl") == []
    assert len(run(pool, config, 2)) == 3
    assert [row["step"] for row in rows(root, "validating", "eval/coconut.jsonl")] == [3, 6]


def test_a_run_stops_after_its_minutes(root: Path, pool: RankPool) -> None:
    assert len(run(pool, finetune_config(root, "timed", train={"exit_after": 1e-9}), 2)) == 1
    assert (root / "runs" / "timed" / "state").read_text() == "stopped by train.exit_after\n"


def test_only_the_last_stage_can_be_the_best(root: Path, pool: RankPool) -> None:
    config = finetune_config(root, "best", method={"stop": "classifier"}, train={"epochs": 5})
    run(pool, config, 2)
    found = rows(root, "best", "eval/coconut.jsonl")
    assert [(row["split"], row["stage"]) for row in found[:-1]] == [("validation", stage) for stage in (0, 1, 2, 3, 3)]
    last = [row for row in found if row["split"] == "validation" and row["stage"] == 3]
    best = next(row for row in last if row["accuracy"] == max(other["accuracy"] for other in last))
    assert (found[-1]["split"], found[-1]["step"]) == ("test", best["step"])
    folder = root / "runs" / "best" / "best"
    steps = [row for row in rows(root, "best") if row["step"] <= best["step"]]
    assert load_trained_model(folder, torch.device("cpu")).step == best["step"]
    reader, _ = newest_good(folder / "checkpoints")
    assert reader is not None
    counters, flops = (
        ScoredModel.of(reader.meta, reader.step).counters,
        sum(row["flops_per_s"] * row["step_time_s"] for row in steps),
    )
    assert counters.tokens_seen == tokens(root, "best", best["step"]) and counters.train_flops == pytest.approx(flops)
    assert {"stop/weight", "stop/bias"} <= reader.tensors.keys()
    assert not any(key.startswith("optimizer/") for key in reader.tensors)
    assert (root / "runs" / "best" / "state").read_text() == "complete\n"
    assert run(pool, config, 2) == []  # nothing is left to do, and nothing is written twice
    assert rows(root, "best", "eval/coconut.jsonl") == found

    # A kill after the best weights of the last epoch were saved, and before its checkpoint was.
    newest, before = list_checkpoints(root / "runs" / "best" / "checkpoints")
    shutil.rmtree(newest)
    assert len(run(pool, config, 2)) == parse_step(newest.name) - parse_step(before.name)
    again = rows(root, "best", "eval/coconut.jsonl")
    told = ("split", "step", "accuracy")
    assert sorted(tuple(row[key] for key in told) for row in again) == sorted(
        tuple(row[key] for key in told) for row in found
    )
    assert load_trained_model(folder, torch.device("cpu")).step == best["step"]
    once = finetune_config(root, "best", method={"stop": "classifier"}, checkpoint={"resume": "never"})
    with pytest.raises(RankError, match=r"but checkpoint\.resume=never"):
        run(pool, once, 2)


@pytest.mark.parametrize(("reset", "starts"), [("never", [0]), ("stage", [0, 3, 6, 9]), ("epoch", [0, 3, 6, 9, 12])])
def test_moments_start_again_as_configured(root: Path, pool: RankPool, reset: str, starts: list[int]) -> None:
    name = f"reset-{reset}"
    run(
        pool,
        finetune_config(
            root,
            name,
            optimizer={"reset": reset, "lr": 1e-3, "beta1": 0.8},
            train={"epochs": 5},
            checkpoint={"every": 1},
        ),
        1,
    )
    meta = newest_good(root / "runs" / name / "checkpoints")[0]
    assert meta is not None and meta.meta["updates_since_reset"] == 15 - starts[-1]


def test_a_gradual_removal_resets_the_moments_at_every_token(root: Path, pool: RankPool) -> None:
    config = finetune_config(
        root, "gradual", method={"name": "icot"}, curriculum={"gradual": True}, train={"epochs": 3}, data={"test": {}}
    )
    run(pool, config, 1)
    meta = newest_good(root / "runs" / "gradual" / "checkpoints")[0]
    assert meta is not None and meta.meta["updates_since_reset"] == 1


def test_training_starts_from_a_run_and_other_methods_train_on_it(root: Path, pool: RankPool, reference: str) -> None:
    first = tensors(root, reference)
    config = finetune_config(
        root, "from-run", checkpoint={"init_from": str(root / "runs" / reference)}, method={"name": "cot"},
        train={"epochs": 1, "seq_len": None, "num_loops": 3}, optimizer={"lr": 1e-9},
    )  # fmt: skip
    (step, *_) = run(pool, config, 1)
    assert math.isfinite(step.loss)
    assert {row["num_loops"] for row in rows(root, "from-run", "eval/coconut.jsonl")} == {3}
    # the test set may be corrected afterwards: it is scored once, without training
    fewer = config.data.test.model_copy(update={"num_examples": 4})
    corrected = config.model_copy(update={"data": config.data.model_copy(update={"test": fewer})})
    assert run(pool, corrected, 1) == run(pool, corrected, 1) == []
    tests = [row for row in rows(root, "from-run", "eval/coconut.jsonl") if row["split"] == "test"]
    assert [row["num_examples"] for row in tests] == [5, 4]
    for key, tensor in tensors(root, "from-run").items():
        if key.startswith("weights/"):
            torch.testing.assert_close(tensor, first[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        {"jacobi_passes": 2},
        {"stop": "classifier", "stop_weight": 0.5},
        {"name": "pause"},
        {"name": "icot"},
        {"name": "without_curriculum"},
    ],
)
def test_methods_train_on_two_ranks(root: Path, pool: RankPool, method: dict[str, Any]) -> None:
    name = "-".join(map(str, method.values()))
    run(pool, finetune_config(root, f"method-{name}", method=method, train={"epochs": 4}), 2)
    losses = [row["loss"] for row in rows(root, f"method-{name}")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "method",
    [{"name": "codi"}, {"name": "sim_cot"}, {"name": "lotus", "refinements": 2}],
    ids=lambda found: found["name"],
)
def test_what_a_method_adds_is_the_same_on_ranks_and_after_a_stop(
    root: Path, pool: RankPool, method: dict[str, Any]
) -> None:
    """One rank in one go, against two under ZeRO-3 that are stopped in between: ranks with nothing to add included."""
    changes: dict[str, Any] = {
        "method": method, "train": {"epochs": 2}, "optimizer": {"lr": 0.1, "epsilon": 1.0},
        "curriculum": {"first_stage_epochs": 0, "num_stages": 1, "uniform_prob": 0.3}, "data": {"test": {}},
    }  # fmt: skip
    names = [f"{method['name']}-{ranks}" for ranks in (1, 2)]
    alone, spread = (
        finetune_config(root, name, engine={"zero_stage": stage}, **changes)
        for name, stage in zip(names, (0, 3), strict=True)
    )
    run(pool, alone, 1)
    assert len(run(pool, spread, 2, Interruption(rank=1, method="train_step", call=3, signal=signal.SIGTERM))) == 4
    assert len(run(pool, spread, 2)) == 2
    for mine, other in zip(rows(root, names[1]), rows(root, names[0]), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-6)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)
    wanted = tensors(root, names[0])
    for key, tensor in tensors(root, names[1]).items():
        if tensor.is_floating_point():
            assert (tensor - wanted[key]).abs().max() <= 2e-5 * wanted[key].abs().max(), key
    assert scores(root, names[0]) == scores(root, names[1])


def test_what_a_run_was_trained_with_stays(root: Path, pool: RankPool, reference: str) -> None:
    changed = smooth(root, reference)
    for section, key, value in (("curriculum", "thoughts_per_step", 2), ("run", "seed", 1)):
        other = changed.model_copy(update={section: getattr(changed, section).model_copy(update={key: value})})
        with pytest.raises(RankError, match=f"{section}.{key}={value}, but .* was made with"):
            run(pool, other, 1)
