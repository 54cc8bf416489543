"""Stops at any moment, going back, starting from other weights, and a rank that dies in a save."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pretrain.checkpoint.names import list_checkpoints
from pretrain.config.loop_loss import LoopLossSection
from pretrain.config.run import RunConfig
from pretrain.model.loop.config import LoopSection
from pretrain.model.loop.tables import TABLES
from pretrain.parallel import engine
from tests.distributed.pool import RankPool
from tests.distributed.test_training import assert_close, exact_rows, rows, tensors
from tests.distributed.training import Interruption, train, train_aloud, training_config, write_corpus
from tests.support.ranks import Rank

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("resumption"))


def state(root: Path, name: str) -> str:
    return (root / "runs" / name / "state").read_text().strip()


def validations(root: Path, name: str) -> list[tuple[Any, ...]]:
    found = rows(root, name, "eval/depth.jsonl")
    return sorted((row["step"], row["num_loops"], row["value"], row["tokens_seen"]) for row in found)


@pytest.fixture(scope="module")
def reference(root: Path, pool: RankPool) -> str:
    """An uninterrupted run on two ranks, validated at every third step."""
    assert pool.run(train, training_config(root, "reference", validation={"every": 3}), world_size=2) == [0, 0]
    assert len(validations(root, "reference")) == 8
    return "reference"


LOOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "last": ({"injection": "gated", "per_loop": "lora", "residual": "hyper"}, {"over": "last"}),
    "every": (
        {"injection": "diagonal", "per_loop": "norm_scales", "final_norm": "passes"},
        {"over": "every", "weights": "linear"},
    ),
    "expected": (
        {"exit": "gate", "injection": "add", "injection_at": "every", "start": "zeros", "per_loop": "adaln"},
        {"over": "expected", "prior": "geometric"},
    ),
    "linear": ({"exit": "linear", "final_norm": "coda", "per_loop": "embedding"}, {"over": "expected"}),
    "consistent": ({"keys": "every"}, {"over": "consistent"}),
    "window": ({"keys": "first", "keys_window": 3}, {"over": "last"}),
    "noise": ({"start": "noise", "injection": "concat", "injection_at": "every"}, {"over": "consistent"}),
}
"""The design of the loop and what its loss is of."""


def test_each_loss_of_loops_has_a_resumption() -> None:
    overs = get_args(LoopLossSection.model_fields["over"].annotation)
    assert set(overs) == {loss["over"] for _, loss in LOOPS.values()}


@pytest.mark.parametrize("kind", TABLES)
def test_each_variant_of_the_loop_has_a_resumption(kind: str) -> None:
    default = LoopSection.model_fields[kind].default
    assert set(TABLES[kind]) == {default} | {loop[kind] for loop, _ in LOOPS.values() if kind in loop}


@pytest.mark.parametrize("name", LOOPS)
def test_a_resumed_run_of_any_loss_of_loops_is_bitwise_the_uninterrupted_one(
    root: Path, pool: RankPool, name: str
) -> None:
    """The stop comes after two of four steps, whose loops are drawn up to a maximum that grows."""
    loop, loss = LOOPS[name]
    loops = {"distribution": "uniform", "maximum": 4, "growth": {"start": 2, "begin": 0.25}}
    changes = {
        "parallel": {"pipeline": 2},
        "model": {"loop": loop},
        "train": {"steps": 4, "deterministic": True, "loop_loss": loss, "loop_sampling": loops},
        "validation": {"every": 0, "num_loops": []},
    }
    whole, cut = (training_config(root, f"{when}-{name}", **changes) for when in ("whole", "cut"))
    assert pool.run(train, whole, world_size=2) == [0, 0]
    stop = Interruption(rank=1, method="train_step", call=1, signal=signal.SIGTERM)
    assert pool.run(train, cut, stop, world_size=2) == [0, 0]
    assert rows(root, cut.run.name)[-1]["step"] == 2
    assert pool.run(train, cut, world_size=2) == [0, 0]
    minimised = [[row["objective"] for row in rows(root, run.run.name)] for run in (cut, whole)]
    assert minimised[0] == minimised[1] and all((value is None) == (loss["over"] == "last") for value in minimised[0])
    assert exact_rows(root, cut.run.name) == exact_rows(root, whole.run.name)
    ours, theirs = tensors(root, cut.run.name), tensors(root, whole.run.name)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("seed", range(4))
def test_stops_at_random_moments_lose_no_row_and_double_none(
    root: Path, pool: RankPool, reference: str, seed: int
) -> None:
    """A stop in a step, or before, in or after a validation, that of the last step included."""
    draw, name = random.Random(seed), f"stopped-{seed}"
    config = training_config(root, name, validation={"every": 3}, checkpoint={"every": 2})
    for start in range(30):
        stop = None
        if start < 20:
            method = draw.choice(("train_step", "evaluate", "pieces"))
            number = draw.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
            stop = Interruption(rank=draw.randrange(2), method=method, call=draw.randrange(4), signal=number)
        assert pool.run(train, config, stop, world_size=2) == [0, 0]
        if state(root, name) == "complete":
            break
    assert exact_rows(root, name) == exact_rows(root, reference)
    assert validations(root, name) == validations(root, reference)


def test_a_run_that_diverges_keeps_its_good_checkpoints_and_goes_back_to_one(root: Path, pool: RankPool) -> None:
    sane = {"checkpoint": {"every": 2, "keep_last": 2}, "validation": {"every": 0}}
    whole = training_config(root, "whole", **sane)
    assert pool.run(train, whole, world_size=1) == [0]
    half = {"train": {"steps": 6}, "optimizer": {"schedule": "constant"}}
    config = training_config(root, "diverging", **sane | half)
    assert pool.run(train, config, world_size=1) == [0]
    ruin = {"lr": 1e38, "clip_grad_norm": 0.0, "schedule": "constant"}
    ruined = training_config(root, "diverging", **sane, optimizer=ruin, train={"max_bad_steps": 5, "steps": 12})
    (printed,) = pool.run(train_aloud, ruined, world_size=1)
    assert "optimizer.lr: 0.01 in the checkpoint, 1e+38 now" in printed
    assert state(root, "diverging").startswith("failed")
    folder = root / "runs" / "diverging" / "checkpoints"
    kept = [path.name for path in list_checkpoints(folder)]
    assert {"step-00000004", "step-00000006"} <= set(kept) and len(kept) > 2

    back = training_config(root, "diverging", checkpoint={"resume": 4, "every": 2}, validation={"every": 0})
    (printed,) = pool.run(train_aloud, back, world_size=1)
    assert f"set aside: {folder / 'step-00000006.aside'}" in printed and state(root, "diverging") == "complete"
    assert sorted(path.name for path in folder.glob("*.aside")) == sorted(
        f"{name}.aside" for name in kept if name > "step-00000005"
    )
    steps = [row["step"] for row in rows(root, "diverging")]
    assert steps == list(range(1, 13)) and all(row["loss"] is not None for row in rows(root, "diverging"))
    (printed,) = pool.run(train_aloud, back, world_size=1)  # the same command does not go back again
    assert "step 12 of 12: resumed" in printed

    (printed,) = pool.run(train_aloud, training_config(root, "diverging", checkpoint={"resume": 5}), world_size=1)
    assert "error: checkpoint.resume=5: " in printed and "has no good checkpoint of it" in printed


def train_undrawn(config: RunConfig) -> str:
    """Train, where drawing weights is an error."""
    drawing = engine.initialise
    engine.initialise = raising  # type: ignore[assignment]
    try:
        return train_aloud(config)
    finally:
        engine.initialise = drawing


def raising(*_: Any) -> None:
    raise AssertionError("weights were drawn")


def test_weights_that_a_checkpoint_fills_are_not_drawn_before(root: Path, pool: RankPool) -> None:
    short = training_config(root, "undrawn", train={"steps": 3}, validation={"every": 0})
    with pytest.raises(Exception, match="weights were drawn"):
        pool.run(train_undrawn, short, world_size=1)
    assert pool.run(train, short, world_size=1) == [0]
    (printed,) = pool.run(train_undrawn, short, world_size=1)
    assert "step 3 of 3: resumed" in printed


def test_what_the_weights_were_worth_is_measured_once(root: Path, pool: RankPool, reference: str) -> None:
    source = str(root / "runs" / reference)
    config = training_config(
        root, "derived", checkpoint={"init_from": source}, train={"steps": 3}, validation={"every": 3}
    )
    for _ in range(2):
        assert pool.run(train, config, world_size=1) == [0]
        assert [step for step, *_ in validations(root, "derived")] == [0, 0, 3, 3]
        shutil.rmtree(root / "runs" / "derived" / "checkpoints")  # as a kill before the first one leaves it
    assert validations(root, "derived")[0][2] == pytest.approx(validations(root, reference)[-2][2], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"rope_theta": 100.0}, "error: model.rope_theta=100.0, but the weights of"),
        ({"tied_head": True}, "error: model.tied_head=True, but the weights of"),
        ({"num_loop_layers": 1}, "error: model.num_loop_layers=1, but the weights of"),
        ({"num_loops": 3}, "model.num_loops: 2 in "),
    ],
)
def test_weights_of_another_model_are_not_taken(
    root: Path, pool: RankPool, reference: str, model: dict[str, Any], message: str
) -> None:
    source = str(root / "runs" / reference)
    config = training_config(root, "other", checkpoint={"init_from": source}, model=model, train={"steps": 1})
    (printed,) = pool.run(train_aloud, config, world_size=1)
    assert message in printed
    shutil.rmtree(root / "runs" / "other", ignore_errors=True)


def test_tokens_are_counted_when_the_batch_changes(root: Path, pool: RankPool) -> None:
    settings = {"validation": {"every": 0}}
    assert pool.run(train, training_config(root, "grown", train={"steps": 4}, **settings), world_size=1) == [0]
    grown = training_config(root, "grown", train={"steps": 6, "global_batch": 32}, **settings)
    (printed,) = pool.run(train_aloud, grown, world_size=1)
    assert "train.global_batch: 8 in the checkpoint, 32 now" in printed
    assert [row["tokens_seen"] for row in rows(root, "grown")] == [128, 256, 384, 512, 1024, 1536]


DYING = """
import os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from pretrain.checkpoint import store as checkpoint_store
from pretrain.checkpoint.format import Piece

