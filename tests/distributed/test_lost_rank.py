"""When a rank ends, the others say one line; where they stood is kept in a file. A bug keeps its traceback."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.parallel.contact import contact
from tests.distributed.training import training_config, write_corpus
from tests.support.ranks import Rank, free_port, start_ranks

LINE = "error: rank {}: lost contact with another rank; see its message (traceback: {})"
REAL = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5396: Connection reset by peer.",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:38110.",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/buffer.cc:7] Timed out waiting 1800000ms for recv operation",
    "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    "NCCL error: remote process exited or there was a network error, NCCL version 2.27.5",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a run of each kind that takes long on two ranks."""
    root = write_corpus(tmp_path_factory.mktemp("lost"))
    config = training_config(root, "pretrain", parallel={"pipeline": 2}, train={"steps": 100_000})
    (root / "pretrain.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    task = {"task": "prosqa_symbolic", "parameters": {"num_nodes": 8, "min_hops": 2, "max_hops": 3}}
    finetuning: dict[str, Any] = {
        "run": {"name": "finetune", "root": str(root / "runs")},
        "model": {"vocab_size": 72, "hidden_size": 16, "num_attention_heads": 2, "ffn_size": 24},
        "data": {
            "tokenizer": "symbols:ABCDEFGHIJKLMNOPQabcdefghijklmnopqrstuvwxyz0123456789YZ,?=",
            "train": {**task, "num_examples": 4096}, "validation": {**task, "num_examples": 2},
        },
        "train": {"epochs": 100, "effective_batch": 4, "micro_batch": 2, "seq_len": 128},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip
    (root / "finetune.yaml").write_text(json.dumps(finetuning))
    return root


def started(root: Path, module: str, name: str, *more: str) -> list[Rank]:
    """Two ranks that train."""
    arguments = ["--config", str(root / f"{module.partition('.')[0]}.yaml"), f"run.name={name}", *more]
    ranks, deadline = start_ranks(2, module, arguments, root / "output" / name), time.monotonic() + 120
    while ": started " not in ranks[0].output:
        assert all(rank.code is None for rank in ranks) and time.monotonic() < deadline, [rank.output for rank in ranks]
        time.sleep(0.01)
    time.sleep(0.3)
    return ranks


def said(rank: Rank) -> list[str]:
    """Lines after the start that are not about steps; DeepSpeed says what it found when it is imported."""
    lines = rank.output.splitlines()
    first = next((number for number, line in enumerate(lines) if ": started " in line), 0)
    return [line for line in lines[first:] if "step " not in line and "[WARNING]" not in line]


@pytest.mark.parametrize(("module", "killed"), [("pretrain.train", 1), ("pretrain.train", 0), ("finetune.coconut", 1)])
def test_a_killed_rank_is_a_line_of_the_others(root: Path, module: str, killed: int) -> None:
    name = f"{module}-{killed}"
    ranks, other = started(root, module, name), 1 - killed
    ranks[killed].send(signal.SIGKILL)
    assert ranks[other].wait(60) == 1, ranks[other].output
    kept = root / "runs" / name / "logs" / f"rank-{other}.txt"
    assert said(ranks[other]) == [LINE.format(other, kept)]
    assert "Traceback (most recent call last)" in kept.read_text() and "pair.cc" in kept.read_text()


def test_ctrl_c_twice_is_a_line_of_each_rank(root: Path) -> None:
    ranks = started(root, "pretrain.train", "interrupted", "train.global_batch=1024")  # seconds a step
    for _ in range(2):
        for rank in ranks:
            rank.send(signal.SIGINT)
        time.sleep(0.2)
    codes = [rank.wait(60) for rank in ranks]
    assert (codes, [said(rank) for rank in ranks]) == ([130, 130], [["rank 0: interrupted"], ["rank 1: interrupted"]])


def start_alone(root: Path, rank: int, limit_s: float, name: str) -> tuple[Rank, str]:
    """One rank of two, without the other, and where it waits."""
    where = f"127.0.0.1:{free_port()}"
    environment = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    environment |= dict(zip(("MASTER_ADDR", "MASTER_PORT"), where.split(":"), strict=True))
    arguments = [str(limit_s), "--config", str(root / "pretrain.yaml"), f"run.name={name}"]
    (root / "output").mkdir(exist_ok=True)
    output = root / "output" / f"{name}.txt"
    return Rank("tests.support.impatient_rank", arguments, environment, output, afresh=False), where


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_whose_peers_never_come_says_so_and_ends(root: Path, number: int) -> None:
    rank, where = start_alone(root, number, 0.6, f"alone-{number}")
    assert rank.wait(60) == 1, rank.output
    waits = f"rank {number} of 2 waits for the others at {where}, 0.01 minutes at most"
    end = f"error: rank {number}: the other ranks did not come to {where} within 0.01 minutes"
    assert [line for line in rank.output.splitlines() if ", loading" not in line] == [waits, end]


def test_ctrl_c_twice_ends_a_rank_that_waits(root: Path) -> None:
    rank, _ = start_alone(root, 0, 600, "patient")
    deadline = time.monotonic() + 60
    while " waits for the others at " not in rank.output:
        assert rank.code is None and time.monotonic() < deadline, rank.output
        time.sleep(0.01)
    for _ in range(2):
        rank.send(signal.SIGINT)
        time.sleep(0.1)
    assert rank.wait(10) == 130, rank.output
    assert rank.output.splitlines()[-1] == "rank 0: interrupted"


@pytest.mark.parametrize("message", REAL)
def test_what_gloo_nccl_and_the_store_say_is_a_line(tmp_path: Path, message: str) -> None:
    with pytest.raises(ConnectionError) as caught, contact(tmp_path):
        raise RuntimeError(message)
    kept = tmp_path / "logs" / "rank-0.txt"
    assert str(caught.value) == f"lost contact with another rank; see its message (traceback: {kept})"
    assert message in kept.read_text()
    with pytest.raises(ConnectionError, match=r"see its message$"), contact(tmp_path / "absent"):
        raise RuntimeError(message)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("message", ["mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)", "CUDA out of memory"])
def test_a_bug_stays_a_traceback(tmp_path: Path, message: str) -> None:
    with pytest.raises(RuntimeError, match=r"shapes|memory"), contact(tmp_path):
        raise RuntimeError(message)
    assert not list(tmp_path.iterdir())
