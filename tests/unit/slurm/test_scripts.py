"""The batch scripts where there is no Slurm: shellcheck, the look at a node, and what submission refuses or hands to
sbatch."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
CONFIG = "configs/tasks/p_hop_small.yaml"


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (Debian: apt-get install shellcheck)"
)
def test_scripts_pass_shellcheck() -> None:
    files = [path.relative_to(ROOT) for path in [*SCRIPTS, ROOT / "slurm/site.env.example"]]
    done = subprocess.run(["shellcheck", "-x", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "slurm/site.env.example"], ids=lambda path: path.name)
def test_scripts_run_no_text_as_code(path: Path) -> None:
    assert not re.search(r"\b(ba|da)?sh -\w*c\b|^\s*eval\b", path.read_text(), re.MULTILINE)


def check_node(folder: Path, clock: float, min_free_gib: int = 0, **variables: str) -> tuple[int, str]:
    command = ["bash", ROOT / "slurm/check_node.sh", str(int(clock)), str(min_free_gib), folder, "cat", folder / "gpus"]
    environment = {**os.environ, "SLURMD_NODENAME": "node7", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_healthy_node_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "gpus").write_text("GPU 0\nGPU 1\n")
    assert check_node(tmp_path, time.time(), SLURM_GPUS_ON_NODE="2") == (0, "")
    assert check_node(tmp_path, time.time() - 60) == (0, "")  # it took a minute to come here


@pytest.mark.parametrize(
    ("clock", "min_free_gib", "gpus", "finding"),
    [
        (-1000, 0, 1, r"its clock differs by 100\d s"),
        (1000, 0, 1, r"its clock differs by -\d+ s"),
        (0, 0, 4, "'cat .*gpus' shows 1 GPUs, 4 wanted"),
        (0, 10**9, 1, r"\d+ GiB free in .*, 1000000000 wanted"),
    ],
)
def test_a_bad_node_is_named(tmp_path: Path, clock: int, min_free_gib: int, gpus: int, finding: str) -> None:
    (tmp_path / "gpus").write_text("GPU 0\n")
    status, said = check_node(tmp_path, time.time() + clock, min_free_gib, SLURM_GPUS_ON_NODE=str(gpus))
    assert status == 1
    assert all(re.fullmatch(f"unhealthy node7: {finding}", line) for line in said.splitlines())


def submit(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run slurm/submit.sh with an sbatch that prints its arguments."""
    fake = tmp_path / "sbatch"
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    # from inside an allocation, too
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", "slurm/submit.sh", "slurm/pretrain_looped.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ([], 8),
        (["--nodes=2"], 16),
        (["-N", "4", "--ntasks-per-node=2"], 8),
        (["-N2", "--nodes", "1", "-n", "4"], 4),
        (["--nodes=2-4"], 1),  # open: one replica
    ],
)
def test_the_dry_run_is_for_the_ranks_asked_for(tmp_path: Path, options: list[str], ranks: int) -> None:
    overrides = ["train.micro_batch=1", "data.sources=[{task: p_hop, parameters: {num_hops: 4, length: 63}}]"]
    done = submit(tmp_path, *options, CONFIG, *overrides)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^ranks +{ranks} = tensor 1 × pipeline 1 × data {ranks}$", done.stdout, re.MULTILINE)
    script = "slurm/pretrain_looped.sh"
    assert done.stdout.splitlines()[-len(options) - 4 :] == [*options, script, CONFIG, *overrides]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CONFIG, "train.step=3"), "train.step: unknown key, did you mean train.steps?"),
        (("--nodes=3", CONFIG), "train.global_batch=128 is not divisible by"),
        (("configs/none.yaml",), "configs/none.yaml: No such file or directory"),
        (("--array=0-3", CONFIG), "--array=0-3: the jobs of an array would train in one run directory"),
        (("configs/none.yml",), "configs/none.yml: No such file or directory"),
        (("-N", "2", "configs/none.yam"), "configs/none.yam: neither an option of sbatch, nor a configuration"),
    ],
)
def test_what_the_dry_run_refuses_is_not_submitted(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = submit(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "no scontrol on this node: "),
        ({"scontrol": "true"}, "SLURM_JOB_ID=7, but there is no SLURM_JOB_NODELIST: submit with sbatch"),
        ({"scontrol": "true", "SLURM_JOB_NODELIST": "n1"}, "no SLURM_NTASKS, nor SLURM_NNODES and SLURM_NTASKS_PER"),
        ({"scontrol": "true", "SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4(x2)"}, ""),
    ],
)
def test_what_a_job_lacks_is_named(tmp_path: Path, variables: dict[str, str], message: str) -> None:
    """A job as Slurm would run it, but for its variables; srun says for how many ranks it is asked to plan."""
    programs = {"srun": 'echo "WORLD_SIZE=$WORLD_SIZE" >&2; exit 1', "scontrol": "exit 0"}
    for name in {"srun", *({"scontrol"} & variables.keys())}:
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{programs[name]}\n")
        (tmp_path / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    for name in ("bash", "sed"):  # and no other program: this machine may have a Slurm
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    environment |= {"PATH": str(tmp_path), "SLURM_JOB_ID": "7", **variables}
    command = [tmp_path / "bash", "slurm/pretrain_looped.sh", CONFIG]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}" if message else "WORLD_SIZE=8")
