"""Time and traffic of a training step on GPUs, from a plan; `slurm/README.md` states the formulas.

    step = M · busy + (P-1) · mean visit + what is not hidden of the gradients' traffic + optimizer

`busy` is the work of the busiest stage on one micro-batch: its applications of layers, forward, backward and again
where recomputed, with their tensor-parallel collectives, head and loss on the last stage, and the addition of each
backward pass's weight gradients to the fp32 buffers, and with a teacher (`train.teacher`) its pass forward, what the
divergence does with the logits of both, and the model's head once more. A visit is one loop of one micro-batch on one
stage. The mean loop count of a run stands for that of a step.

Not counted: data, logging, evaluations and checkpoints between steps; clocks that sink under load other than in the
fitted shares of `pretrain/plan/machine.py`; waiting for the slowest of many ranks.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

from pretrain.config.run import BYTES, RunConfig
from pretrain.model.config import KEEPS_LAYERS
from pretrain.model.loop.recurrence import Recurrence, Stage
from pretrain.model.weights import aliases, layer_weights, loop_design
from pretrain.optim.optimizers import is_sharded
from pretrain.plan.buckets import num_buckets
from pretrain.plan.machine import COMPILED, EAGER, MEASURED, Gpu, Sending, Software
from pretrain.plan.plan import Plan

STATES, HEADS, FFN = 10, 3, {"swiglu": 4, "gelu": 2}
"""Times that a layer's states, heads and feed-forward widths cross memory going forward, where kernels are fused; twice
as often backward."""
SCRATCH_OF_LOSS = 5
"""Times that logits cross memory in fp32, forward and backward."""


class Amounts:
    """A dataclass of amounts, which add up and multiply field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __mul__(self, factor: float) -> Self:
        return type(self)(**{name: factor * value for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Times(Amounts):
    """Seconds of something, by what they go into."""

    matrices: float = 0.0
    """Matrix products, attention's aside."""
    attention: float = 0.0
    memory: float = 0.0
    """What crosses a card's memory beside products: norms, activations, logits, sums of gradients."""
    launches: float = 0.0
    """Kernels so small that starting them takes longer."""
    tensor: float = 0.0
    """Tensor-parallel collectives that are not hidden; so below."""
    ring: float = 0.0
    gradients: float = 0.0
    """Reduction of gradients and gathering of weights."""
    optimizer: float = 0.0
    idle: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    @property
    def largest(self) -> str:
        """What most of the time beside matrix products goes into, or these, where they have three quarters."""
        if self.matrices >= 0.75 * self.total:
            return "matrices"
        return max((field.name for field in fields(self)[1:]), key=lambda name: getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Traffic(Amounts):
    """Bytes that a rank sends in a step, by the way they take, and how many of them are hidden."""

    link: float = 0.0
    network: float = 0.0
    hidden: float = 0.0
    seconds: float = 0.0
    """That the wires are busy."""

    @property
    def total(self) -> float:
        return self.link + self.network

    @property
    def waited(self) -> float:
        """Seconds of it that are not hidden."""
        return self.seconds * (1 - self.hidden / self.total) if self.total else 0.0


@dataclass(frozen=True, kw_only=True)
class PlannedCost:
    """What a step costs."""

    times: Times
    """Of a rank of the busiest stage."""
    traffic: Traffic
    """Of the same rank."""
    flops: float
    """Of all ranks, what the model asks for, without recomputation."""
    seconds: float
    mfu: float
    """`flops` over what the cards could have done."""


def software_of(config: RunConfig, gpu: Gpu) -> Software:
    """What this project's code reaches under a configuration."""
    if gpu.pieces is not None:
        return MEASURED
    return EAGER if config.train.compile is False else COMPILED


def step_cost(plan: Plan, gpu: Gpu, software: Software) -> PlannedCost:
    """The cost of a step of a plan."""
    stages = [
        StageWork(plan=plan, gpu=gpu, software=software, stage=Stage(index=index, count=len(plan.stages)))
        for index in range(len(plan.stages))
    ]
    works = [stage.micro_batch for stage in stages]
    busiest = max(range(len(works)), key=lambda index: works[index][0].total)
    (times, traffic), micro_batches = works[busiest], plan.layout.micro_batches
    visits = plan.config.model.num_passes(1) if plan.config.model.num_blocks > 1 else plan.mean_loops
    mean_visit = sum(work.total for work, _ in works) / len(works) / visits
    of_data, of_update = stages[busiest].gradients, stages[busiest].optimizer
    times = times * micro_batches + Times(idle=(len(works) - 1) * mean_visit, optimizer=of_update)
    times += Times(gradients=of_data.waited)
    flops = plan.train_flops_per_token * plan.tokens_per_step
    return PlannedCost(
        times=times,
        traffic=traffic * micro_batches + of_data,
        flops=flops,
        seconds=times.total,
        mfu=flops / (times.total * plan.layout.world_size * gpu.peak_flops),
    )


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """The work of a rank of one stage."""

    plan: Plan
    gpu: Gpu
    software: Software
    stage: Stage

    @property
    def _config(self) -> RunConfig:
        return self.plan.config

    @property
    def _tokens(self) -> int:
        return self._config.train.micro_batch * self._config.train.seq_len

    @property
    def _size(self) -> int:
        return BYTES[self._config.train.precision]

    def _product(self, rows: float, inner: float, columns: float) -> float:
        """Seconds of a matrix product: its FLOPs at the rate of a large one, and its operands' way from memory."""
        crossing = self._size * (rows * inner + inner * columns + rows * columns)
        reached = self.software.matrices * self.gpu.peak_flops
        return 2 * rows * inner * columns / reached + crossing / self.gpu.memory_rate

    def _crossing(self, numbers: float, size: float | None = None) -> float:
        """Seconds that so many numbers take to cross memory."""
        return numbers * (self._size if size is None else size) / self.gpu.memory_rate

    def _collective(
        self, way: Sending, size: float, ranks: int, stride: int, hidden: float, number: int | None = None
    ) -> Traffic:
        """A ring over `ranks` that are `stride` apart, once round with `size` bytes, in numbers of `number` bytes: a
        reduce-scatter or an all-gather; twice for a sum. The ranks of a node share its ports, so each sends 1/(ranks in
        the node) of it over the network."""
        if ranks == 1:
            return Traffic()
        sent = (2 if way == "sum" else 1) * size * (ranks - 1) / ranks
        near = max(1, min(ranks, self.gpu.per_node // stride))
        link, network = (sent * (near - 1) / near, sent / near) if near < ranks else (sent, 0.0)
        rates = self.software.links
        seconds = max(
            sent / (rates * self.gpu.link_rate) if near > 1 else 0.0, network / (rates * self.gpu.network_rate)
        )
        if self.gpu.pieces is not None:
            seconds = self.gpu.pieces.sending(way, size, number or self._size, ranks)
        return Traffic(link=link, network=network, hidden=hidden * sent, seconds=seconds)

    @property
    def _layer(self) -> tuple[Times, Times]:
        """One application of a layer, forward and backward, without collectives."""
        if self.gpu.pieces is not None:
            ahead, back = self.gpu.pieces.layer(self._config)
            return Times(matrices=ahead), Times(matrices=back)
        model, tensor, tokens = self._config.model, self._config.parallel.tensor, self._tokens
        shapes = [weight.held_shape(tensor) for weight in layer_weights(model).values() if len(weight.shape) == 2]
        products = sum(self._product(tokens, inner, columns) for columns, inner in shapes)
        heads = model.num_attention_heads * model.head_dim / tensor
        attended = 2 * tokens * self._config.train.seq_len * heads / self.gpu.peak_flops
        norms = 2 if model.norm_place in ("both", "around") else 1
        in_sequence = tensor if self._config.parallel.sequence else 1
        width = (STATES + 4 * (norms - 1)) * model.hidden_size / in_sequence
        width += HEADS * heads + FFN[model.activation] * model.ffn_size / tensor
        crossing = self.software.passes * self._crossing(tokens * width)
        ahead, back = attended / self.software.attention_forward, 2.5 * attended / self.software.attention_backward
        return (
            self._at_least(Times(matrices=products, attention=ahead, memory=crossing), 1),
            self._at_least(Times(matrices=2 * products, attention=back, memory=2 * crossing), 2),
        )

    def _at_least(self, times: Times, ways: int) -> Times:
        """With what the kernels of a layer take at least."""
        least = ways * self.software.kernels * self.software.launch
        return times + Times(launches=max(0.0, least - times.total))

    @property
    def _tensor(self) -> Traffic:
        """The collectives of one application of a layer in one direction: two sums, under sequence parallelism each a
        gathering and a scattering."""
        parallel, size = self._config.parallel, self._tokens * self._config.model.hidden_size * self._size
        ways: tuple[Sending, ...] = ("gather", "scatter") if parallel.sequence else ("sum",)
        each = [self._collective(way, size, parallel.tensor, 1, self.software.hidden_tensor) for way in ways]
        return sum(each, Traffic()) * 2

    @property
    def _head(self) -> Times:
        """Final norm, head and loss of a micro-batch, forward and backward."""
        if self.gpu.pieces is not None:
            return Times(matrices=self.gpu.pieces.head(self._config))
        model, tensor = self._config.model, self._config.parallel.tensor
        columns = model.vocab_size / tensor
        products = 3 * self._product(self._tokens, model.hidden_size, columns)
        logits = self._crossing(SCRATCH_OF_LOSS * self._tokens * columns, max(4, self._size))
        return Times(matrices=products, memory=logits)

    @property
    def _teaching(self) -> Times:
        """The divergence from a teacher for a micro-batch: its pass without gradients, as deep as it was trained, and
        the model's head a second time."""
        if self.plan.teacher is None:
            return Times()
        model = self.plan.teacher.model
        frozen = replace(self, plan=replace(self.plan, config=self._config.model_copy(update={"model": model})))
        ahead, _ = frozen._layer
        products = self._product(self._tokens, model.hidden_size, model.vocab_size)
        extra = self._tokens * loop_design(model).flops(model.num_passes())
        products += extra / (self.software.matrices * self.gpu.peak_flops)
        logits = self._crossing(SCRATCH_OF_LOSS * self._tokens * model.vocab_size, max(4, self._size))
        return ahead * model.effective_depth() + Times(matrices=products, memory=logits) + self._head

    @property
    def micro_batch(self) -> tuple[Times, Traffic]:
        """One micro-batch through all loops of the stage, forward and backward."""
        model, train, plan = self._config.model, self._config.train, self.plan
        held = Recurrence(config=model, stage=self.stage)
        loops = float(model.num_blocks) if model.num_blocks > 1 else plan.mean_loops
        outputs = {"last": 1.0, "two": min(2.0, loops), "every": loops}[train.loop_loss.outputs]
        heads = outputs if self.stage.is_last else 0.0
        outside = held.num_prelude_layers + held.num_coda_layers * max(1.0, heads)
        looped = held.num_pass_layers * loops
        backward = held.num_pass_layers * min(loops, train.backprop_loops or loops)
        layers = backward + outside
        by_mode = {"none": 0.0, "selective": 0.0, "loop": backward, "segment": backward + layers}
        again = by_mode.get(train.chosen_recompute, layers)
        spared = {"none": 0.0, "selective": 0.0, "loop": min(loops, backward)}.get(train.chosen_recompute, layers)
        ahead, back = self._layer
        forwards, backwards = outside + looped + again, outside + backward
        times = ahead * forwards + back * backwards + self._head * heads
        times += Times(memory=self._sums_of_gradients(loops)) + self._teaching
        times += Times(matrices=-spared * self._last_product)
        if train.chosen_recompute == "selective" and self.gpu.pieces is None:
            times += Times(memory=(backward + outside) * self._activation)
        if self.stage.is_first and self.gpu.pieces is not None:
            times += Times(memory=self.gpu.pieces.embedding(self._config))
        if self.stage.is_first:
            extra = 3 * self._tokens * loop_design(model).flops(round(loops)) / self._config.parallel.tensor
            times += Times(matrices=extra / (self.software.matrices * self.gpu.peak_flops))
        tensor = self._tensor * (forwards + backwards + self.stage.is_first / 4 + heads / 4)
        ring = self._ring * (2 * loops)
        times += Times(
            tensor=(1 - self.software.hidden_tensor) * tensor.seconds,
            ring=(1 - self.software.hidden_ring) * ring.seconds,
        )
        return times, tensor + ring

    def _sums_of_gradients(self, loops: float) -> float:
        """Seconds in which the weight gradients of each backward pass, once a loop, join the fp32 buffers."""
        train, stage = self._config.train, self.plan.stages[self.stage.index]
        times = min(loops, train.backprop_loops or loops) if self._config.model.num_blocks == 1 else 1.0
        if self.gpu.pieces is not None:
            return times * stage.parameters / self._config.parallel.tensor * self.gpu.pieces.addition(self._config)
        wide = max(4, self._size)
        return self._crossing(times * stage.parameters / self._config.parallel.tensor, self._size + 2 * wide)

    @property
    def _last_product(self) -> float:
        """Seconds of the last product of a layer, with which what is computed again does not go on."""
        model, tensor = self._config.model, self._config.parallel.tensor
        return self._product(self._tokens, model.ffn_size / tensor, model.hidden_size)

    @property
    def _activation(self) -> float:
        """Seconds in which the activation of one feed-forward is computed again: what enters is read, what comes out is
        written."""
        width = {"swiglu": 3, "gelu": 2}[self._config.model.activation] * self._config.model.ffn_size
        return self.software.passes * self._crossing(self._tokens * width / self._config.parallel.tensor)

    @property
    def _ring(self) -> Traffic:
        """A message to the next stage."""
        if self.stage.count == 1:
            return Traffic()
        parallel, model = self._config.parallel, self._config.model
        size = self._tokens * model.hidden_size * loop_design(model).residual.num_streams * self._size
        size /= parallel.tensor if parallel.sequence else 1
        apart = parallel.tensor * self.plan.layout.data_parallel
        is_near = apart * (self.stage.count - 1) < self.gpu.per_node
        interleaved = self.plan.mean_loops > 1 or model.num_blocks > 1
        hidden = self.software.hidden_ring if interleaved else 0.0
        rate = self.software.links * (self.gpu.link_rate if is_near else self.gpu.network_rate)
        link, network = (size, 0.0) if is_near else (0.0, size)
        seconds = size / rate
        if self.gpu.pieces is not None:
            seconds = self.gpu.pieces.sending("message", size, self._size, 2)
        return Traffic(link=link, network=network, hidden=hidden * size, seconds=seconds)

    @property
    def gradients(self) -> Traffic:
        """Once a step: fp32 gradients, or half of that in bf16, over the data-parallel ranks, and weights from the
        shares of a sharded optimizer; a tied embedding's gradients over first and last stage."""
        config, ranks, tensor = self._config, self.plan.layout.data_parallel, self._config.parallel.tensor
        stage, hidden = self.plan.stages[self.stage.index], self.software.hidden_data
        shards = is_sharded(config.optimizer, config.train.precision)
        wide = max(4, self._size)
        sent = 2 if config.parallel.reduce_precision == "bf16" else wide
        reduced = self._collective("scatter", sent / wide * stage.gradients, ranks, tensor, hidden, sent)
        if reduced.seconds and config.parallel.overlap:
            reduced = replace(reduced, hidden=reduced.total * max(hidden, self._overlapped(reduced.seconds)))
        gathered = self._collective("gather", stage.weights if shards else stage.gradients, ranks, tensor, hidden)
        if gathered.seconds and config.parallel.overlap and shards:
            gathered = replace(gathered, hidden=gathered.total * max(hidden, self._gathered(gathered.seconds)))
        traffic = reduced + gathered
        if self.stage.count > 1 and aliases(config.model) and (self.stage.is_first or self.stage.is_last):
            size = wide * config.model.vocab_size * config.model.hidden_size / tensor
            traffic += self._collective("sum", size, 2, ranks * tensor * (self.stage.count - 1), 0.0, wide)
        return traffic

    def _overlapped(self, seconds: float) -> float:
        """Share of the reduction of gradients, which takes so long, that `parallel.overlap` hides: those of a layer are
        sent from its last backward pass of the step on, or with the others of their bucket, so behind that of the
        layers below, and the last behind nothing. The loop regulariser's come later, and a block that waits for them
        hides nothing."""
        train = self._config.train
        if self._config.model.loop_regulariser.weight:
            return 0.0
        ahead, back = self._layer
        last_pass = back.total + (ahead.total if train.chosen_recompute not in KEEPS_LAYERS else 0.0)
        return self._behind(last_pass, seconds)

    def _gathered(self, seconds: float) -> float:
        """Share of the gathering of weights, which takes so long, that `parallel.overlap` hides: those of a layer, or
        of its bucket, come while the layers below make the next step's first pass, and the first behind nothing."""
        ahead, _ = self._layer
        return self._behind(ahead.total, seconds)

    def _behind(self, of_layer: float, seconds: float) -> float:
        """Share of so many seconds of sending that are hidden behind a pass, which takes `of_layer` for each layer. On
        CPUs sending is work of the same cores."""
        if self.gpu.pieces is not None:
            return 0.0
        held = Recurrence(config=self._config.model, stage=self.stage)
        layers = held.num_prelude_layers + held.num_pass_layers + held.num_coda_layers
        elements = self.plan.stages[self.stage.index].weights / self._size
        parts = min(layers, num_buckets(elements, self.plan.layout.data_parallel))
        return (1 - 1 / parts) * min(1.0, layers * of_layer / seconds)

    @property
    def optimizer(self) -> float:
        """Seconds in which gradients are set to zero and normed, and weights and states of the optimizer read and
        written."""
        stage, ranks = self.plan.stages[self.stage.index], self.plan.layout.data_parallel
        if self.gpu.pieces is not None:
            sharded = is_sharded(self._config.optimizer, self._config.train.precision)
            share = self._config.parallel.tensor * ranks if sharded else 1
            return stage.parameters / share * self.gpu.pieces.update(self._config)
        seconds = (3 * stage.gradients + 2 * stage.optimizer + stage.weights / ranks) / self.gpu.memory_rate
        if self._config.optimizer.name != "muon":
            return seconds
        weights = [weight.shape for weight in layer_weights(self._config.model).values() if len(weight.shape) == 2]
        layers = stage.parameters / max(1, sum(rows * columns for rows, columns in weights))
        # five Newton-Schulz steps on whole matrices of m <= n: 4m²n + 2m³ each, on every rank
        flops = 5 * sum(4 * min(shape) ** 2 * max(shape) + 2 * min(shape) ** 3 for shape in weights)
        return seconds + layers * flops / (self.software.matrices * self.gpu.peak_flops)
