"""Row 1: every layout of the job that fits on this machine equals one rank.

In fp64, where rounding cannot hide anything: losses and gradient norms of a few updates, and the validation loss at all
depths in one pass. An optimizer that is sharded over data-parallel ranks is not in fp64, so the largest layout that has
some is compared in fp32 too, with an epsilon above the rounding of gradients.
"""

from collections.abc import Iterator

from pretrain.optim.optimizers import is_sharded
from pretrain.plan.text import plural
from pretrain.verification.comparison import Numbers, compare
from pretrain.verification.job import PlannedJob, Tick
from pretrain.verification.miniature import ONE_RANK, Degrees
from pretrain.verification.ranks import run_on_ranks

MEASURE = "pretrain.verification.work:measure"
NUM_UPDATES = 3
TOLERANCE, FP32_TOLERANCE = 1e-9, 1e-4
"""Updates with the user's learning rate amplify rounding, of 1e-16 and 1e-7, by what a few of them can."""
FP32 = {"train": {"precision": "fp32"}, "optimizer": {"epsilon": 1e-2}}


def check_layouts(job: PlannedJob) -> Iterator[Tick]:
    """A row for each layout."""
    name, (fitting, others) = "layout", job.miniature.layouts(job.max_ranks)
    if not fitting and not others:
        yield Tick(name, None, "the job has one rank: there is nothing to compare")
        return
    if fitting:
        yield from _against_one_rank(job, fitting, {"train": {"precision": "fp64"}}, TOLERANCE, "fp64")
    for degrees in others:
        yield Tick(name, None, f"{degrees}: {degrees.world_size} ranks, this machine runs {job.max_ranks}")
    config = job.config
    sharded = [degrees for degrees in fitting if degrees.data > 1]
    if sharded and is_sharded(config.optimizer, config.train.precision):
        yield from _against_one_rank(job, sharded[-1:], FP32, FP32_TOLERANCE, "fp32 with sharded optimizer")


def _against_one_rank(
    job: PlannedJob, layouts: list[Degrees], changes: dict, tolerance: float, how: str
) -> Iterator[Tick]:
    wanted = _measure(job, ONE_RANK, changes)
    for degrees in layouts:
        found = compare(wanted, _measure(job, degrees, changes), tolerance, ("one rank", str(degrees)))
        what = f"{NUM_UPDATES} updates, {plural(len(job.loops), 'depth')}"
        agrees = f"{degrees} = one rank in {how}: {what}, within {found.largest:.0e}"
        yield Tick("layout", not found.first, f"{degrees} in {how}: {found.first}" if found.first else agrees)


def _measure(job: PlannedJob, degrees: Degrees, changes: dict) -> Numbers:
    """The numbers of rank 0, which all ranks agree on."""
    config = job.miniature.on(degrees, data={"num_workers": 0}, **changes)
    logs = job.logs(f"layout {degrees} {config.train.precision}")
    return run_on_ranks(MEASURE, config, NUM_UPDATES, job.loops, world_size=degrees.world_size, logs=logs)[0]
