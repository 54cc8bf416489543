"""Reinforcement learning under the real DeepSpeed: ranks, ZeRO stages and tensor parallelism change nothing, resuming
is exact, and what comes out answers like a fine-tuned run."""

import json
import signal
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from finetune.api import load_run
from finetune.reinforce.config import GrpoConfig, check_layout
from finetune.reinforce.policy import resolve_policy
from finetune.reinforce.trainer import GrpoTrainer
from finetune.run.finetuned_model import load_finetuned
from finetune.run.session import open_session
from pretrain.checkpoint.names import list_checkpoints, parse_step
from pretrain.checkpoint.verify import newest_good
from pretrain.parallel.groups import make_groups
from pretrain.run.signals import StopSignal
from tests.distributed.finetuning import forget_world
from tests.distributed.pool import RankError, RankPool
from tests.distributed.training import Interruption, interrupt
from tests.support.finetuned_runs import save_run

HOP = {"task": "p_hop", "parameters": {"num_hops": 1, "length": 6}, "num_examples": 12}
EXACT = (
    "step",
    "loss",
    "grad_norm",
    "reward",
    "entropy",
    "divergence",
    "clipped",
    "text_tokens",
    "thoughts_per_example",
)


def train(config: GrpoConfig, interruption: Interruption | None = None) -> int:
    """Run the trainer to its end, or until the interruption."""
    forget_world()
    torch.use_deterministic_algorithms(False)
    groups = make_groups(config.parallel, torch.device("cpu"))
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignal())
        policy, origin = resolve_policy(config)
        layout = check_layout(config, dist.get_world_size())
        session = stack.enter_context(open_session(config, layout, groups, origin, signals))
        trainer = GrpoTrainer(config, policy, origin, session)
        if interruption is not None and interruption.rank == dist.get_rank():
            interrupt(trainer, interruption)
        return trainer.run()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the runs that training starts from: thoughts, and text. Their weights are drawn by chance, so that one
    answer in dozens is right, which is enough to learn from."""
    root = tmp_path_factory.mktemp("reinforce")
    save_run(root / "thoughts", curriculum={"num_stages": 1, "thoughts_per_step": 2}, method={"name": "coconut"})
    save_run(root / "text", method={"name": "cot"})
    return root


def configured(root: Path, name: str, start: str = "thoughts", **sections: Any) -> GrpoConfig:
    base: dict[str, Any] = {
        "run": {"name": name, "root": str(root / "runs")},
        "data": {"train": HOP, "validation": {**HOP, "num_examples": 5}, "test": {**HOP, "num_examples": 5}},
        "rollout": {
            "questions": 4, "group_size": 64, "max_new_tokens": 1, "thought_noise": 0.5 if start == "thoughts" else 0.0,
        },
        "train": {"steps": 3, "micro_batch": 64, "deterministic": True},
        "optimizer": {"lr": 0.1, "epsilon": 1.0},
        "checkpoint": {"init_from": str(root / start)},
        "logging": {"wandb": "disabled"},
    }  # fmt: skip
    for section, values in sections.items():
        base[section] = {**base.get(section, {}), **values}
    return GrpoConfig.model_validate(base)


def run(pool: RankPool, config: GrpoConfig, world_size: int, interruption: Interruption | None = None) -> None:
    assert pool.run(train, config, interruption, world_size=world_size, timeout_s=120) == [0] * world_size


def rows(root: Path, name: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs" / name / file).read_text().splitlines()]


def scores(root: Path, name: str) -> list[tuple[Any, ...]]:
    found = rows(root, name, "eval/coconut.jsonl")
    return [tuple(row[key] for key in ("split", "step", "num_thoughts", "accuracy")) for row in found]


def tensors(root: Path, name: str) -> dict[str, torch.Tensor]:
    reader, problems = newest_good(root / "runs" / name / "checkpoints")
    assert reader is not None and not problems
    return {key: reader.read_whole(key) for key in reader.tensors}


TWO_UPDATES: dict[str, Any] = {
    "train": {"updates": 2},
    "grpo": {"kl_weight": 0.1, "clip": 0.01, "thoughts": "likelihood"},
}


@pytest.fixture(scope="module")
def reference(root: Path, pool: RankPool) -> str:
    """One process, without ZeRO; two updates on each step's answers, pulled towards the start."""
    run(pool, configured(root, "reference", engine={"zero_stage": 0}, **TWO_UPDATES), 1)
    found = rows(root, "reference")
    assert max(row["mixed_groups"] for row in found) > 0 and max(row["grad_norm"] for row in found) > 0
    assert max(row["clipped"] for row in found) > 0 and found[-1]["divergence"] > 0
    return "reference"


