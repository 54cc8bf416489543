"""All layouts of a run on a number of GPUs, and which are fastest of those that fit.

Tried are products of the divisors of the number of GPUs for the tensor-parallel size (within a node, with sequence
parallelism), of the loop block for the pipeline, powers of two for the micro-batch, and the ways to recompute. Each
becomes a configuration that is checked as a user's is, so what is found can be submitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, get_args

from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.model.config import Recompute
from pretrain.model.loop.recurrence import WHOLE
from pretrain.model.weights import stage_weights
from pretrain.plan.cost import PlannedCost, software_of, step_cost
from pretrain.plan.machine import USABLE, Gpu
from pretrain.plan.partners import applied_once
from pretrain.plan.plan import Plan, make_plan

MOST_SEQUENCES = 64
"""Of a micro-batch that is tried: more only take memory."""
WAYS = tuple(way for way in get_args(Recompute) if way != "offload")
"""To recompute, that are tried: the time that copies to the host take is in no formula."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A layout, and what a run costs in it."""

    plan: Plan
    cost: PlannedCost

    @property
    def memory(self) -> float:
        """Bytes on the fullest rank."""
        return self.plan.worst_stage.total

    @property
    def flops_done(self) -> float:
        """FLOPs of a rank in a step, recomputation included."""
        return self.cost.flops / self.plan.layout.world_size * self.plan.recomputed

    @property
    def days(self) -> float:
        return self.cost.seconds * self.plan.config.train.steps / 86400

    @property
    def gpu_hours(self) -> float:
        return 24 * self.days * self.plan.layout.world_size

    @property
    def disk(self) -> float:
        """Bytes of all checkpoints that are there at one time."""
        return self.plan.num_checkpoints * self.plan.checkpoint_bytes

    @property
    def overrides(self) -> list[str]:
        """The layout as keys of the configuration."""
        parallel, train = self.plan.config.parallel, self.plan.config.train
        return [
            f"parallel.tensor={parallel.tensor}", f"parallel.pipeline={parallel.pipeline}",
            f"parallel.sequence={str(parallel.sequence).lower()}", f"train.micro_batch={train.micro_batch}",
            f"train.recompute={train.recompute}",
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The ring beside an unlooped model of the same depth in the same layout."""

    ring: Estimate
    unlooped: Estimate

    @property
    def fsdp_bytes(self) -> float:
        """What a rank would receive in a step if the block were sharded over the data-parallel ranks (FSDP, ZeRO 3): it
        is gathered for each loop of each micro-batch, forward and backward."""
        plan = self.ring.plan
        config, ranks = plan.config, plan.layout.data_parallel
        weights = stage_weights(config.model, config.train.seq_len, WHOLE).items()
        block = sum(weight.numel for name, weight in weights if name.startswith("loop."))
        held = 2 * block / config.parallel.tensor / config.parallel.pipeline
        return 2 * plan.mean_loops * plan.layout.micro_batches * held * (ranks - 1) / ranks


class ReplicaCut(NamedTuple):
    """How a replica is cut, and how many sequences it works on at a time."""

    tensor: int
    pipeline: int
    micro_batch: int


def cuts(config: RunConfig, gpus: int, gpu: Gpu) -> Iterator[ReplicaCut]:
    """All that there are on so many GPUs."""
    for tensor in _divisors(gpus):
        if tensor <= gpu.per_node and gpu.per_node % tensor == 0:
            for pipeline in _divisors(gpus // tensor):
                of_rank = config.train.global_batch // (gpus // tensor // pipeline)
                powers = [2**power for power in range(MOST_SEQUENCES.bit_length())]
                yield from (ReplicaCut(tensor, pipeline, size) for size in powers if size <= max(1, of_rank))


def estimates(
    config: RunConfig, cut: ReplicaCut, gpus: int, gpu: Gpu, teacher: SavedModel | None = None
) -> list[Estimate]:
    """What a run costs in a cut: without recomputation where that fits, which is fastest, else in each way.

    Raises:
        ValueError: the configuration does not go into this cut.
    """
    found = []
    for recompute in WAYS:
        found.append(estimate(_laid_out(config, cut, recompute), gpus, gpu, teacher))
        if fits(found[0], gpu):
            break
    return found


def _laid_out(config: RunConfig, cut: ReplicaCut, recompute: str) -> RunConfig:
    values = config.model_dump()
    values["parallel"] |= {"tensor": cut.tensor, "pipeline": cut.pipeline, "sequence": cut.tensor > 1}
    values["train"] |= {"micro_batch": cut.micro_batch, "recompute": recompute}
    return RunConfig.model_validate(values)


def estimate(config: RunConfig, gpus: int, gpu: Gpu, teacher: SavedModel | None = None) -> Estimate:
    """What a configuration costs as it is on so many GPUs, with the model of train.teacher.

    Raises:
        ValueError: it does not fit on this many ranks.
    """
    plan = make_plan(config, gpus, teacher)
    return Estimate(plan=plan, cost=step_cost(plan, gpu, software_of(config, gpu)))


def fits(found: Estimate, gpu: Gpu) -> bool:
    """Whether its fullest rank has room."""
    return found.memory <= USABLE * gpu.memory


def savings(ring: Estimate, gpu: Gpu) -> Savings:
    """A looped run beside an unlooped one of its depth."""
    config = ring.plan.config
    deep = applied_once(config, config.model.num_loop_layers * config.model.num_loops)
    return Savings(ring=ring, unlooped=estimate(deep, ring.plan.layout.world_size, gpu, ring.plan.teacher))


def fastest(estimates: list[Estimate], gpu: Gpu) -> list[Estimate]:
    """Those that fit, the fastest first."""
    return sorted((each for each in estimates if fits(each, gpu)), key=lambda each: each.cost.seconds)


def smallest(estimates: list[Estimate]) -> Estimate:
    """The one whose fullest rank holds least."""
    return min(estimates, key=lambda each: each.memory)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
