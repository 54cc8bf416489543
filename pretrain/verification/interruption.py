"""Row 3: killed and resumed equals uninterrupted, bit for bit, the tasks scored between steps too. Row 4: its export
equals the model. And what these runs leave out.

A run of a few steps of the miniature in the user's precision, on the largest layout that fits: once to its end, and
once ended by SIGKILL to all ranks as soon as its first checkpoint is there, then started again by the same command.
"""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, newest_step
from pretrain.config.run import RunConfig
from pretrain.plan.text import plural
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.step import MetricsRow
from pretrain.verification.comparison import Numbers, compare
from pretrain.verification.job import PlannedJob, Tick
from pretrain.verification.miniature import NUM_STEPS, has_harness
from pretrain.verification.ranks import TIMEOUT_S, Ranks, RanksFailed, run_on_ranks

TRAIN = "pretrain.verification.work:train"
COMPARE_STATES = "pretrain.verification.work:compare_states"
EXPORT = "pretrain.verification.work:export"
KILLED = -9
UNINTERRUPTED, INTERRUPTED = "uninterrupted", "killed"


def check_interruption(job: PlannedJob) -> Iterator[Tick]:
    """A row, and one of the tasks if the job scores some."""
    name, degrees = "resume", job.richest
    whole, killed = (_config(job, run) for run in (UNINTERRUPTED, INTERRUPTED))
    _train(job, whole)
    step = _train_until_killed(job, killed)
    _train(job, killed)
    one, other = _numbers(whole.run.directory), _numbers(killed.run.directory)
    difference = f"{len(other)} numbers in the rows, {len(one)} in those of the uninterrupted run"
    if one.keys() == other.keys():
        difference = compare(one, other, 0.0, ("the uninterrupted run", "the resumed one")).first
    if not difference:
        logs = job.logs("compare states")
        directories = whole.run.directory, killed.run.directory
        (difference,) = run_on_ranks(COMPARE_STATES, *directories, world_size=1, logs=logs)
    how = f"{degrees}, {NUM_STEPS} steps in {whole.train.precision}"
    text = f"SIGKILL after the checkpoint of step {step} and resumed = uninterrupted, bit for bit: {how}"
    yield Tick(name, not difference, difference or text)
    if job.config.validation.tasks_every:
        yield _tasks(whole.run.directory)


def _tasks(run_dir: Path) -> Tick:
    """What was scored of the tasks; that it is the same after the resume, the row before says."""
    rows = JsonLines(run_dir / "eval" / "depth.jsonl").read(EvaluationRow, strict=True)
    scored = sorted({row.task for row in rows} - {"validation"})
    if scored:
        return Tick("tasks", True, f"{plural(len(scored), 'task')} scored between steps: {', '.join(scored)}")
    why = "no task of validation.tasks can be scored" if has_harness() else "bash tools/setup.sh eval"
    return Tick("tasks", None, f"not tried here: {why}")


def check_compilation(job: PlannedJob) -> Iterator[Tick]:
    """One row, if the job compiles."""
    if job.config.train.compile:
        yield Tick("compile", None, "not tried here: the miniature runs uncompiled")


def check_export(job: PlannedJob) -> Iterator[Tick]:
    """One row, about the run that `check_interruption` made."""
    name, run_dir = "export", _config(job, UNINTERRUPTED).run.directory
    if find_spec("transformers") is None:
        yield Tick(name, None, "transformers is not installed: bash tools/setup.sh finetune")
        return
    is_exportable, said = run_on_ranks(EXPORT, run_dir, job.folder / "export", world_size=1, logs=job.logs("export"))[0]
    if is_exportable is None:
        yield Tick(name, None, f"not exportable: {said}")
    else:
        yield Tick(name, is_exportable, said)


def _config(job: PlannedJob, run: str) -> RunConfig:
    return job.miniature.on(job.richest, run={"name": run})


def _train(job: PlannedJob, config: RunConfig) -> None:
    logs = job.logs(f"run {config.run.name}")
    codes = run_on_ranks(TRAIN, config, world_size=job.richest.world_size, logs=logs)
    if any(codes):
        raise RanksFailed(f"the {config.run.name} run ended with exit codes {codes}")


def _train_until_killed(job: PlannedJob, config: RunConfig) -> int:
    """Start the run and kill its ranks once it has a checkpoint; returns the newest one's step."""
    folder, deadline = config.run.directory / CHECKPOINTS, time.monotonic() + TIMEOUT_S
    with Ranks(TRAIN, config, world_size=job.richest.world_size, logs=job.logs("run until killed")) as ranks:
        while ranks.are_at_work and not (folder.is_dir() and list_checkpoints(folder)) and time.monotonic() < deadline:
            time.sleep(0.002)
        codes = ranks.kill()
    if set(codes) != {KILLED}:
        raise RanksFailed(f"the run was to be killed after its first checkpoint, but ended with exit codes {codes}")
    return newest_step(config.run.directory)


def _numbers(run_dir: Path) -> Numbers:
    """The numbers of all rows that do not depend on the clock, by name."""
    numbers: Numbers = {}
    for row in JsonLines(run_dir / "metrics.jsonl").read(MetricsRow, strict=True):
        for key in ("loss", "regularisation", "grad_norm", "lr", "num_loops", "tokens_seen", "skipped"):
            numbers[f"{key} of step {row.step}"] = getattr(row, key)
    for row in JsonLines(run_dir / "eval" / "depth.jsonl").read(EvaluationRow, strict=True):
        numbers[f"{row.task} {row.metric} of step {row.step} at L={row.num_loops}"] = row.value
    return numbers
