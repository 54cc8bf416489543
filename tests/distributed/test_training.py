"""The training run: resume is exact, ranks do not matter, signals and bad steps end it cleanly."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint.verify import newest_good
from pretrain.command.console import DIVERGED
from pretrain.model.count import train_flops_per_token
from tests.distributed.pool import RankPool
from tests.distributed.training import Interruption, train, train_aloud, training_config, write_corpus
from tests.support.run_rows import scored

EXACT = ("step", "loss", "grad_norm", "lr", "num_loops", "tokens_seen", "skipped")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer and shards; runs go into `root/runs`."""
    return write_corpus(tmp_path_factory.mktemp("training"))


def rows(root: Path, name: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs" / name / file).read_text().splitlines()]


def exact_rows(root: Path, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in EXACT) for row in rows(root, name)]


def tensors(root: Path, name: str) -> dict[str, torch.Tensor]:
    reader, problems = newest_good(root / "runs" / name / "checkpoints")
    assert reader is not None and not problems
    return {key: reader.read_whole(key) for key in reader.tensors}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.linalg.vector_norm((tensor - theirs[key]).double()) <= 1e-5 * torch.linalg.vector_norm(
            theirs[key].double()
        ), key


@pytest.fixture(scope="module")
def reference(root: Path, pool: RankPool) -> str:
    """An uninterrupted run in one process."""
    assert pool.run(train, training_config(root, "reference"), world_size=1) == [0]
    return "reference"


def test_what_the_regulariser_adds_is_in_the_rows(root: Path, pool: RankPool, reference: str) -> None:
    """With a weight that grows over the steps, through a stop as without one."""
    changes = {
        "model": {
            "num_loop_layers": 4, "num_loops": 1,
            "loop_regulariser": {"weight": 2.0, "block_size": 2, "warmup": 1.0},
        },
        "train": {"steps": 4, "loop_sampling": {"distribution": "fixed"}},
        "optimizer": {"warmup_steps": 0},
        "validation": {"every": 0, "num_loops": []},
    }  # fmt: skip
    whole, cut = (training_config(root, f"regularised-{name}", **changes) for name in ("whole", "cut"))
    assert pool.run(train, whole, world_size=2) == [0, 0]
    interruption = Interruption(rank=1, method="train_step", call=1, signal=signal.SIGTERM)
    assert pool.run(train, cut, interruption, world_size=2) == [0, 0]
    assert rows(root, cut.run.name)[-1]["step"] == 2
    assert pool.run(train, cut, world_size=2) == [0, 0]
    added = [row["regularisation"] for row in rows(root, whole.run.name)]
    assert added == [row["regularisation"] for row in rows(root, cut.run.name)]
    assert added[0] == 0 and added == sorted(added)
    assert all(0 < 4 * value / step < 4 for step, value in enumerate(added) if step)
    assert {row["regularisation"] for row in rows(root, reference)} == {0.0}


