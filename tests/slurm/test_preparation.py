"""Data on a real Slurm: parts and their merge give the files of one process; cleaning runs through all of its
stages."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.claim import Part
from pretrain.data.prepare.prepare import PrepareSettings, prepare, prepare_part
from pretrain.data.web.runs import run_here
from pretrain.data.web.stages import CleanSettings
from pretrain.run.directory import write_state
from pretrain.run.status import read_queue, read_status
from tests.slurm.cluster import Cluster, wait_until
from tests.support.corpus import make_texts, make_tokenizer
from tests.support.web_archives import page, write_wet

pytestmark = pytest.mark.slurm


def script(cluster: Cluster, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script on the login node."""
    command = ["bash", "slurm/prepare_data.sh", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cluster.project, env=cluster.environment, capture_output=True, text=True, check=False
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for_end(cluster: Cluster, seconds: float) -> None:
    def is_over() -> bool:
        return not cluster.run("squeue", "-h", "--name=prepare_data")

    wait_until(is_over, "the end of the preparation", seconds, cluster.condition)


def test_an_array_prepares_what_one_process_does(cluster: Cluster, tmp_path: Path) -> None:
    with (tmp_path / "text.jsonl").open("w") as lines:
        for number in range(40_000):
            lines.write(json.dumps({"text": f"{number} " + "round the ring " * 6}) + "\n")
    whole, parted = (
        PrepareSettings(inputs=(f"{tmp_path}/*.jsonl",), output=tmp_path / name, tokenizer=None, num_workers=0)
        for name in ("whole", "parted")
    )
    prepare(whole)
    prepare_part(parted, Part(2, 3))  # as if another submission had come so far
    options = (
        "--cpus-per-task=1",
        "--time=5",
        "--",
        "--input",
        f"{tmp_path}/*.jsonl",
        "--keep-text",
        "--output",
        parted.output,
    )
    submitted = script(cluster, 3, *options)
    assert submitted.returncode == 0, submitted.stderr
    first, second = submitted.stdout.splitlines()
    assert first.endswith(": parts 1,3 of 3")
    assert second.endswith(": merges them")
    wait_for_end(cluster, 300)
    logs = "\n".join(path.read_text() for path in cluster.project.glob("slurm-prepare_data-*.out"))
    assert files(parted.output) == files(whole.output), logs
    again = script(cluster, 3, *options)
    assert (again.returncode, again.stdout.endswith("(reused: nothing to do)\n")) == (0, True), again.stderr


def test_a_part_that_is_out_of_time_comes_back_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "t.model")
    text = " ".join(make_texts(20, max_words=200))
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number in range(1_000))
    )
    output = tmp_path / "out"
    options = ("--input", tmp_path / "text.jsonl", "--tokenizer", tmp_path / "t.model", "--output", output)
    submitted = script(cluster, 1, "--cpus-per-task=1", "--time=5", "--", *options)
    assert submitted.returncode == 0, submitted.stderr
    array = submitted.stdout.split()[1].rstrip(":")
    wait_until(lambda: any((output / ".work").glob("unit-??????")), "the first unit", 300, cluster.condition)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    wait_for_end(cluster, 300)
    log = (cluster.project / f"slurm-prepare_data-{array}_1.out").read_text()
    done = re.search(r"part 1/1 is finished: (\d+) units, (\d+) of them before", log)
    assert done is not None, log
    assert 0 < int(done[2]) <= int(done[1])
    assert Manifest.open(output).header.num_documents == 1_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "--input", "none.txt", "--keep-text", "--output", "out"), "error: none.txt: no such file\n"),
        ((4, "--input", "x", "--output", "out"), "either --tokenizer FILE or --keep-text is needed"),
        (("--input", "none.txt"), "error: usage: bash slurm/prepare_data.sh PARTS"),
    ],
)
def test_a_mistake_never_joins_the_queue(cluster: Cluster, arguments: tuple[str, ...], message: str) -> None:
    refused = script(cluster, *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert not cluster.run("squeue", "-h", "--name=prepare_data")


def test_cleaning_runs_through_its_stages(cluster: Cluster, tmp_path: Path) -> None:
    pages = [page(seed) for seed in range(6)]
    inputs = (
        write_wet(tmp_path / "a.wet.gz", [*pages[:3], "short"]),
        write_wet(tmp_path / "b.wet.gz", [*pages[3:], pages[0]]),
    )
    here = CleanSettings(
        inputs=tuple(map(str, inputs)),
        output=tmp_path / "here",
        language="en",
        language_model=None,
        tokenizer=None,
        num_tasks=2,
    )
    run_here(here, 1, lambda line: None)
    options = (
        "--input",
        f"{tmp_path}/*.wet.gz",
        "--output",
        f"{tmp_path}/jobs",
        "--no-language-filter",
        "--keep-text",
        "--slurm",
        "debug",
    )
    environment = {**cluster.environment, "PYTHONPATH": os.fspath(cluster.project)}

    def clean() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/clean_web.py", *options]
        return subprocess.run(
            command, cwd=cluster.project, env=environment, capture_output=True, text=True, check=False
        )

    done = clean()
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[3]
    assert done.stdout == f"submitted; when job {job} has ended: {tmp_path}/jobs/report.txt\n"
    wait_until(
        lambda: not cluster.run("squeue", "-h", "-o", "%j").count("clean_"),
        "the end of the cleaning",
        300,
        cluster.condition,
    )
    logs = "\n".join(path.read_text() for path in (tmp_path / "jobs" / "logs").glob("*/slurm_logs/*.out"))
    assert (tmp_path / "jobs" / "report.txt").exists(), logs
    assert (tmp_path / "jobs" / "report.txt").read_text() == (tmp_path / "here" / "report.txt").read_text()
    for name, content in files(tmp_path / "here" / "shards").items():
        assert name == "prepare.json" or content == (tmp_path / "jobs" / "shards" / name).read_bytes()
    assert clean().stdout == (tmp_path / "here" / "report.txt").read_text()


def test_the_queue_tells_a_waiting_run_from_a_crashed_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    job = cluster.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true")
    run = tmp_path / "run"
    (run / "jobs" / f"{job}-0").mkdir(parents=True)
    write_state(run, "running")
    soon = time.time() + 120
    assert read_status(run, "run", read_queue(), soon).state == "waiting"
    cluster.run("scancel", job)
    assert read_status(run, "run", read_queue(), soon).state == "crashed"
