"""How a configuration lies on a number of ranks, checked without a process group."""

from collections.abc import Iterator

from pretrain.config.run import RunConfig
from pretrain.schema.section import Section, require_divides

MOST_VISITS = 100_000
"""Most passes of micro-batches through the loop in a step, each some milliseconds on any device: a mistyped number is
refused, not worked on for ever. 16 M tokens in micro-batches of 2,048 at 8 loops on one rank are 65,536."""
TENSORS = (1, 2, 4, 8)
"""Tensor-parallel sizes that are advised: those of ranks of a node."""


class Layout(Section):
    """How the sequences of an optimizer step are shared out: micro-batch · micro_batches · data_parallel."""

    world_size: int
    """Ranks in all."""
    data_parallel: int
    """Replicas: world size / ranks of a replica."""
    micro_batches: int
    """M: micro-batches per step and rank, whose gradients are accumulated."""


def lay_out(world_size: int, replica: tuple[str, int], batch: tuple[str, int], micro_batch: int) -> Layout:
    """Share out a step: key and number of the ranks that hold the model once (`replica`), of the sequences of a step
    over all ranks (`batch`).

    Raises:
        ValueError: one number does not divide another; names both, and what would.
    """
    if world_size % replica[1]:
        key, ranks = replica
        raise ValueError(
            f"world size={world_size} is not divisible by {key}={ranks}: start {ranks} ranks or a multiple "
            f"(python -m pretrain.launch --ranks {ranks} ...), or lower {key}"
        )
    data_parallel = world_size // replica[1]
    at_once = micro_batch * data_parallel
    if batch[1] % at_once:
        advice = _what_divides(batch, data_parallel, replica[0], micro_batch)
        raise ValueError(
            f"{batch[0]}={batch[1]} is not divisible by train.micro_batch · data-parallel size={at_once}: {advice}"
        )
    return Layout(world_size=world_size, data_parallel=data_parallel, micro_batches=batch[1] // at_once)


def _what_divides(batch: tuple[str, int], data_parallel: int, replica: str, micro_batch: int) -> str:
    key, sequences = batch
    if sequences % data_parallel:
        fewer = next(
            size for size in range(data_parallel, 0, -1) if data_parallel % size == 0 and sequences % size == 0
        )
        times = data_parallel // fewer
        return (
            f"{data_parallel} replicas cannot share it: {replica} {times} times as large makes {fewer}, or change {key}"
        )
    of_rank = sequences // data_parallel
    fitting = max(size for size in range(1, micro_batch + 1) if of_rank % size == 0)
    return f"lower train.micro_batch to {fitting}"


def reads_data(config: RunConfig, world_size: int, rank: int) -> bool:
    """Whether a rank is the one of its replica that reads the data: the first of its tensor-parallel ranks, on the
    first stage. Ranks are numbered as in `pretrain/parallel/groups.py`."""
    return rank < world_size // config.parallel.pipeline and rank % config.parallel.tensor == 0


def check_layout(config: RunConfig, world_size: int) -> Layout:
    """The layout of a pretraining run.

    Raises:
        ValueError: naming the key and value that do not fit the number of ranks.
    """
    data_parallel = world_size // config.ranks_per_replica
    if world_size % config.ranks_per_replica == 0 and config.train.global_batch % data_parallel:
        for changed, advice in _more_ranks_a_replica(config):
            try:
                _laid_out(changed, world_size)
            except ValueError:
                continue
            raise ValueError(
                f"train.global_batch={config.train.global_batch} cannot be shared by {data_parallel} replicas: "
                f"{advice} makes fewer that can, or change train.global_batch"
            )
    return _laid_out(config, world_size)


def _more_ranks_a_replica(config: RunConfig) -> Iterator[tuple[RunConfig, str]]:
    """Configurations with smaller micro-batches and more ranks of a replica, the fewest first, and what they change."""
    layers = config.model.num_loop_layers
    pipelines = [size for size in range(1, layers + 1) if layers % size == 0]
    sizes = [(tensor, pipeline) for tensor in TENSORS for pipeline in pipelines]
    for tensor, pipeline in sorted(sizes, key=lambda size: (size[0] * size[1], size[1])):
        for micro_batch in range(config.train.micro_batch, 0, -1):
            values, said = config.model_dump(), list[str]()
            wanted = (
                ("parallel", "tensor", tensor),
                ("parallel", "pipeline", pipeline),
                ("train", "micro_batch", micro_batch),
            )
            for section, key, value in wanted:
                if values[section][key] != value:
                    values[section][key] = value
                    said.append(f"{section}.{key}={value}")
            try:
                yield RunConfig.model_validate(values), " ".join(said)
            except ValueError:
                continue


def _laid_out(config: RunConfig, world_size: int) -> Layout:
    replica, train = ("parallel.tensor · parallel.pipeline", config.ranks_per_replica), config.train
    layout = lay_out(world_size, replica, ("train.global_batch", train.global_batch), train.micro_batch)
    require_divides("data.num_streams", config.data.num_streams, "data-parallel size", layout.data_parallel)
    if layout.micro_batches < config.parallel.pipeline:
        raise ValueError(
            f"train.global_batch / (train.micro_batch · data-parallel size {layout.data_parallel}) = "
            f"{layout.micro_batches} micro-batches are fewer than parallel.pipeline={config.parallel.pipeline}: "
            "raise train.global_batch or lower train.micro_batch"
        )
    visits = layout.micro_batches * config.model.num_passes(config.max_loops)
    if visits > MOST_VISITS:
        raise ValueError(
            f"train.global_batch={train.global_batch}: a step has {layout.micro_batches:,} micro-batches of "
            f"{config.model.num_passes(config.max_loops):,} passes on each rank, {MOST_VISITS:,} passes at most"
        )
    return layout