dist.init_process_group("gloo")
rank = dist.get_rank()
asynchronous = sys.argv[2] == "asynchronous"
store = checkpoint_store.open_store(Path(sys.argv[1]), keep_last=1, keep_every=0, asynchronous=asynchronous)
if rank == 1:
    checkpoint_store.SaveAttempt.run = lambda *_: os._exit(9)
piece = Piece(name="x", tensor=torch.ones(4), shape=(8,), start=4 * rank)
store.save(1, [piece], {})
store.wait()
"""


@pytest.mark.parametrize("how", ["asynchronous", "at once"])
def test_a_rank_that_dies_in_a_save_ends_the_wait_of_the_others(tmp_path: Path, how: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = time.monotonic()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DYING, str(tmp_path), how], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **variables, "RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 9], errors
    assert "losed by peer" in errors[0] or "reset by peer" in errors[0]
    assert time.monotonic() - started < 100 and not list_checkpoints(tmp_path)


def test_a_closed_or_full_display_does_not_end_a_run(tmp_path: Path) -> None:
    arguments = [
        "-m",
        "pretrain.train",
        "--config",
        "tests/golden/pretrained.yaml",
        "train.steps=2",
        "optimizer.warmup_steps=1",
    ]
    command = " ".join([sys.executable, *arguments, f"run.root={tmp_path}"])
    for number, redirection in enumerate(("2>&-", "2>/dev/full", "2>&1 | head -c 1 >/dev/null")):
        shell = f"set -o pipefail; {command} run.name=display{number} {redirection}"
        ended = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, (redirection, ended.stderr)
        assert (tmp_path / f"display{number}" / "state").read_text() == "complete\n"
        losses = (tmp_path / f"display{number}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in losses] == [1, 2]


def test_two_starts_in_one_directory_are_one_run(tmp_path: Path) -> None:
    arguments = ["--config", "tests/golden/pretrained.yaml", f"run.root={tmp_path}"]
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    runs = [
        Rank("pretrain.train", arguments, alone, tmp_path / f"said-{number}.txt", afresh=False) for number in range(2)
    ]
    codes, printed = [run.wait(200) for run in runs], [run.output for run in runs]
    assert sorted(map(str, codes)) in (["0", "2"], ["0", "0"]), printed
    refused = [text for code, text in zip(codes, printed, strict=True) if code == 2]
    assert all("belongs to a run that is alive: process" in text or "at the same moment" in text for text in refused)
    steps = [json.loads(line)["step"] for line in (tmp_path / "pretrained" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9)) and (tmp_path / "pretrained" / "state").read_text() == "complete\n"
    assert not (tmp_path / "pretrained" / "owner").exists()


def test_stopped_and_moved_weights_are_those_of_the_reference(root: Path, pool: RankPool, reference: str) -> None:
    config = training_config(root, "moved", validation={"every": 3})
    stop = Interruption(rank=0, method="train_step", call=5, signal=signal.SIGTERM)
    assert pool.run(train, config, stop, world_size=2) == [0, 0]
    (root / "runs" / "moved").rename(root / "runs" / "renamed")
    (printed,) = set(pool.run(train_aloud, training_config(root, "renamed", validation={"every": 3}), world_size=1))
    assert "run.name: 'moved' in the checkpoint, 'renamed' now" in printed
    assert_close(tensors(root, "renamed"), tensors(root, reference))
