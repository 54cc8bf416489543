"""The dry run: what a configuration costs on a number of ranks, computed without a process group, a GPU or torch.

Memory of one rank, in bytes a parameter (p: 2 bf16, 4 fp32, 8 fp64; w = max(p, 4)):

    weights p, gradients w (one buffer over micro-batches and loops)
    a sharded optimizer: its states (AdamW: two moments) of 4 and, for bf16, fp32 weights of 4, divided by the
    data-parallel size
    one that is not, over whole matrices: weights w, a copy of the gradients w, its states (Adafactor: rows + columns)

Activations are what autograd keeps of the chunks in flight (`Activations`), each a share of one micro-batch; working
space is what the backward pass adds at its worst: the loss, or the gradients of a layer and what it recomputes. How
much is in flight at a time follows from the timetable (`pretrain/plan/pipeline.py`). Not counted: statistics of one
number a token, communication buffers, document masks, attention's scratch space on a CPU (some MiB), the loop
regulariser (it works when no activations are held), the framework's own memory, fragmentation.
torch.compile may keep less.
"""

import math
from dataclasses import dataclass

from pretrain.config.layout import Layout, check_layout
from pretrain.config.run import RunConfig
from pretrain.model.count import (
    LOSS_BLOCK_TOKENS,
    ParameterCount,
    count,
    count_parameters,
    head_flops,
    layer_flops,
    train_flops_per_token,
)
from pretrain.model.loop.recurrence import Recurrence, Stage
from pretrain.model.weights import stage_weights
from pretrain.optim.loop_count import mean_loops
from pretrain.optim.optimizers import is_sharded, optimizer_kind
from pretrain.plan.pipeline import peak_in_flight

