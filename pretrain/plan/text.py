"""Plans in words: rows of a name and a text, printed as a table after the resolved configuration."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from pretrain.config.read import resolved_yaml
from pretrain.config.run import BYTES
from pretrain.model.config import KEEPS_LAYERS, ModelSection
from pretrain.model.count import cached_numbers, forward_flops_per_token, train_flops_per_token, window_numbers
from pretrain.plan.pipeline import idle_share
from pretrain.plan.plan import Plan
from pretrain.schema.section import Section

GIB = 2**30

Row = tuple[str, str]
"""Name, or nothing to continue the row before, and text."""
NAME_WIDTH = len("run directory")
"""Of the longest name."""


def render(config: Section, rows: Iterable[Row]) -> str:
    """The resolved configuration and a table of the rows."""
    return resolved_yaml(config) + "\n" + "".join(line_of(*row) + "\n" for row in rows)


def line_of(name: str, text: str) -> str:
    """A line of the table."""
    return f"{name:<{NAME_WIDTH}}  {text}".rstrip()


def plan_rows(plan: Plan) -> list[Row]:
    """A plan of pretraining: what the model is, how the ranks share the work, what a step costs and what a rank
    holds."""
    return [*_size_rows(plan), *_work_rows(plan), *_memory_rows(plan)]


def model_rows(model: ModelSection, parameters: Mapping[str, int]) -> list[Row]:
    """Depth and parameters of a model."""
    blocks = f"{plural(model.num_loop_layers, 'layer')} × {plural(model.num_loops, 'loop')}"
    if model.num_blocks > 1:
        blocks = f"{model.num_blocks} blocks of {plural(model.pass_layers, 'layer')}"
    depth = f"prelude {model.num_prelude_layers} + {blocks} + coda {model.num_coda_layers}"
    parts = " + ".join(f"{name.replace('_', ' ')} {si(number)}" for name, number in parameters.items())
    total = sum(parameters.values())
    return [("depth", f"{model.effective_depth()} = {depth}"), ("parameters", f"{total:,} = {parts}")]


def plural(number: int, word: str) -> str:
    """A number and what it counts: 2 loops."""
    ending = "" if number == 1 else "es" if word.endswith("ch") else "s"
    return f"{number} {word}{ending}"


def si(value: float) -> str:
    """Three digits and an SI prefix: 1.31 G."""
    power = min(max(0, len(str(round(value))) - 1) // 3, 7)
    value /= 1000**power
    digits = 2 - (value >= 10) - (value >= 100) if power else 0
    return f"{value:.{digits}f} {' kMGTPEZ'[power]}".strip()


def _size_rows(plan: Plan) -> Iterator[Row]:
    layout, parallel, train = plan.layout, plan.config.parallel, plan.config.train
    yield from model_rows(plan.config.model, plan.parameters)
    if parallel.pipeline > 1:
        yield "", "by stage: " + ", ".join(si(stage.parameters) for stage in plan.stages)
    sizes = f"tensor {parallel.tensor} × pipeline {parallel.pipeline} × data {layout.data_parallel}"
    yield "ranks", f"{layout.world_size} = {sizes}" + (", sequence parallel" if parallel.sequence else "")
    yield "step", f"{train.global_batch} sequences × {train.seq_len} = {plan.tokens_per_step:,} tokens"
    share = f"{plural(layout.micro_batches, 'micro-batch')} of {plural(train.micro_batch, 'sequence')}"
    yield "", f"{share} on each replica"


def _work_rows(plan: Plan) -> Iterator[Row]:
    config, model, train = plan.config, plan.config.model, plan.config.train
    loop_counts = sorted({model.num_loops, config.min_loops, config.max_loops})
    work = partial(
        train_flops_per_token, model, train.seq_len, outputs=train.loop_loss.outputs,
        backprop_loops=train.backprop_loops,
    )  # fmt: skip
    for loops in loop_counts:
        forward = si(forward_flops_per_token(model, train.seq_len, loops))
        training = si(work(num_loops=loops))
        name = "FLOPs" if loops == loop_counts[0] else ""
        yield name, f"{training} a token (forward {forward}) at {plural(loops, 'loop')}"
    if train.backprop_loops is not None:
        yield "", f"gradients through the last {plural(train.backprop_loops, 'loop')} of a step"
    naive = 6 * sum(plan.parameters.values())
    mean = f" at the mean of {plan.mean_loops:g} loops" if len(loop_counts) > 1 else ""
    share = naive / plan.train_flops_per_token
    yield "", f"6 · parameters would give {si(naive)}, {share:.2f} of what is run{mean}"
    per_step = plan.train_flops_per_token * plan.tokens_per_step
    yield "", f"{si(per_step)} a step, {si(per_step * train.steps)} in {train.steps:,} steps{mean}"
    if train.chosen_recompute not in KEEPS_LAYERS:
        unit = "layer" if train.recompute == "offload" else train.recompute
        yield "", f"recomputing each {unit}, the machine does {plan.recomputed:.2f} × that"
    if plan.config.parallel.pipeline > 1:
        yield _idle_row(plan, loop_counts)


def _idle_row(plan: Plan, loop_counts: list[int]) -> Row:
    shares = []
    for loops in loop_counts:
        num_passes = plan.config.model.num_passes(loops)
        share = idle_share(num_passes, plan.layout.micro_batches, plan.config.parallel.pipeline)
        shares.append(f"{share:.1%} at {plural(loops, 'loop')}")
    busiest = f"the busiest stage has {plan.balance:.2f} × the mean work"
    return "idle", f"{', '.join(shares)} = (P-1)/(L·M+P-1); {busiest}"


def _memory_rows(plan: Plan) -> Iterator[Row]:
    config, model = plan.config, plan.config.model
    size, layers = BYTES[config.train.precision], plural(model.cached_depth(), "layer")
    windows = f", and {size * window_numbers(model):,} a sequence for windows" if window_numbers(model) else ""
    cached = size * cached_numbers(model)
    yield "cache", f"{cached:,} bytes a token at {plural(model.num_loops, 'loop')}, of {layers}{windows}"
    of_teacher = ("teacher",) if plan.teacher is not None else ()
    of_sending = ("sending",) if any(stage.sending for stage in plan.stages) else ()
    states, others = ("weights", "gradients", "optimizer", *of_teacher), ("evaluation", *of_sending)
    names = (*states, "activations", "working", *others, "total")
    yield "GiB a rank", "".join(f"{name:>12}" for name in names)
    for index, stage in enumerate(plan.stages):
        mark = "  <- most" if stage is plan.worst_stage and len(plan.stages) > 1 else ""
        yield f"  stage {index}", "".join(f"{getattr(stage, name) / GIB:>12.3f}" for name in names) + mark
    yield "", f"{' or '.join(others)} takes the place of activations and working space, where it is more"
    if host := max(stage.host for stage in plan.stages):
        yield "", f"beside that {host / GIB:.3f} of a rank of a GPU wait on its host"