@pytest.mark.parametrize(("num_sequences", "is_repeated"), [(5, False), (400, True)])
def test_a_run_says_how_often_it_reads_its_text(
    root: Path, pool: RankPool, num_sequences: int, is_repeated: bool
) -> None:
    """About 24 short documents are held out."""
    validation = {"every": 1, "num_sequences": num_sequences, "num_loops": [1]}
    config = training_config(root, f"aloud-{num_sequences}", train={"steps": 1}, validation=validation)
    printed, _ = pool.run(train_aloud, config, world_size=2)
    assert re.search(rf"{root}/shards: 120 documents, [\d,]+ tokens, this run reads 0\.\d+ epochs", printed)
    line = rf"warning: {root}/shards: validation.num_sequences={num_sequences} hold \d+ of its documents more than once"
    assert bool(re.search(line, printed)) == is_repeated


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(root: Path, pool: RankPool, precision: str) -> None:
    """With loops that grow and, in bf16, differ from sequence to sequence and are computed again, which is no work that
    counts."""
    per = "sequence" if precision == "bf16" else "step"
    loops = {"distribution": "uniform", "maximum": 3, "per": per, "growth": {"start": 2, "begin": 0.5}}
    changes = {
        "parallel": {"pipeline": 2},
        "train": {
            "precision": precision, "deterministic": True, "loop_sampling": loops,
            "recompute": "loop" if per == "sequence" else "none",
        },
        "checkpoint": {"every": 5, "keep_last": 1, "asynchronous": precision == "fp32"},
    }  # fmt: skip
    whole, cut = (training_config(root, f"{name}-{precision}", **changes) for name in ("whole", "cut"))
    pool.run(train, whole, world_size=2)
    interruption = Interruption(rank=1, method="train_step", call=6, signal=signal.SIGTERM)
    assert pool.run(train, cut, interruption, world_size=2) == [0, 0]
    assert rows(root, cut.run.name)[-1]["step"] == 7  # the step under way is finished, no other is begun
    assert pool.run(train, cut, world_size=2) == [0, 0]
    assert exact_rows(root, cut.run.name) == exact_rows(root, whole.run.name)
    ours, theirs = tensors(root, cut.run.name), tensors(root, whole.run.name)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    kept = (root / "runs" / cut.run.name / "checkpoints").glob("step-*")
    assert [folder.name for folder in kept] == ["step-00000012"]
    runs = [root / "runs" / name for name in (cut.run.name, whole.run.name)]
    counted = [scored(run).counters for run in runs]
    assert counted[0] == counted[1] and counted[0].tokens_seen == 12 * 8 * 16
    drawn = [row["num_loops"] for row in rows(root, whole.run.name)]
    assert all(count % 1 == 0 for count in drawn) == (per == "step") and 1 <= min(drawn) < max(drawn) <= 3
    once, twice = (train_flops_per_token(whole.model, 16, num_loops) for num_loops in (1, 2))
    flops = sum(8 * 16 * (once + (count - 1) * (twice - once)) for count in drawn)  # of the loops that were run
    assert counted[0].train_flops == pytest.approx(flops)
    validations = [
        [(row["step"], row["value"]) for row in rows(root, name, "eval/depth.jsonl")]
        for name in (cut.run.name, whole.run.name)
    ]
    assert validations[0] == validations[1] and len(validations[0]) == 6


