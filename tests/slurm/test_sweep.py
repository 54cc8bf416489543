"""A sweep as job arrays of a real Slurm, from training to its plot, on a task of the user's own file."""

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Job
from tests.support.extending import write_examples

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SWEEP = """
config: configs/tasks/p_hop_small.yaml
overrides: [train.steps=3, train.global_batch=8, train.micro_batch=8, model.hidden_size=16, model.num_attention_heads=2,
  model.ffn_size=16, model.vocab_size=10, optimizer.warmup_steps=0, validation.every=0, logging.wandb=disabled,
  train.precision=fp32, "data.tokenizer=symbols:01=",
  "data.sources=[{task: 'my_tasks:Parity', parameters: {length: 12}}]"]
models: [{num_loop_layers: 1, num_loops: 2}, {num_loop_layers: 2, num_loops: 2}]
baselines: false
seeds: [0, 1]
evaluation: {num_examples: 10}
"""


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> list[Job]:
    """The three jobs of the sweep, when the last has ended."""
    (cluster.project / "grid.yaml").write_text(SWEEP)
    write_examples(cluster.project)
    printed = cluster.run(".venv/bin/python", "tools/sweep.py", "grid.yaml", "--slurm")
    submitted = [Job(cluster, line.split()[1].rstrip(":")) for line in printed.splitlines()]
    submitted[-1].wait("COMPLETED", 600)
    return submitted


def evaluations(root: Path) -> list[tuple[int, int, str]]:
    lines = [line for path in sorted(root.glob("*/eval/depth.jsonl")) for line in path.read_text().splitlines()]
    return [(row["num_loops"], row["effective_depth"], row["task"]) for row in map(json.loads, lines)]


def test_a_sweep_of_two_by_two_runs_to_its_plot(cluster: Cluster, jobs: list[Job]) -> None:
    root = cluster.project / "runs" / "sweeps" / "grid"
    assert evaluations(root) == [(2, 2, "my_tasks:Parity")] * 2 + [(2, 4, "my_tasks:Parity")] * 2
    assert {path.suffix for path in root.glob("scaling.*")} == {".png", ".svg", ".html"}
    assert {path.parent.name for path in root.glob("*/state")} == {
        f"{k}x2-seed{seed}" for k in (1, 2) for seed in (0, 1)
    }
    assert all(list(root.glob(f"*/jobs/{job.number}-0/commit.txt")) for job in jobs[:2])


@pytest.mark.usefixtures("jobs")
def test_a_run_is_evaluated_on_two_nodes(cluster: Cluster) -> None:
    run_dir = Path("runs/sweeps/grid/2x2-seed1")
    options = ["--num-loops", "1,3", "--num-examples", "10", "--out", "depths.jsonl"]
    job = cluster.submit("slurm/eval_depth.sh", ["--nodes=2", "--ntasks-per-node=1"], [str(run_dir), *options])
    job.wait("COMPLETED")
    lines = (cluster.project / "depths.jsonl").read_text().splitlines()
    assert [(row["num_loops"], row["num_examples"]) for row in map(json.loads, lines)] == [(1, 10), (3, 10)]
    assert "2 ranks on n[1-2]" in job.log and (cluster.project / run_dir / "state").read_text() == "complete\n"
