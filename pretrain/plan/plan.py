"""The dry run: what a configuration costs on a number of ranks, computed without a process group, a GPU or torch.

Memory of one rank, in bytes a parameter (p: 2 bf16, 4 fp32, 8 fp64; w = max(p, 4)):

    weights p, gradients w (one buffer over micro-batches and loops)
    a sharded optimizer: its states (AdamW: two moments) of 4 and, for bf16, fp32 weights of 4, divided by the
    data-parallel size
    one that is not, over whole matrices: weights w, a copy of the gradients w, its states (Adafactor: rows + columns;
    Muon: one moment of a matrix, AdamW's two of the rest)
    the frozen model of train.teacher: weights p

Activations and working space: `pretrain/plan/memory.py`. Counted in their place where it is more: two copies in bf16 of
gradients that are all on their way in it (`parallel.overlap` with `reduce_precision=bf16`). Not counted: other
communication buffers, the memory of the framework itself, fragmentation.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial

from pretrain.config.layout import Layout, check_layout
from pretrain.config.run import BYTES, RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.model.config import Recompute
from pretrain.model.count import body_flops, count, count_parameters, head_flops, train_flops_per_token
from pretrain.model.loop.recurrence import Stage
from pretrain.model.weights import stage_weights
from pretrain.optim.loop_count import backprop_loops_at, mean_loops, num_loops_at
from pretrain.optim.optimizers import is_sharded, optimizer_kind
from pretrain.plan.memory import Activations

MOST_STEPS = 1000
"""A mean over the steps of a run is one over at most so many of them, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one rank of a pipeline stage holds; memory in bytes."""

    parameters: int
    """Parameters of the stage, over its tensor-parallel ranks."""
    forward_flops: int
    """Forward FLOPs a token at `model.num_loops`, over its tensor-parallel ranks."""
    weights: float
    gradients: float
    optimizer: float
    teacher: float
    """Weights of the frozen model of train.teacher; 0 without one."""
    activations: float
    working: float
    host: float
    """On the host (`train.recompute=offload`), beside all that is on the device."""
    evaluation: float
    """What an evaluation between steps holds in the place of activations and working space; 0 without evaluations."""
    sending: float
    """What gradients on their way hold in the place of these."""

    @property
    def total(self) -> float:
        """The most at one time."""
        states = self.weights + self.gradients + self.optimizer + self.teacher
        return states + max(self.activations + self.working, self.evaluation, self.sending)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will cost, see `make_plan`. Memory is for the largest loop count that training can draw."""

    config: RunConfig
    layout: Layout
    parameters: dict[str, int]
    """By part of the model, each shared weight once."""
    stages: tuple[StagePlan, ...]
    mean_loops: float
    """Mean loop count of a step (of the Poisson ones before the draws are cut to their range)."""
    teacher: SavedModel | None
    """The frozen model of train.teacher."""

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: weights and states of the optimizer, each once and in fp32 (fp64 for fp64)."""
        config = self.config
        weights = stage_weights(config.model, config.train.seq_len).values()
        kind = optimizer_kind(config.optimizer)
        of_weights = (kind.for_weight(weight).states(weight.shape) for weight in weights)
        states = sum(math.prod(shape) for of_weight in of_weights for shape in of_weight.values())
        return max(4, BYTES[config.train.precision]) * (count(weights) + states)

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints that a run has at most: the newest, those at multiples, and the one that is being written."""
        checkpoint, steps = self.config.checkpoint, self.config.train.steps
        kept = steps // checkpoint.keep_every if checkpoint.keep_every else 0
        saved = steps // checkpoint.every + 1 if checkpoint.every else 1
        return min(checkpoint.keep_last + kept + 1, saved + 1)

    @property
    def worst_stage(self) -> StagePlan:
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def balance(self) -> float:
        """FLOPs of the busiest stage over the mean; the others wait for it."""
        flops = [stage.forward_flops for stage in self.stages]
        return max(flops) * len(flops) / sum(flops)

    @property
    def train_flops_per_token(self) -> float:
        """See `mean_train_flops`."""
        return mean_train_flops(self.config)

    @property
    def recomputed(self) -> float:
        """FLOPs that the machine does over those that the model asks for, in the mean of a run."""
        return mean_train_flops(self.config, self.config.train.chosen_recompute) / self.train_flops_per_token

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.global_batch * self.config.train.seq_len


