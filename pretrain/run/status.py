"""How runs stand, read from what they leave in their directories: config.yaml, state, the end of metrics.jsonl,
checkpoints/, requeues.txt, jobs/ (`slurm/common.sh` says what the last two hold), and from Slurm's queue, if any.

States: `running`; `waiting` (a job is queued, or nothing has been trained yet); `complete`; `stopped` (asked to, the
same command continues it); `crashed` (it said so, or its job is gone while it says that it runs); `stale` (it says that
it runs, and nothing of it has changed for a long time: killed, or hanging); `imported` (weights that were brought in:
nothing trains there).

Cost: a few small reads a run, whatever its length; two milliseconds. Knows no torch.
"""

import contextlib
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from pretrain.checkpoint.names import CHECKPOINTS, list_checkpoints, parse_step
from pretrain.config.ranks import RanksSection
from pretrain.rows.jsonl import JsonLines
from pretrain.storage import read_file

TAIL_BYTES, EPOCHS_TAIL_BYTES = 8 << 10, 128 << 10
"""Of metrics.jsonl: enough rows for a median; enough to see an epoch end."""
RATE_ROWS = 20
SILENCE_SECONDS, SILENT_STEPS = 600.0, 20
"""A run is stale after this time, or after this many steps if they take longer, without a sign of life."""
MARKS = ("config.yaml", "metrics.jsonl", "jobs")
"""What makes a folder a run: a job leaves the last before the run has begun."""
AT_ONCE = 0.1
"""Of that time: enough when the queue says that the job is gone."""
WORKING_STATES = ("RUNNING", "COMPLETING")
WAITING_STATES = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING", "SUSPENDED")
IMPORTED = "imported"
RANK_LABEL = re.compile(r"^(\s*\d+: )?(\[rank\d+\]: )?(error: )?")


@dataclass(frozen=True, kw_only=True)
class LoggedStep:
    """What is read of a row of metrics.jsonl, of pretraining or of fine-tuning."""

    step: Annotated[int, Field(ge=0, le=sys.maxsize)]
    epoch: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    mfu_pct: float | None = None
    step_time_s: float | None = None
    eta_s: float | None = None
    work_s: float | None = None
    work_worst_s: float | None = None
    slowest: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run; what is not known is None."""

    name: str
    """Its path below the folder that was asked for."""
    state: str
    step: int
    """Steps done, as far as metrics.jsonl and the newest checkpoint tell."""
    num_steps: int | None
    """Steps of the whole run."""
    loss: float | None
    """Of the last step, in nats per token; not a number where the run says so."""
    tokens_per_s: float | None
    """Median of the last rows, as is MFU."""
    mfu_pct: float | None
    eta_s: float | None
    """Seconds of training that are left, as the last row says, or by the median time of a step; only of a run that is
    running."""
    requeues: int
    checkpoint_step: int | None
    """Of the newest checkpoint."""
    checkpoint_age_s: float | None
    error: str
    """The last one, a line, or which machine slows the run down; empty if there was neither."""


def find_runs(root: Path) -> list[Path]:
    """The run directories at or below a folder, sorted.

    Raises:
        ValueError: it is not there, or holds no run.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    runs = sorted(_walk(root))
    if not runs:
        raise ValueError(f"{root}: holds no run (a folder with {' or '.join(MARKS[:2])})")
    return runs


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = list(entries)
    if any(entry.name in MARKS for entry in found):
        yield folder
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _walk(Path(entry.path))


