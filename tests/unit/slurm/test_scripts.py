"""The batch scripts where there is no Slurm: shellcheck, the look at a node, and what submission refuses or hands to
sbatch."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pretrain.command.console import BAD_INPUT, DIVERGED

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


def submit(tmp_path: Path, *arguments: str, project: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run slurm/submit.sh with an sbatch that prints its arguments."""
    fake = tmp_path / "sbatch"
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    # from inside an allocation, too
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.run(
        ["bash", "slurm/submit.sh", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ([], 8),
        (["--nodes=2"], 16),
        (["-N", "4", "--ntasks-per-node=2"], 8),
        (["-N2", "--nodes", "1", "-n", "4"], 4),
        (["--nodes=2-4"], 1),  # open: one replica
        (["--comment=of run.yaml", "--output=log.yaml"], 8),
        (["--output", "log.yaml", "-J", "a.yml", "--verbose"], 8),
    ],
)
def test_the_dry_run_is_for_the_ranks_asked_for(tmp_path: Path, options: list[str], ranks: int) -> None:
    overrides = ["train.micro_batch=1", "data.sources=[{task: p_hop, parameters: {num_hops: 4, length: 31}}]"]
    script = "slurm/pretrain_looped.sh"
    done = submit(tmp_path, script, *options, CONFIG, *overrides)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^ranks +{ranks} = tensor 1 × pipeline 1 × data {ranks}$", done.stdout, re.MULTILINE)
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
    done = submit(tmp_path, "slurm/pretrain_looped.sh", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "slurm/pretrain_looped.sh",
            (CONFIG, "data.sources=[{path: data/none}]"),
            "data/none: no manifest.jsonl; make shards there with tools/prepare_data.py",
        ),
        (
            "slurm/finetune_coconut.sh",
            ("configs/finetune/prosqa_small.yaml", "data.train={task: null, num_examples: null, path: none.json}"),
            "none.json: no such file, of data.train.path",
        ),
        (
            "slurm/finetune_coconut.sh",
            ("configs/finetune/prosqa_hard_small_grpo.yaml", "--init", "none"),
            "none: no checkpoints there: give the directory of a run",
        ),
    ],
)
def test_what_lacks_its_data_is_not_submitted(
    tmp_path: Path, script: str, arguments: tuple[str, ...], message: str
) -> None:
    done = submit(tmp_path, script, "--ntasks=1", *arguments)
    assert done.returncode == 2 and script not in done.stdout.splitlines()  # the plan alone
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")


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
    programs = {"srun": 'echo "WORLD_SIZE=$WORLD_SIZE" >&2; exit 2', "scontrol": "exit 0"}
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


def test_init_belongs_to_the_entry_point_without_a_configuration_too(tmp_path: Path) -> None:
    done = submit(tmp_path, "slurm/finetune_coconut.sh", "--ntasks-per-node=1", "--init", f"{tmp_path}/none")
    assert (done.returncode, done.stdout) == (2, "") and f"{tmp_path}/none" in done.stderr


FAKES = {
    "scontrol": """
case "$*" in
  "show hostnames"*) echo n1 ;;
  "show node"*) echo "NodeAddr=127.0.0.1" ;;
  "show job"*) echo "JobState=RUNNING" ;;
  requeue*) echo "$*" >>"$FAKE/requeued" ;;
esac""",
    "srun": """
case "$*" in
  *--dry-run*) echo "run directory  $FAKE/run"; exit "$DRY_RUN_CODE" ;;
  *check_node.sh*) ;;
  *) echo "srun: error: n1: task 0: Exited with exit code $CODE"; exit "$CODE" ;;
esac""",
}
"""Slurm's commands, as a job on one node meets them: the dry run and the ranks end with given codes."""


@pytest.mark.parametrize(
    ("dry_run_code", "code", "ends_with", "is_requeued"),
    [
        (0, 1, 0, True),
        (0, 2, 2, False),
        (0, DIVERGED, DIVERGED, False),
        (BAD_INPUT, 0, 2, False),
        (1, 0, 0, True),  # srun itself, or the storage
    ],
)
def test_what_may_pass_is_tried_again(
    tmp_path: Path, dry_run_code: int, code: int, ends_with: int, is_requeued: bool
) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "39999", "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "n1"}
    codes = {"DRY_RUN_CODE": str(dry_run_code), "CODE": str(code), "FAKE": str(tmp_path)}
    environment = {**os.environ, **job, **codes, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = tmp_path / "job.sh"
    script.write_text('source slurm/common.sh\nplan_run "$PYTHON" train\nrun_until_done "$PYTHON" train\n')
    done = subprocess.run(["bash", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "requeued").exists()) == (ends_with, is_requeued), done.stdout + done.stderr
    assert ("not requeued: the run diverged" in done.stdout) == (code == DIVERGED)


def test_ranks_meet_at_a_port_of_the_job_that_linux_gives_to_nobody() -> None:
    (line,) = [line for line in (ROOT / "slurm/common.sh").read_text().splitlines() if "MASTER_PORT=$" in line]
    script = "while read -r SLURM_JOB_ID restart; do " + line + "; echo $MASTER_PORT; done"
    places = [(job, restart) for job in (1, 2, 12767, 12768, 39999, 99999999) for restart in (0, 1, 5, 77)]
    given = "".join(f"{job} {restart}\n" for job, restart in places)
    done = subprocess.run(["bash", "-uc", script], input=given, capture_output=True, text=True, check=True)
    ports = dict(zip(places, map(int, done.stdout.split()), strict=True))
    assert all(20000 <= port < 32768 for port in ports.values())
    assert ports[1, 0] != ports[2, 0] and len({ports[1, restart] for restart in (0, 1, 5, 77)}) == 4


@pytest.mark.parametrize("verdict", [0, 1, 2])
def test_what_is_verified_is_submitted_only_if_every_row_holds(tmp_path: Path, verdict: int) -> None:
    """In a project whose Python says how it was called, and ends the verification with a chosen code."""
    project = tmp_path / "project"
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / "pretrain").mkdir()
    (project / "slurm").symlink_to(ROOT / "slurm")
    python = project / ".venv" / "bin" / "python"
    python.write_text(f'#!/usr/bin/env bash\necho "$WORLD_SIZE: $*"\n[[ $2 != pretrain.verify ]] || exit {verdict}\n')
    python.chmod(0o755)
    script, arguments = "slurm/pretrain_looped.sh", [CONFIG, "train.steps=7"]
    done = submit(tmp_path, "--verify", script, "--nodes=2", *arguments, project=project)
    assert (done.returncode, done.stderr) == (verdict, "")
    config = f"--config {CONFIG} train.steps=7"
    called = [f"16: -m pretrain.train {config} --dry-run", f"16: -m pretrain.verify {config} --elsewhere"]
    handed_on = ["--nodes=2", script, *arguments] if verdict == 0 else []
    assert done.stdout.splitlines() == [*called, *handed_on]


def test_only_pretraining_is_verified(tmp_path: Path) -> None:
    done = submit(tmp_path, "--verify", "slurm/finetune_coconut.sh")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --verify: slurm/finetune_coconut.sh does not pretrain, and nothing else is verified\n"
