"""Fine-tuning under DeepSpeed on two nodes of a real Slurm, started by srun alone."""

import json
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, Job, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SMALL = [
    *("model.hidden_size=32", "model.num_attention_heads=2", "model.ffn_size=64", "model.num_loop_layers=1"),
    *("data.train.num_examples=320", "data.validation.num_examples=8", "data.test.num_examples=8", "train.epochs=3"),
    *("curriculum.num_stages=1", "curriculum.first_stage_epochs=1", "train.effective_batch=8", "train.micro_batch=4"),
    *("validation.batch=8", "checkpoint.every=20", "logging.wandb=disabled"),
]
EXACT = ("step", "epoch", "stage", "loss", "grad_norm")


def start(cluster: Cluster, name: str, **variables: str) -> Job:
    arguments = ["configs/finetune/prosqa_small.yaml", *SMALL, f"run.name={name}"]
    return cluster.submit("slurm/finetune_coconut.sh", ["--nodes=2", "--ntasks-per-node=1"], arguments, **variables)


def rows(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    path = cluster.project / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_coconut_on_two_nodes_survives_a_signal(cluster: Cluster) -> None:
    whole = start(cluster, "coconut")
    cut = start(cluster, "coconut_cut", FAULT="slow", FAULTY_ATTEMPTS="1")
    wait_until(lambda: len(rows(cluster, "coconut_cut")) >= 3, "three steps of Coconut", 400, cluster.condition)
    cluster.run("scancel", "--batch", "--signal=USR1", cut.number)
    for job in (whole, cut):
        job.wait("COMPLETED", 400)
    curves = [[tuple(row[key] for key in EXACT) for row in rows(cluster, name)] for name in ("coconut", "coconut_cut")]
    assert len(curves[0]) == 120 and {row[2] for row in curves[0]} == {0, 1, 2}
    assert curves[1] == curves[0]
    run_dir = cluster.project / "runs" / "coconut_cut"
    assert (run_dir / "requeues.txt").read_text().endswith(": stopped by SIGUSR1\n") and (
        run_dir / "state"
    ).read_text() == "complete\n"
    assert "2 ranks on n[1-2]" in cut.log and (run_dir / "jobs" / f"{cut.number}-0" / "plan.txt").exists()