@pytest.mark.parametrize("engine", [{"zero_stage": 0}, {"zero_stage": 3}, {"tensor": 2, "zero_stage": 1}], ids=str)
def test_ranks_and_zero_change_nothing(root: Path, pool: RankPool, reference: str, engine: dict[str, int]) -> None:
    name = "ranks-" + "-".join(f"{key}{value}" for key, value in engine.items())
    run(pool, configured(root, name, engine=engine, **TWO_UPDATES), 2)
    for mine, other in zip(rows(root, name), rows(root, reference), strict=True):
        for key in ("reward", "text_tokens", "ended", "thoughts_per_example", "mixed_groups", "clipped"):
            assert mine[key] == other[key], key
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)
        assert mine["divergence"] == pytest.approx(other["divergence"], rel=1e-3, abs=1e-9)
    state, wanted = tensors(root, name), tensors(root, reference)
    assert state.keys() == wanted.keys()
    for key, tensor in wanted.items():
        if tensor.is_floating_point():
            assert (state[key] - tensor).abs().max() <= 2e-5 * tensor.abs().max(), key
    ours, theirs = scores(root, name), scores(root, reference)
    assert ours == theirs
    assert [row[:3] for row in ours[:3]] == [("validation", 0, 0), ("validation", 0, 1), ("validation", 0, 2)]
    assert ours[-1][:3] == ("test", 3, 2)


def test_the_health_of_thoughts_is_in_rows_and_log(root: Path, reference: str) -> None:
    for row in rows(root, reference):
        assert row["thoughts_per_example"] == 2
        assert row["latent_share"] == pytest.approx(2 / (2 + row["text_tokens"]))
    log = (root / "runs" / reference / "log.txt").read_text()
    for step in (0, 3):
        by_thoughts = [row[3] for row in scores(root, reference) if row[:2] == ("validation", step)]
        gains = ", ".join(f"{100 * (more - less):+.1f}" for less, more in pairwise(by_thoughts))
        assert len(by_thoughts) == 3 and f"step {step}: points that each thought adds: {gains}\n" in log


@pytest.mark.parametrize("start", ["thoughts", "text"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(root: Path, pool: RankPool, start: str) -> None:
    whole, cut = (configured(root, f"{name}-{start}", start, train={"updates": 2}) for name in ("whole", "cut"))
    run(pool, whole, 2)
    run(pool, cut, 2, Interruption(rank=1, method="train_step", call=3, signal=signal.SIGTERM))
    assert len(rows(root, cut.run.name)) == 2
    run(pool, cut, 2)
    left, right = ([tuple(row[key] for key in EXACT) for row in rows(root, each.run.name)] for each in (whole, cut))
    assert left == right
    state, wanted = tensors(root, cut.run.name), tensors(root, whole.run.name)
    assert all(torch.equal(state[key], wanted[key]) for key in wanted) and state.keys() == wanted.keys()


def test_a_run_that_dies_goes_on_from_its_newest_checkpoint(root: Path, pool: RankPool) -> None:
    config = configured(root, "dies", train={"steps": 3}, checkpoint={"every": 1})
    with pytest.raises(RankError, match="a bug"):
        run(pool, config, 1, Interruption(rank=0, method="train_step", call=2, signal=None, bug="a bug"))
    assert [parse_step(path.name) for path in list_checkpoints(root / "runs" / "dies" / "checkpoints")] == [2, 1]
    run(pool, config, 1)
    assert [row["step"] for row in rows(root, "dies")] == [1, 2, 3]


def test_bf16_fewer_loops_and_small_batches_of_draws(root: Path, pool: RankPool) -> None:
    """Draws of any batch are the same, in other precisions and loop counts too; a run may end before its last step."""
    shared: dict[str, Any] = {
        "train": {"steps": 2, "precision": "bf16", "num_loops": 1},
        "grpo": {"advantage": "centred"},
    }
    run(pool, configured(root, "bf16", **shared), 1)
    run(pool, configured(root, "bf16-batched", rollout={"batch": 32}, **shared), 1)
    pairs = zip(rows(root, "bf16"), rows(root, "bf16-batched"), strict=True)
    assert all(abs(left["reward"] - right["reward"]) <= 2 / 256 for left, right in pairs)
    assert {row["num_loops"] for row in rows(root, "bf16", "eval/coconut.jsonl")} == {1}
    run(pool, configured(root, "short", train={"steps": 500, "exit_after": 0.01}), 1)
    assert (root / "runs" / "short" / "state").read_text().startswith("stopped by train.exit_after")


def test_what_comes_out_answers_like_a_fine_tuned_run(root: Path, pool: RankPool) -> None:
    run(pool, configured(root, "done", train={"steps": 1}), 1)
    found = load_finetuned(root / "runs" / "done", torch.device("cpu"))
    assert (found.config.method.name, found.stage, found.has_slots) == ("coconut", 2, True)
    of_run = load_run(root / "runs" / "done", device="cpu")
    assert list(of_run.metrics()["reward"]) == [row["reward"] for row in rows(root, "done")]
    scored = of_run.score_answers("all")
    written = {row[2]: row[3] for row in scores(root, "done") if row[0] == "test"}
    assert list(scored["num_thoughts"]) == [0, 1, 2] and scored["accuracy"].iloc[2] == written[2]
    with pytest.raises(Exception, match=r"train\.updates=2, but .* was made with 1"):
        run(pool, configured(root, "done", train={"steps": 2, "updates": 2}), 1)