BYTES = {"fp64": 8, "fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of the tensors that one rank's autograd keeps, chunk by chunk, for one micro-batch.

    A layer keeps the input and output of both norms, queries, keys, values and the mixed values, and in the
    feed-forward what its products and its activation need: 4 tensors of its width for SwiGLU (gate, silu(gate), up,
    their product), 2 for GELU. Tensors behind split weights are divided by the tensor-parallel size; residuals only
    under sequence parallelism.
    """

    config: RunConfig

    @property
    def _tokens(self) -> int:
        return self.config.train.micro_batch * self.config.train.seq_len

    @property
    def _size(self) -> int:
        return BYTES[self.config.train.precision]

    @property
    def state(self) -> float:
        """One residual state, [tokens held, width]."""
        split = self.config.parallel.tensor if self.config.parallel.sequence else 1
        return self._tokens * self.config.model.hidden_size * self._size / split

    @property
    def _whole_state(self) -> int:
        """A state behind a norm: gathered before split weights meet it."""
        return self._tokens * self.config.model.hidden_size * self._size

    @property
    def layer(self) -> float:
        """One layer without recomputation."""
        model = self.config.model
        attention = 2 * (model.num_attention_heads + model.kv_heads) * model.head_dim
        ffn = {"swiglu": 4, "gelu": 2}[model.activation] * model.ffn_size
        return (
            2 * (self.state + self._whole_state)
            + self._tokens * (attention + ffn) * self._size / self.config.parallel.tensor
        )

    @property
    def head(self) -> float:
        """Final norm, head and loss. A whole head keeps the gradients of its input and weight, a split one input and
        logits."""
        model, wide = self.config.model, max(4, self._size)
        kept = model.hidden_size if self.config.parallel.tensor == 1 else self._tokens / self.config.parallel.tensor
        return self.state + self._whole_state + model.vocab_size * kept * wide

    @property
    def _loss_working(self) -> float:
        """What the loss adds at its worst: a whole head a block of logits and its share of the weight's gradient, a
        split one logits."""
        model, wide = self.config.model, max(4, self._size)
        logits = self._tokens * model.vocab_size
        if self.config.parallel.tensor > 1:
            return 4 * logits * wide / self.config.parallel.tensor
        narrow = self._size if self._size < wide else 0  # a second copy in the type of the weights
        return model.vocab_size * (min(self._tokens, LOSS_BLOCK_TOKENS) + model.hidden_size) * (wide + narrow)

    @property
    def _tail(self) -> float:
        """What follows the loop on the last stage."""
        layer = self.state if self.config.train.recompute == "layer" else self.layer
        return self.config.model.num_coda_layers * layer + self.head

    def chunk(self, stage: int, index: int, num_passes: int) -> float:
        """Chunk `index` of `num_passes` on a stage: its part of the loop, with prelude, or coda, norm and logits, if
        they are there."""
        config, num_stages = self.config, self.config.parallel.pipeline
        num_looped, recompute = config.model.pass_layers // num_stages, config.train.recompute
        kept = {"none": num_looped * self.layer, "loop": self.state, "layer": num_looped * self.state}[recompute]
        if stage == 0 and index == 0:
            kept += config.model.num_prelude_layers * (self.state if recompute == "layer" else self.layer)
        if stage == num_stages - 1 and index == num_passes - 1:
            return kept + self._tail
        return kept + (self.state if num_stages > 1 else 0)  # the output, held until its gradient comes back

    def peak(self, stage: int, num_micro_batches: int, num_passes: int) -> float:
        """The most that is in flight on a stage at one time."""
        chunks = [self.chunk(stage, index, num_passes) for index in range(num_passes)]
        if self.config.parallel.pipeline == 1:
            return sum(chunks)
        return peak_in_flight(chunks, stage, self.config.parallel.pipeline, num_micro_batches)

    def working(self, stage: int) -> float:
        """What the backward pass needs on top: that of the loss; later one recomputed unit and the gradients inside a
        feed-forward.

        By the time the last stage comes to its first unit, what follows that unit has gone.
        """
        config, num_stages = self.config, self.config.parallel.pipeline
        num_layers = {"none": 0, "loop": config.model.pass_layers // num_stages, "layer": 1}[config.train.recompute]
        num_gradients = {"swiglu": 2, "gelu": 1}[config.model.activation]
        gradients = num_gradients * self._tokens * config.model.ffn_size * self._size / config.parallel.tensor
        unit = num_layers * self.layer + gradients
        if stage < num_stages - 1:
            return unit
        return max(unit - (self._tail if config.train.recompute == "loop" else self.head), self._loss_working)


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
    activations: float
    working: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will cost, see `make_plan`. Memory is for the largest loop count that training can draw."""

    config: RunConfig
    layout: Layout
    parameters: ParameterCount
    stages: tuple[StagePlan, ...]
    mean_loops: float
    """Mean loop count of a step (for poisson_lognormal before the draws are cut to their range)."""

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
        """FLOPs of training on one token at the mean loop count, without recomputation."""
        model, seq_len = self.config.model, self.config.train.seq_len
        once, twice = (train_flops_per_token(model, seq_len, loops) for loops in (1, 2))
        return once + (self.mean_loops - 1) * (twice - once)

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.global_batch * self.config.train.seq_len


def make_plan(config: RunConfig, world_size: int) -> Plan:
    """Plan a run.

    Args:
        config: the run configuration.
        world_size: ranks in all.

    Raises:
        ValueError: the configuration does not fit on so many ranks.
    """
    layout = check_layout(config, world_size)
    return Plan(
        config=config,
        layout=layout,
        parameters=count_parameters(config.model, config.train.seq_len),
        stages=tuple(_plan_stage(config, layout, index) for index in range(config.parallel.pipeline)),
        mean_loops=mean_loops(config.model, config.train.loop_sampling),
    )


def _plan_stage(config: RunConfig, layout: Layout, index: int) -> StagePlan:
    model, train, parallel = config.model, config.train, config.parallel
    stage = Stage(index=index, count=parallel.pipeline)
    weights = stage_weights(model, train.seq_len, stage).values()
    held = count(weights, parallel.tensor)
    size = BYTES[train.precision]
    wide = max(4, size)
    states_of = optimizer_kind(config.optimizer).states
    if is_sharded(config.optimizer, train.precision):
        states = sum(math.prod(shape) for w in weights for shape in states_of(w.held_shape(parallel.tensor)).values())
        optimizer = wide * (states + held * (size < wide)) / layout.data_parallel
    else:
        states = sum(math.prod(shape) for w in weights for shape in states_of(w.shape).values())
        optimizer = wide * (2 * count(weights) + states)
    activations = Activations(config=config)
    work = Recurrence(config=model, stage=stage).num_applications() * layer_flops(model, train.seq_len)
    return StagePlan(
        parameters=count(weights),
        forward_flops=work + (head_flops(model) if stage.is_last else 0),
        weights=held * size,
        gradients=held * wide,
        optimizer=optimizer,
        activations=activations.peak(index, layout.micro_batches, model.num_passes(config.max_loops)),
        working=activations.working(index),
    )
