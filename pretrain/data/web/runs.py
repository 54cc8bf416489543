"""Runs the stages of cleaning: here, or as jobs of Slurm that wait for each other. Executors are datatrove's.

A task that is finished is never done again, so the same call continues an interrupted one; `clean.json` keeps it from
continuing another.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor

from pretrain.data.web.stages import PATHS_NAME, REPORT_NAME, CleanSettings, stages
from pretrain.storage import is_there, parse_json, read_file, write_atomically

IDENTITY_NAME = "clean.json"


def claim(settings: CleanSettings) -> None:
    """Make the output folder ours for this work, or check that it is.

    Raises:
        ValueError: naming what was different when the folder was begun.
    """
    output = settings.output
    paths = "".join(f"{path}\n" for path in settings.inputs)
    identity = {
        "inputs": hashlib.sha256(paths.encode()).hexdigest(),
        "language": settings.language,
        "language_model": settings.language_model and _digest(settings.language_model),
        "tokenizer": settings.tokenizer and _digest(settings.tokenizer),
        "num_tasks": settings.num_tasks,
    }
    path = output / IDENTITY_NAME
    output.mkdir(parents=True, exist_ok=True)
    if is_there(path):
        found = parse_json(read_file(path))
        changed = [key for key, value in identity.items() if found.get(key) != value]
        if changed:
            others = ", another ".join(changed)
            raise ValueError(f"{output}: was begun with another {others}; delete it or name a new folder")
        return
    if any(entry.name != PATHS_NAME and entry.suffix != ".tmp" for entry in output.iterdir()):
        raise ValueError(f"{output}: holds files that are not of tools/clean_web.py; name a new folder")
    write_atomically(output / PATHS_NAME, paths.encode())
    write_atomically(path, json.dumps(identity, indent=1).encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_here(settings: CleanSettings, num_workers: int, report: Callable[[str], None]) -> str:
    """Run all stages on this machine, in `num_workers` processes; `report` receives a line for each.

    Returns:
        The report.

    Raises:
        ValueError: if settings and folder do not fit, or no page is left.
        OSError: if a stage fails; what is finished is kept, and the same call continues.
    """
    settings.check()
    claim(settings)
    log = settings.output / "logs" / "datatrove.log"
    log.parent.mkdir(exist_ok=True)
    for number, stage in enumerate(planned := stages(settings), start=1):
        report(f"{number}/{len(planned)} {stage.name}: {stage.num_tasks} task{'s' * (stage.num_tasks > 1)}")
        executor = LocalPipelineExecutor(
            stage.steps,
            tasks=stage.num_tasks,
            workers=min(num_workers, stage.num_tasks),
            logging_dir=str(log.parent / stage.name),
        )
        try:
            with _standard_error_to(log):
                executor.run()
        except (ValueError, OSError):
            raise
        except Exception as error:
            what = f"stage {stage.name} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise OSError(f"{what}; details: {log}; finished tasks are kept, rerun to continue") from error
    return (settings.output / REPORT_NAME).read_text().rstrip()


@contextmanager
def _standard_error_to(log: Path) -> Iterator[None]:
    """Send what datatrove and the libraries below it say, also in child processes, to a file."""
    saved = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


class _Jobs(SlurmPipelineExecutor):
    """A stage as jobs."""

    def launch_merge_stats(self) -> None:
        """No job that sums the statistics: the report does."""


def submit(settings: CleanSettings, partition: str) -> str | None:
    """Submit the stages that are not finished to Slurm, each waiting for the one before. Not to be called again while
    they run.

    Other options of the jobs come from sbatch's own variables, such as SBATCH_ACCOUNT or SBATCH_TIMELIMIT. All nodes
    must see the output folder; datatrove pickles the stages into it, for its own jobs to load.

    Returns:
        The id of the last job, which writes the report; None if everything is finished.

    Raises:
        ValueError: if settings and folder do not fit, or there is no Slurm.
        OSError: if Slurm refuses a job.
    """
    settings.check()
    claim(settings)
    last = None
    for stage in stages(settings):
        last = _Jobs(
            stage.steps,
            tasks=stage.num_tasks,
            tasks_per_job=ceil(stage.num_tasks / settings.num_tasks),  # few archives, few jobs
            time="24:00:00",
            partition=partition,
            job_name=f"clean_{stage.name}",
            qos="",
            sbatch_args={"kill-on-invalid-dep": "yes"},  # a stage that fails takes those behind it out of the queue
            venv_path=shlex.quote(str(Path(sys.prefix) / "bin" / "activate")),
            logging_dir=str((settings.output / "logs" / stage.name).absolute()),
            depends=last,
        )
    assert last is not None
    try:
        last.run()
    except FileNotFoundError:
        raise ValueError("there is no sbatch here; leave out --slurm, or submit on a login node") from None
    except subprocess.CalledProcessError as error:
        raise OSError(f"sbatch refused a job (exit code {error.returncode}); its own message is above") from None
    return None if last.job_id == -1 else str(last.job_id)  # datatrove's id of a job that it need not submit