def mean_train_flops(config: RunConfig, recompute: Recompute = "none") -> float:
    """FLOPs of training on one token, with what is computed again, in the mean of a run: at the mean loop count; where
    loops differ in cost, as some have no gradient, no keys or no output, over the numbers that steps of this seed
    draw."""
    model, train = config.model, config.train
    flops = partial(
        train_flops_per_token, model, train.seq_len, recompute=recompute, outputs=train.loop_loss.outputs
    )  # fmt: skip
    are_alike = train.backprop_loops is None and model.loop.keys != "every" and train.loop_loss.outputs != "two"
    if are_alike:
        once, twice = (flops(loops) for loops in (1, 2))
        loops = mean_loops(model, train) if model.num_blocks == 1 else 1.0
        return once + (loops - 1) * (twice - once)
    steps = range(0, train.steps, -(-train.steps // MOST_STEPS))
    drawn = Counter(
        (num_loops_at(model, train, config.run.seed, step), backprop_loops_at(train, step)) for step in steps
    )
    total = sum(count * flops(loops, backprop_loops=backprop) for (loops, backprop), count in drawn.items())
    return total / len(steps)


def make_plan(config: RunConfig, world_size: int, teacher: SavedModel | None = None) -> Plan:
    """Plan a run on `world_size` ranks.

    Args:
        config: of the run; what it computes again is chosen.
        world_size: its ranks.
        teacher: the model of train.teacher, if the run has one: only its checkpoint says what it is.

    Raises:
        ValueError: the configuration does not fit on this many ranks.
    """
    layout = check_layout(config, world_size)
    return Plan(
        config=config,
        layout=layout,
        parameters=count_parameters(config.model, config.train.seq_len),
        stages=tuple(_plan_stage(config, layout, index, teacher) for index in range(config.parallel.pipeline)),
        mean_loops=mean_loops(config.model, config.train),
        teacher=teacher,
    )


def _plan_stage(config: RunConfig, layout: Layout, index: int, teacher: SavedModel | None) -> StagePlan:
    model, train, parallel = config.model, config.train, config.parallel
    stage = Stage(index=index, count=parallel.pipeline)
    weights = stage_weights(model, train.seq_len, stage).values()
    held = count(weights, parallel.tensor)
    size = BYTES[train.precision]
    wide = max(4, size)
    shards = is_sharded(config.optimizer, train.precision)
    kind, cut = optimizer_kind(config.optimizer), parallel.tensor if shards else 1
    of_weights = (kind.for_weight(weight).states(weight.held_shape(cut)) for weight in weights)
    states = sum(math.prod(shape) for of_weight in of_weights for shape in of_weight.values())
    if shards:
        optimizer = wide * (states + held * (size < wide)) / layout.data_parallel
    else:
        optimizer = wide * (2 * count(weights) + states)
    frozen, taught = 0, None
    if teacher is not None:
        frozen, taught = count(stage_weights(teacher.model, teacher.seq_len).values()), teacher.model
    activations, validation = Activations(config=config, stage=stage, teacher=taught), config.validation
    are_sent = layout.data_parallel > 1 and parallel.overlap and parallel.reduce_precision == "bf16"
    return StagePlan(
        parameters=count(weights),
        forward_flops=body_flops(model, train.seq_len, stage=stage) + (head_flops(model) if stage.is_last else 0),
        weights=held * size,
        gradients=held * wide,
        optimizer=optimizer,
        teacher=frozen * size,
        activations=activations.peak(layout.micro_batches, model.num_passes(config.max_loops)),
        working=activations.working,
        host=activations.host(layout.micro_batches, model.num_passes(config.max_loops)),
        evaluation=activations.evaluation(layout.micro_batches) if validation.every or validation.tasks_every else 0,
        sending=2 * BYTES["bf16"] * held if are_sent else 0,
    )
