"""What the planner found, in words: the best layouts of a run on GPUs, and a table over numbers of GPUs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.plan.machine import CPU, USABLE, Gpu
from pretrain.plan.search import Estimate, Savings
from pretrain.plan.text import GIB, plural, si

HEADINGS = (
    "#", "tensor", "pipeline", "data", "micro-batch", "recompute", "GiB", "FLOPs/rank", "in node", "network", "hidden",
    "idle", "step s", "MFU", "days", "rank hours", "limited by",
)  # fmt: skip
WORDS = {
    "matrices": "matrix products",
    "attention": "attention",
    "memory": "memory traffic",
    "launches": "small kernels",
    "tensor": "tensor collectives",
    "ring": "ring messages",
    "gradients": "gradient traffic",
    "optimizer": "optimizer",
    "idle": "idle stages",
}
"""A part of `Times` -> what it is called."""
TABLE_HEADINGS = (
    "GPUs", "tensor × pipeline × data", "micro-batch", "recompute", "GiB", "step s", "MFU", "days", "idle",
    "unlooped: parameters a rank", "gradient bytes", "idle", "GiB", "FSDP would gather",
)  # fmt: skip


def best_lines(found: Sequence[Estimate], config: Path, keys: Sequence[str], gpu: Gpu, tried: int) -> Iterator[str]:
    """The table of the best layouts, and the command for each."""
    first = found[0]
    plan, train = first.plan, first.plan.config.train
    world = plan.layout.world_size
    parameters = sum(plan.parameters.values())
    nodes = -(-world // gpu.per_node)
    yield f"{config} on {world} {gpu.name}, {plural(nodes, 'node')}: {parameters:,} parameters"
    yield f"{plan.tokens_per_step:,} tokens a step, {train.steps:,} steps; {si(first.cost.flops)} FLOPs a step"
    disk = f"{plan.num_checkpoints} checkpoints of {plan.checkpoint_bytes / GIB:.1f} GiB"
    yield f"disk: {first.disk / GIB:,.1f} GiB, {disk}; memory: {USABLE * gpu.memory / GIB:.1f} GiB to plan with"
    yield f"the best of {plural(tried, 'layout')} that can be; bytes are of a rank and step"
    yield ""
    yield from _aligned([HEADINGS, *(_row(number, each) for number, each in enumerate(found, 1))])
    yield ""
    for number, each in enumerate(found, 1):
        yield f"{number:<3}{command(each, config, keys, gpu)}"


def command(each: Estimate, config: Path, keys: Sequence[str], gpu: Gpu) -> str:
    """What submits a run in a layout, or starts it here."""
    world = each.plan.layout.world_size
    if gpu.name == CPU:
        start = f"python -m pretrain.launch --ranks {world} -m pretrain.train --config"
        return " ".join([start, str(config), *keys, *each.overrides])
    ranks = min(world, gpu.per_node)
    options = [f"--nodes={world // ranks}", f"--ntasks-per-node={ranks}", f"--gpus-per-node={ranks}"]
    return " ".join(["bash slurm/submit.sh slurm/pretrain_looped.sh", *options, str(config), *keys, *each.overrides])


def _row(number: int, each: Estimate) -> tuple[str, ...]:
    plan, cost = each.plan, each.cost
    parallel, train, layout, traffic = plan.config.parallel, plan.config.train, plan.layout, cost.traffic
    share = getattr(cost.times, cost.times.largest) / cost.times.total
    return (
        str(number), str(parallel.tensor), str(parallel.pipeline), str(layout.data_parallel),
        f"{train.micro_batch} × {layout.micro_batches}", train.recompute, f"{each.memory / GIB:.1f}",
        si(each.flops_done), _bytes(traffic.link), _bytes(traffic.network),
        f"{traffic.hidden / traffic.total:.0%}" if traffic.total else "-", f"{cost.times.idle / cost.times.total:.1%}",
        f"{cost.seconds:.3g}", f"{cost.mfu:.1%}", f"{each.days:.3g}", f"{each.gpu_hours:,.0f}",
        f"{WORDS[cost.times.largest]} {share:.0%}",
    )  # fmt: skip


def table_lines(rows: Sequence[tuple[int, Savings | str]]) -> Iterator[str]:
    """A Markdown table of the best layout for each number of GPUs, and of an unlooped model of its depth in it; of a
    number on which none fits, why."""
    yield "| " + " | ".join(TABLE_HEADINGS) + " |"
    yield "| " + " | ".join("---" for _ in TABLE_HEADINGS) + " |"
    for gpus, saved in rows:
        cells = [str(gpus), saved] if isinstance(saved, str) else [str(gpus), *_cells(saved)]
        yield "| " + " | ".join([*cells, *[""] * (len(TABLE_HEADINGS) - len(cells))]) + " |"


def _cells(saved: Savings) -> list[str]:
    ring, deep = saved.ring, saved.unlooped
    parallel, train, layout = ring.plan.config.parallel, ring.plan.config.train, ring.plan.layout
    held = [max(stage.parameters for stage in each.plan.stages) / parallel.tensor for each in (ring, deep)]
    gradients = [max(stage.gradients for stage in each.plan.stages) for each in (ring, deep)]
    idle = [each.cost.times.idle / each.cost.times.total for each in (ring, deep)]
    return [
        f"{parallel.tensor} × {parallel.pipeline} × {layout.data_parallel}",
        f"{train.micro_batch} × {layout.micro_batches}", train.recompute, f"{ring.memory / GIB:.1f}",
        f"{ring.cost.seconds:.3g}", f"{ring.cost.mfu:.1%}", f"{ring.days:.3g}", f"{idle[0]:.1%}",
        f"{si(held[1])} (ring {si(held[0])})", f"{_bytes(gradients[1])} ({_bytes(gradients[0])})", f"{idle[1]:.1%}",
        f"{deep.memory / GIB:.1f}", _bytes(saved.fsdp_bytes),
    ]  # fmt: skip


def _bytes(number: float) -> str:
    return f"{si(number)}B" if number >= 1000 else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1]])