def test_a_run_moves_between_layouts(root: Path, pool: RankPool, reference: str) -> None:
    layouts = [({"pipeline": 2}, 2), ({"tensor": 2}, 4), ({}, 2), ({"pipeline": 2, "tensor": 2, "sequence": True}, 4)]
    for number, (parallel, world_size) in enumerate(layouts):
        config = training_config(root, "moving", parallel=parallel)
        stop = Interruption(rank=0, method="train_step", call=2, signal=signal.SIGUSR1) if number < 3 else None
        assert set(pool.run(train, config, stop, world_size=world_size)) == {0}
    ours, theirs = rows(root, "moving"), rows(root, reference)
    assert [row["num_loops"] for row in ours] == [row["num_loops"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-6)
    assert [row["grad_norm"] for row in ours] == pytest.approx([row["grad_norm"] for row in theirs], rel=1e-4)
    assert_close(tensors(root, "moving"), tensors(root, reference))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_during_validation_ends_the_run_at_once(root: Path, pool: RankPool, number: signal.Signals) -> None:
    config = training_config(root, f"validation-{number.name}")
    interruption = Interruption(rank=1, method="evaluate", call=0, signal=number)
    assert pool.run(train, config, interruption, world_size=2) == [0, 0]
    assert rows(root, config.run.name)[-1]["step"] == 4
    assert not (root / "runs" / config.run.name / "eval" / "depth.jsonl").read_text()
    reader, _ = newest_good(root / "runs" / config.run.name / "checkpoints")
    assert reader is not None and reader.step == 4


def test_a_run_stops_after_its_minutes(root: Path, pool: RankPool) -> None:
    config = training_config(root, "timed", train={"exit_after": 1e-9})
    assert pool.run(train, config, world_size=2) == [0, 0]
    assert rows(root, "timed")[-1]["step"] == 1
    assert (root / "runs" / "timed" / "state").read_text() == "stopped by train.exit_after\n"


def test_validation_does_not_depend_on_the_layout(root: Path, pool: RankPool, reference: str) -> None:
    pool.run(train, training_config(root, "wide", train={"steps": 4}, optimizer={"warmup_steps": 2}), world_size=4)
    first, second = (rows(root, name, "eval/depth.jsonl")[:2] for name in ("wide", reference))
    assert [row["num_loops"] for row in first] == [1, 2] and first[0]["value"] != first[1]["value"]
    assert [row["value"] for row in first] == pytest.approx([row["value"] for row in second], rel=0.05)


def test_bad_steps_are_skipped_and_end_the_run(root: Path, pool: RankPool) -> None:
    config = training_config(
        root, "bad", optimizer={"lr": 1e38, "clip_grad_norm": 0.0, "warmup_steps": 0}, train={"max_bad_steps": 3}
    )
    assert pool.run(train, config, world_size=2) == [DIVERGED] * 2
    written = rows(root, "bad")
    assert written[-1]["skipped"] == 3 and written[-1]["loss"] is None
    assert [row["skipped"] for row in written[-4:]] == [0, 1, 2, 3]
    assert (root / "runs" / "bad" / "state").read_text().startswith("failed: loss or gradient was not finite")


def test_what_defines_the_run_may_not_change_on_resume(root: Path, pool: RankPool, reference: str) -> None:
    (printed,) = pool.run(train_aloud, training_config(root, reference, model={"ffn_size": 32}), world_size=1)
    assert (
        "error: model.ffn_size=32, but" in printed and "reference/checkpoints/step-00000012 was made with 24" in printed
    )
    (printed,) = pool.run(train_aloud, training_config(root, reference, checkpoint={"resume": "never"}), world_size=1)
    assert "holds step-00000012, but checkpoint.resume=never" in printed


def test_a_run_beyond_the_last_step_says_so(root: Path, pool: RankPool, reference: str) -> None:
    shorter = training_config(root, reference, train={"steps": 5})
    (printed,) = pool.run(train_aloud, shorter, world_size=1)
    assert "is at step 12, beyond the 5 steps of this configuration: raise train.steps" in printed
    assert (root / "runs" / reference / "state").read_text() == "complete\n"


def test_a_bug_ends_the_state_of_running(root: Path, pool: RankPool) -> None:
    bug = Interruption(rank=0, method="train_step", call=2, signal=None, bug="no such kernel\nand more")
    (printed,) = pool.run(train_aloud, training_config(root, "buggy"), bug, world_size=1)
    assert "error: no such kernel" in printed
    assert (root / "runs" / "buggy" / "state").read_text() == "failed: RuntimeError: no such kernel\n"


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_the_rate_of_a_row_is_the_one_that_was_applied(root: Path, pool: RankPool, name: str) -> None:
    """Of a norm, which does not decay: Adafactor's first update has this RMS, relative to that of the weight, 1; Muon
    leaves it to AdamW, whose first update is its rate."""
    config = training_config(
        root, f"rate-{name}", train={"steps": 1}, optimizer={"name": name, "lr": 0.05, "warmup_steps": 0}
    )
    assert pool.run(train, config, world_size=1) == [0]
    (row,) = rows(root, f"rate-{name}")
    change = tensors(root, f"rate-{name}")["weights/final_norm.weight"] - 1
    torch.testing.assert_close(change.square().mean().sqrt(), torch.tensor(row["lr"]), rtol=1e-3, atol=0)


def test_a_complete_run_stays_as_it_is(root: Path, pool: RankPool, reference: str) -> None:
    before = exact_rows(root, reference)
    assert pool.run(train, training_config(root, reference), world_size=1) == [0]
    assert exact_rows(root, reference) == before


def test_a_damaged_checkpoint_is_passed_over(root: Path, pool: RankPool) -> None:
    config = training_config(root, "damaged")
    pool.run(train, config, world_size=2)
    whole = tensors(root, "damaged")
    newest = root / "runs" / "damaged" / "checkpoints" / "step-00000012" / "rank-00001.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    printed, _ = pool.run(train_aloud, config, world_size=2)
    assert "rank-00001.safetensors is damaged" in printed and "step 10 of 12: resumed" in printed
    again = tensors(root, "damaged")
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_without_a_good_checkpoint_a_run_does_not_start_over(root: Path, pool: RankPool) -> None:
    config = training_config(root, "lost", train={"steps": 4}, checkpoint={"every": 0})
    pool.run(train, config, world_size=1)
    (root / "runs" / "lost" / "checkpoints" / "step-00000004" / "checkpoint.json").write_text("{}")
    (printed,) = pool.run(train_aloud, config, world_size=1)
    assert "step-00000004 is bad" in printed and "no good checkpoint is left" in printed
    assert len(rows(root, "lost")) == 4
