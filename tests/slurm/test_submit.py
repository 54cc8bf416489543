"""What never runs: configurations that are refused before the queue is joined, and in the job where they were not
checked."""

import subprocess

import pytest

from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_a_bad_configuration_never_joins_the_queue(cluster: Cluster) -> None:
    options = ["--nodes=2", "--ntasks-per-node=1"]
    bad = ["configs/tasks/p_hop_small.yaml", "parallel.pipeline=2", "run.name=refused"]  # one layer for two stages
    command = ["bash", "slurm/submit.sh", "slurm/pretrain_looped.sh", *options, *bad]
    done = subprocess.run(
        command, cwd=cluster.project, env=cluster.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "model.num_loop_layers=1 is not divisible by parallel.pipeline=2" in line
    assert "pretrain_looped" not in cluster.run("squeue", "-h", "-o", "%j")
    assert not (cluster.project / "runs" / "refused").exists()


def test_a_job_refuses_it_too(cluster: Cluster) -> None:
    arguments = ["configs/tasks/p_hop_small.yaml", "train.micro_batch=7", "run.name=refused"]
    job = cluster.submit("slurm/pretrain_looped.sh", ["--nodes=2", "--ntasks-per-node=1"], arguments)
    job.wait("FAILED")
    assert job.field("ExitCode") == "2:0" and job.field("Restarts") == "0"
    assert "is not divisible by train.micro_batch=7" in job.log
    assert not (cluster.project / "runs" / "refused").exists()