def read_queue() -> dict[str, str] | None:
    """Slurm's jobs of this user, id to state; None where there is no Slurm that answers."""
    command = ["squeue", "--me", "--noheader", "--states=all", "--format=%A %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {job: state for job, _, state in (line.partition(" ") for line in done.stdout.splitlines())}


def read_status(run: Path, name: str, queue: dict[str, str] | None, now: float | None = None) -> RunStatus:
    """How one run stands.

    Args:
        run: its directory.
        name: to show.
        queue: from `read_queue`.
        now: seconds since the epoch. Default: the clock.
    """
    now = time.time() if now is None else now
    config, problem = read_written_config(run / "config.yaml")
    epochs, all_steps = _number(config, "train", "epochs"), _number(config, "train", "steps")
    rows: list[LoggedStep] = []
    with contextlib.suppress(OSError):
        rows = JsonLines(run / "metrics.jsonl").tail(LoggedStep, EPOCHS_TAIL_BYTES if epochs else TAIL_BYTES)
    recent = rows[-RATE_ROWS:]
    checkpoint = _newest_checkpoint(run)
    step = max(rows[-1].step if rows else 0, checkpoint[0] if checkpoint else 0)
    step_time = _median(row.step_time_s for row in recent)
    said = _read_line(run / "state")
    job = _newest_job(run)
    patience = max(SILENCE_SECONDS, SILENT_STEPS * (step_time or 0) * (_number(config, "logging", "every") or 1))
    state = _state(said, job, queue, silent_for=(now - _last_sign(run, job)) / patience, has_begun=bool(rows))
    if state == "waiting" and job is None and checkpoint is not None:  # what trains says so before its first checkpoint
        state, all_steps = IMPORTED, None
    num_steps = all_steps or (step if state == "complete" else _steps_of_epochs(rows, epochs))
    requeues = _lines(run / "requeues.txt")
    return RunStatus(
        name=name,
        state=state,
        step=step,
        num_steps=num_steps,
        loss=(math.nan if rows[-1].loss is None else rows[-1].loss) if rows else None,
        tokens_per_s=_median(row.tokens_per_s for row in recent),
        mfu_pct=_median(row.mfu_pct for row in recent),
        eta_s=_time_left(rows, num_steps, step, step_time) if state == "running" else None,
        requeues=len(requeues),
        checkpoint_step=checkpoint[0] if checkpoint else None,
        checkpoint_age_s=now - checkpoint[1] if checkpoint else None,
        error=problem or _last_error(said, job, requeues, state) or (_slow(recent) if state == "running" else ""),
    )


def _time_left(rows: Sequence[LoggedStep], num_steps: int | None, step: int, step_time: float | None) -> float | None:
    """Seconds, by what the row of the last step says, if it does: it knows what work is still to come."""
    if rows and rows[-1].step == step and rows[-1].eta_s is not None:
        return rows[-1].eta_s
    return (num_steps - step) * step_time if num_steps and step_time else None


def _state(said: str, job: Path | None, queue: dict[str, str] | None, *, silent_for: float, has_begun: bool) -> str:
    """The state, from what the run says, its newest job, the queue, and its silence in units of our patience."""
    if said.startswith("complete"):
        return "complete"
    queued = queue.get(job.name.partition("-")[0], "gone") if queue is not None and job is not None else "unknown"
    if queued in WAITING_STATES:
        return "waiting"
    is_at_work = queued in WORKING_STATES
    if said.startswith("failed"):
        return "crashed"
    if said.startswith("stopped") and not is_at_work:
        return "stopped"
    if not (said or has_begun or is_at_work):
        return "waiting"
    is_gone = queued != "unknown" and not is_at_work
    if is_gone and silent_for > AT_ONCE:  # one that is not silent runs without the job, started by hand
        return "crashed"
    return "stale" if silent_for > 1 else "running"


def read_written_config(path: Path) -> tuple[dict[str, Any], str]:
    """The configuration of a run as it lies there, unchecked, or what is wrong with it."""
    try:
        config = yaml.load(read_file(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return {}, f"config.yaml: {str(error).partition(chr(10))[0]}"
    return (config, "") if isinstance(config, dict) else ({}, "config.yaml: not a configuration")


def _number(config: dict[str, Any], section: str, key: str) -> int | None:
    """A whole number above 0 of a configuration that nobody has checked."""
    values = config.get(section)
    value = values.get(key) if isinstance(values, dict) else None
    return value if type(value) is int and value > 0 else None


def _tail(path: Path, num_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return [line for line in _tail(path, 1 << 20).splitlines() if line.strip()]


def _read_line(path: Path) -> str:
    return next(iter(_lines(path)), "").strip()


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(known) if known else None


def _slow(rows: Sequence[LoggedStep]) -> str:
    """Which ranks the others waited for in most of these steps, where that was long."""
    times = [
        (row.slowest, row.work_worst_s / row.work_s) for row in rows if row.slowest and row.work_worst_s and row.work_s
    ]
    who, steps = Counter(name for name, _ in times).most_common(1)[0] if times else ("", 0)
    factor = _median(ratio for name, ratio in times if name == who)
    if factor is None or 2 * steps <= len(rows) or factor < RanksSection().slow_factor:
        return ""
    return f"slow: {who}, {factor:.2f} times the median"


def _steps_of_epochs(rows: Sequence[LoggedStep], epochs: int | None) -> int | None:
    """Steps of a run that counts epochs: step s in epoch e (from 0) means e * n < s <= (e + 1) * n steps an epoch."""
    known = [(row.step, row.epoch) for row in rows if row.epoch is not None]
    least = max((math.ceil(step / (epoch + 1)) for step, epoch in known), default=0)
    most = min(((step - 1) // epoch for step, epoch in known if epoch), default=0)
    return epochs * least if epochs and least == most else None


def _newest_job(run: Path) -> Path | None:
    """The folder of the newest attempt of the newest job: jobs/<job>-<restart>."""
    attempts = [path for path in (run / "jobs").glob("*-*") if re.fullmatch(r"\d+-\d+", path.name)]
    return max(attempts, key=lambda path: tuple(map(int, path.name.split("-"))), default=None)


def _newest_checkpoint(run: Path) -> tuple[int, float] | None:
    """Step and time of the newest checkpoint."""
    found = list_checkpoints(run / CHECKPOINTS)
    return (parse_step(found[0].name) or 0, _time(found[0])) if found else None


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _last_sign(run: Path, job: Path | None) -> float:
    """When a run last wrote something."""
    paths = [
        run / "metrics.jsonl",
        run / "state",
        run / "checkpoints",
        run / "eval",
        *([job / "step.log"] if job else []),
    ]
    return max(map(_time, paths))


def _last_error(said: str, job: Path | None, requeues: list[str], state: str) -> str:
    """What went wrong last, a line without the labels of ranks."""
    failure = _lines(job / "failure.txt") if job else []
    said_reason = said.partition(": ")[2] if said.startswith("failed") else ""
    log = (
        [line for line in _tail(job / "step.log", TAIL_BYTES).splitlines() if "error: " in line]
        if job and state == "crashed"
        else []
    )
    troubles = [
        line.partition(": ")[2]
        for line in requeues
        if not re.search(r": (by Slurm|(SIG|stopped by )\w+( before the start)?)$", line)
    ]
    found = said_reason or next(iter(failure[-1:] or log[-1:] or troubles[-1:]), "")
    return RANK_LABEL.sub("", found).strip()
