"""Row 6: disk and memory of the plan against what is there."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pretrain.config.run import RunConfig
from pretrain.device.gpus import gpu_bytes
from pretrain.plan.plan import Plan
from pretrain.plan.policy import choose_recompute, expected_room
from pretrain.run.other_runs import saved_teacher
from pretrain.storage import read_file
from pretrain.verification.job import PlannedJob, Tick

GIB = 2**30


def check_room(job: PlannedJob) -> Iterator[Tick]:
    """A row for the disk and one for memory."""
    teacher = None
    try:
        teacher = saved_teacher(job.config)
    except ValueError as error:
        yield Tick("teacher", False, str(error).partition("\n")[0])
    ranks = job.layout.world_size
    plan = choose_recompute(job.config, ranks, teacher, expected_room(job.config, ranks)).plan
    yield _disk(job.config, plan)
    yield _memory(job, plan)


def _disk(config: RunConfig, plan: Plan) -> Tick:
    directory = config.run.directory
    count = plan.num_checkpoints
    held = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    wanted = max(0, count * plan.checkpoint_bytes - held)
    existing = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Tick("disk", False, f"{existing} cannot be written, and {directory} is to be in it")
    each = f"{count} checkpoints of {plan.checkpoint_bytes / GIB:.2f} GiB"
    text = f"{each} need {wanted / GIB:.2f} GiB more, {free / GIB:.1f} GiB free in {existing}"
    return Tick("disk", free > wanted, text)


def _memory(job: PlannedJob, plan: Plan) -> Tick:
    worst, gpus = plan.worst_stage.total, gpu_bytes()
    each = f"{worst / GIB:.2f} GiB a rank by the plan"
    if job.is_elsewhere:
        return Tick("memory", None, f"{each}; the job runs elsewhere: compare it with the GPUs, or machines, there")
    if gpus:
        return Tick("memory", worst < min(gpus), f"{each}, {min(gpus) / GIB:.1f} GiB on each GPU here")
    total = sum(stage.total for stage in plan.stages) * job.config.parallel.tensor * job.layout.data_parallel
    ranks, free = job.layout.world_size, host_bytes()
    what = f"{ranks} rank{'s' * (ranks > 1)} need {total / GIB:.2f} GiB, {free / GIB:.1f} GiB free here"
    advice = "" if total < free else "; --elsewhere, if they will run on other machines"
    return Tick("memory", total < free, what + advice)


def host_bytes() -> int:
    """Memory that this machine can still give: what the kernel calls available, or what the control group leaves."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    limit, used = (_text(Path("/sys/fs/cgroup", f"memory.{name}")).strip() for name in ("max", "current"))
    return min(available, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else available


def _text(path: Path) -> str:
    return read_file(path).decode() if path.is_file() else ""
