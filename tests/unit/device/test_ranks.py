"""Ranks from the environment of torchrun, deepspeed and srun, and what is said of variables that are no numbers."""

import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.device.ranks import planned_world_size, world_from_environment

ROOT = Path(__file__).parents[3]
RENDEZVOUS = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **RENDEZVOUS}, (2, 4, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4", **RENDEZVOUS}, (2, 4, 0)),
        ({**SLURM, **RENDEZVOUS}, (5, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "2", **SLURM, **RENDEZVOUS}, (0, 2, 0)),
        (SLURM, (0, 1, 0)),  # a batch script, not under srun
        ({**SLURM, "SLURM_STEP_ID": "4294967290"}, (0, 1, 0)),  # the shell of salloc
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, (0, 1, 1)),  # one process in srun
        ({"WORLD_SIZE": "4", **RENDEZVOUS}, (0, 1, 0)),  # a dry run in a job
    ],
)
def test_a_rank_is_where_its_launcher_says(environment: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert world_from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, 4), ({"WORLD_SIZE": "8"}, 8), ({"SLURM_NTASKS": "16"}, 16), ({"WORLD_SIZE": "8", "SLURM_NTASKS": "16"}, 8)],
)
def test_a_dry_run_plans_for_the_launcher_or_for_one_replica(environment: dict[str, str], expected: int) -> None:
    assert planned_world_size(4, environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one is not a whole number of at least 0"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a whole number of at least 1"),
        ({"RANK": "0"}, "WORLD_SIZE= is not a whole number of at least 1"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 is not a whole number of at least 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "0"}, "MASTER_PORT=0 is not a whole number from 1 to 65535"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "0"}, "SLURM_NTASKS=0 is not a whole number of at least 1"),
    ],
)
def test_variables_that_are_no_ranks_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^environment: {message}"):
        world_from_environment({**RENDEZVOUS, **environment})


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, "WORLD_SIZE"),
        ({**SLURM, "SLURM_STEP_ID": "0"}, "SLURM_NTASKS"),
    ],
)
def test_ranks_that_cannot_find_each_other_do_not_train_alone(environment: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=8 without MASTER_ADDR, .*export MASTER_ADDR="):
        world_from_environment(environment)


@pytest.mark.parametrize("entry", [["-m", "pretrain.train"], ["finetune/coconut.py"]], ids=["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--dry-run"], {"WORLD_SIZE": "two"}),
        ([], {"WORLD_SIZE": "two", "RANK": "0", **RENDEZVOUS}),
    ],
    ids=["dry run", "run"],
)
def test_both_entries_name_them_in_one_line(
    entry: list[str], arguments: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ended = subprocess.run([sys.executable, *entry, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    line = "error: environment: WORLD_SIZE=two is not a whole number of at least 1; unset it or mend it\n"
    assert (ended.returncode, ended.stderr) == (2, line)
