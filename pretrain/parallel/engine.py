"""The engine: how one optimizer step is executed on any product of tensor, pipeline and data parallelism.

A step:
1. count the supervised tokens of the global batch (one number over all ranks);
2. run the micro-batches round the ring, forward and backward (`ring.py`);
3. add the gradient of the loop regulariser, which needs no data;
4. sum gradients: of replicated weights under sequence parallelism over the tensor ranks, of a tied head over first and
   last stage, then of everything over the data-parallel ranks;
5. agree, in one small all-reduce, on loss, gradient norm, finiteness and stop requests; skip the update if anything is
   not finite;
6. clip and update.

CPU with gloo and GPU with NCCL run the same code; one process is a world of one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint.format import Piece
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.config.run import RunConfig
from pretrain.data.stream.batch import Inputs, make_inputs
from pretrain.data.stream.labels import IGNORED
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.model.hashed_numbers import noise_salt, row_keys
from pretrain.model.initialise import initialise
from pretrain.model.loop_loss import LoopObjective, ShortRun
from pretrain.model.loss import loss_sums
from pretrain.model.regulariser import regularisation
from pretrain.optim.optimizers import is_sharded
from pretrain.parallel.compilation import choose_compilation
from pretrain.parallel.depths import Batch, DepthRing, OnLoop
from pretrain.parallel.gradients import partial_causes
from pretrain.parallel.groups import Groups
from pretrain.parallel.optimizer import ParallelOptimizer, ReplicatedOptimizer, ShardedOptimizer, main_grad
from pretrain.parallel.replicas import require_equal_replicas
from pretrain.parallel.ring import Ring
from pretrain.parallel.room import room_of_ranks
from pretrain.parallel.stage import build_stage, megatron_config
from pretrain.parallel.stop_vote import StopVote, sum_over_ranks
from pretrain.parallel.teacher import Teacher
from pretrain.plan.policy import choose_recompute


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Losses of rows at several loop counts, summed over the rows of all ranks; those of disjoint rows add up."""

    sums: list[float]
    """Negative log-likelihood in nats, for each loop count."""
    num_supervised: int
    """Tokens that it is of."""
    squares: list[float]
    """Sum over sequences of the square of each one's loss."""
    products: list[float]
    """Sum over sequences of the loss times the number of tokens."""
    size_squares: float
    """Sum over sequences of the square of the number of tokens."""
    num_parts: int
    """Sequences with a supervised token."""

    def __add__(self, other: "LossSums") -> "LossSums":
        def added(ours: list[float], theirs: list[float]) -> list[float]:
            return [mine + its for mine, its in zip(ours, theirs, strict=True)]

        return LossSums(
            sums=added(self.sums, other.sums), num_supervised=self.num_supervised + other.num_supervised,
            squares=added(self.squares, other.squares), products=added(self.products, other.products),
            size_squares=self.size_squares + other.size_squares, num_parts=self.num_parts + other.num_parts,
        )  # fmt: skip

    def means(self) -> list[tuple[float, float | None]]:
        """For each loop count the loss per token and its standard error, that of a ratio of sums over sequences
        (Cochran 1977, section 6.4), which takes the sequences, not their tokens, as independent; None of fewer than
        two. No rank or micro-batch shows in it."""
        tokens, parts, found = max(self.num_supervised, 1), self.num_parts, []
        for total, squares, products in zip(self.sums, self.squares, self.products, strict=True):
            mean, error = total / tokens, None
            if parts > 1 and math.isfinite(total):
                rest = max(squares - 2 * mean * products + mean**2 * self.size_squares, 0.0)
                error = math.sqrt(parts / (parts - 1) * rest) / tokens
            found.append((mean, error))
        return found


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did, agreed by all ranks."""

    loss: float
    """Negative log-likelihood per supervised token of the global batch after the last loop, in nats."""
    regularisation: float
    """What the loop regulariser added to the loss."""
    grad_norm: float
    """Before clipping; a shared weight counts once."""
    skipped: bool
    """Loss or gradient was not finite: no update was made."""
    objective: float | None = None
    """What was minimised, per supervised token in nats, where it is more than the loss of the last loop."""


class Engine:
    """A model on its ranks, with its optimizer.

    Args:
        config: the run configuration; only its model, parallel, train, optimizer, ranks sections and the seed are used.
            Attribute `config` is it with what train.recompute=auto stands for here; `notes` say why, and whether layers
            are compiled.
        groups: the process groups of this rank.
        separators: what tells documents apart.
        drawn: whether the weights are drawn; not if `load` fills them.
    """

    def __init__(self, config: RunConfig, groups: Groups, separators: Separators, *, drawn: bool = True) -> None:
        self.groups, self.separators, self.dtype = groups, separators, DTYPES[config.train.precision]
        self.teacher = None if config.train.teacher.run is None else Teacher(config, groups.device, self.dtype)
        self.config, self.notes = config, list[str]()
        if config.train.recompute == "auto":
            saved, room = None if self.teacher is None else self.teacher.saved, room_of_ranks(config, groups)
            choice = choose_recompute(config, dist.get_world_size(), saved, room)
            self.config = config = choice.plan.config
            self.notes.append(f"recompute: {choice.text}")
        if config.train.deterministic:
            torch.use_deterministic_algorithms(True)
        model, train = config.model, config.train
        self.megatron = megatron_config(model, config.parallel, self.dtype, deterministic=train.deterministic)
        self._model = build_stage(model, train.seq_len, self.megatron, groups, train.chosen_recompute)
        if drawn:  # seconds for each billion of weights, before the first word of a resumed run
            initialise(self._model, config.run.seed, groups.tensor.rank())
        self._model.to(groups.device, self.dtype)
        compilation = choose_compilation(train.compile, groups.device.type)
        if compilation.is_on:
            self._model.compile_layers()
        self.notes += [compilation.text] if compilation.text else []
        kind = ShardedOptimizer if is_sharded(config.optimizer, config.train.precision) else ReplicatedOptimizer
        self.optimizer: ParallelOptimizer = kind(self._model, self.megatron, config.optimizer, groups, config.parallel)
        self.ring = Ring(self._model, self.megatron, groups, self.optimizer.overlapped)
        self.depths = DepthRing(self._model, groups, sequence_parallel=config.parallel.sequence)
        self.num_updates = 0

    @property
    def model(self) -> LoopedGPT:
        """This rank's stage, with all its weights there."""
        self.optimizer.ddp.await_weights()
        return self._model

    def train_step(
        self,
        rows: Tensor,
        num_loops: int | Sequence[int],
        lr: float,
        vote: StopVote | None = None,
        *,
        backprop_loops: int | None = None,
        regulariser_share: float = 1.0,
        short_loops: int = 1,
    ) -> StepResult:
        """One optimizer step; the same result on every rank.

        Args:
            rows: [n, 2, s] tokens and labels of this data-parallel rank, n = micro-batches · train.micro_batch.
            num_loops: L of this step, the same on all ranks, or of each row.
            lr: learning rate of this step.
            vote: held when the gradients are there, so that a signal during the step counts.
            backprop_loops: gradients flow through the last so many loops; through all by default.
            regulariser_share: of the weight of the loop regulariser.
            short_loops: loops after which a consistent loss looks, besides the last.

        Raises:
            ReplicaError: the weights that the gradients are of are not the same on all replicas; there was no update.
        """
        self.groups.phase.enter("forward and backward")
        micro_batches, num_loops = self._with_loops(rows, num_loops)
        micro_batches = [self._with_noise(inputs) for inputs in micro_batches]
        wide = torch.promote_types(self.dtype, torch.float32)
        num_supervised = self._num_supervised(micro_batches).clamp_min(1).to(wide)
        self.groups.phase.work.compute()
        self.optimizer.zero_grad()
        nll, value = self.ring.run(
            micro_batches, num_loops, num_supervised=num_supervised, z_loss_weight=self.config.train.z_loss_weight,
            objective=self._objective(num_loops, num_supervised, short_loops), backprop_loops=backprop_loops,
            teacher=self.teacher,
        )  # fmt: skip
        regularisation = self._add_regularisation(regulariser_share)
        self.groups.phase.enter("reduction")
        self._sum_partial_gradients()
        self.optimizer.reduce_gradients()
        zero = torch.zeros((), dtype=torch.float64, device=self.groups.device)
        owns_weights = self.groups.data.rank() == self.groups.tensor.rank() == 0
        parts = [nll if self._owns_loss else zero, regularisation if owns_weights else zero]
        parts += [self.optimizer.squared_norm(), *([] if value is None else [value if self._owns_loss else zero])]
        loss, regularisation, squared_norm, *values = self._sum(parts, vote)
        grad_norm = squared_norm**0.5 if squared_norm >= 0 else float("nan")
        skipped = not all(map(math.isfinite, (loss, regularisation, grad_norm, *values)))
        self.groups.phase.enter("update")
        every = self.config.ranks.check_weights_every
        if every and (self.num_updates + 1) % every == 0:
            self.check_weights()
        if not skipped:
            clip = self.config.optimizer.clip_grad_norm
            self.optimizer.step(lr, clip / grad_norm if clip and grad_norm > clip else 1.0)
            self.num_updates += 1
        return StepResult(
            loss=loss, regularisation=regularisation, grad_norm=grad_norm, skipped=skipped,
            objective=values[0] if values else None,
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(
        self, rows: Tensor, loops: Sequence[int], vote: StopVote | None = None, on_loop: OnLoop | None = None
    ) -> LossSums:
        """Score rows at several loop counts, without training.

        Args:
            rows: [n, 2, s] tokens and labels of this data-parallel rank, n as in `train_step`.
            loops: loop counts, all different.
            vote: held at the end.
            on_loop: sees the states of the micro-batches of `split_rows` after every pass, on the last stage.

        Returns:
            Losses of the rows of all ranks, for each loop count.
        """
        micro_batches = self.split_rows(rows)
        num_supervised = int(self._num_supervised(micro_batches).item())
        losses = torch.zeros(len(loops), len(micro_batches), dtype=torch.float64, device=self.groups.device)
        sizes = torch.cat([(inputs.labels != IGNORED).sum(1) for inputs in micro_batches]).double()
        of_sequences = losses.new_zeros(len(loops), len(sizes))
        first_rows = list(accumulate((len(inputs.labels) for inputs in micro_batches), initial=0))

        def add_losses(number: int, num_loops: int, states: Tensor) -> None:
            labels, place = micro_batches[number].labels, loops.index(num_loops)
            of_tokens = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device)
            losses[place, number] += loss_sums(self.model, states, labels, of_tokens=of_tokens)[1]
            of_sequences[place, first_rows[number] : first_rows[number + 1]] = of_tokens.sum(1)

        batches = [Batch(tokens=i.tokens, positions=i.positions, documents=i.documents) for i in micro_batches]
        self.depths.run(batches, loops, add_losses, on_loop)
        sums = torch.zeros(len(loops), dtype=torch.float64, device=self.groups.device)
        for number in range(len(micro_batches)):  # in their order, whatever sum() may do
            sums += losses[:, number]
        products, num_parts = of_sequences @ sizes, sizes.sign().sum()
        scatter = [of_sequences.square().sum(1), products, sizes.square().sum()[None], num_parts[None]]
        own = torch.cat((sums, *scatter))
        if not self._owns_loss:
            own.zero_()
        values, count = self._sum(list(own), vote), len(loops)
        return LossSums(
            sums=values[:count], num_supervised=num_supervised, squares=values[count : 2 * count],
            products=values[2 * count : 3 * count], size_squares=values[-2], num_parts=int(values[-1]),
        )  # fmt: skip

    def split_rows(self, rows: Tensor) -> list[Inputs]:
        """Rows [n, 2, s] -> inputs of train.micro_batch sequences each, on the device."""
        parts, masks = rows.split(self.config.train.micro_batch), self.config.data.document_mask
        return [make_inputs(part, self.separators.bos_id, masks).to(self.groups.device) for part in parts]

    def _objective(self, num_loops: int, num_supervised: Tensor, short_loops: int) -> LoopObjective | None:
        """What is minimised, where it is not the loss of the last loop alone."""
        train, short = self.config.train, None
        if not train.loop_loss.is_of_every_loop:
            return None
        num_passes = self.config.model.num_passes(num_loops)
        if train.loop_loss.over == "consistent" and num_passes > 1:
            short = ShortRun(
                last_loop=min(short_loops, num_passes - 1) - 1, weight=train.loop_loss.short_weight,
                consistency_weight=train.loop_loss.consistency_weight,
            )  # fmt: skip
        return LoopObjective(
            weights=train.loop_loss.weights_of(num_passes), num_supervised=num_supervised,
            z_loss_weight=train.z_loss_weight, is_expected=train.loop_loss.over == "expected",
            log_prior=train.loop_loss.log_prior(num_passes), prior_weight=train.loop_loss.prior_weight, short=short,
        )  # fmt: skip

    def _with_loops(self, rows: Tensor, num_loops: int | Sequence[int]) -> tuple[list[Inputs], int]:
        """Inputs as of `split_rows`, and the most loops of any row. Rows with counts of their own come in the order of
        these, the most first: those of a micro-batch are as near to each other as can be, and in each pass the rows
        that are not done are the first."""
        if isinstance(num_loops, int):
            return self.split_rows(rows), num_loops
        ranked = sorted(range(len(rows)), key=lambda row: -num_loops[row])
        counts = [num_loops[row] for row in ranked]
        if counts[0] == counts[-1]:
            return self.split_rows(rows), counts[0]
        micro_batches = self.split_rows(rows[ranked])
        ends = list(accumulate(len(inputs.labels) for inputs in micro_batches))
        parts = [tuple(counts[end - len(each.labels) : end]) for end, each in zip(ends, micro_batches, strict=True)]
        return [replace(each, loop_counts=part) for each, part in zip(micro_batches, parts, strict=True)], counts[0]

    def _with_noise(self, inputs: Inputs) -> Inputs:
        """Inputs of training, with keys of their rows where a pass begins with noise: functions of the seed, the step
        and the row's tokens."""
        if not self._model.design.start.draws:
            return inputs
        return replace(inputs, noise_rows=row_keys(inputs.tokens, noise_salt(self.config.run.seed, self.num_updates)))

    def check_weights(self) -> None:
        """Compare what the data-parallel ranks hold alike, unless the configuration says never. Collective.

        Raises:
            ReplicaError: it is not alike; names ranks and tensors.
        """
        if self.config.ranks.check_weights_every:
            require_equal_replicas(self.optimizer.replicated(), self.groups)

    def pieces(self) -> list[Piece]:
        """What this rank saves of weights and optimizer, as views."""
        return self.optimizer.owned_pieces()

    def load(self, reader: CheckpointReader, num_updates: int) -> None:
        """Fill weights and optimizer from a checkpoint of any layout. Collective."""
        reader.load(self.optimizer.all_pieces())
        self.optimizer.finish_loading(num_updates)
        self.num_updates = num_updates

    def load_weights(self, reader: CheckpointReader) -> None:
        """Fill the weights alone, to start from. Collective."""
        reader.load(piece for piece in self.optimizer.all_pieces() if piece.name.startswith("weights/"))
        self.optimizer.finish_loading(0)

    def _num_supervised(self, micro_batches: Sequence[Inputs]) -> Tensor:
        """Supervised tokens of these micro-batches on all data-parallel ranks, int64. Collective.

        Added up over the world, in which those of a replica count alike: between the data-parallel ranks it would wait
        until all weights are back (`weights_back.py`).
        """
        count = torch.stack([(inputs.labels != IGNORED).sum() for inputs in micro_batches]).sum()
        dist.all_reduce(count)
        return count // (self.groups.tensor.size() * self.groups.pipeline.size())

    def _add_regularisation(self, share: float) -> Tensor:
        """Backward of a share of this stage's part of the loop regulariser; each data-parallel rank adds its own."""
        if not self.config.model.loop_regulariser.weight:
            return torch.zeros((), dtype=torch.float64, device=self.groups.device)
        value = share * regularisation(self.model)
        (value / self.groups.data.size()).backward()
        return value.detach()

    def _sum_partial_gradients(self) -> None:
        """Gradients that the data-parallel reduction does not complete."""
        causes, named = partial_causes(self.megatron), dict(self.model.named_parameters())
        partial = [main_grad(named[name]) for name in named if self.model.weights[name].partial_under in causes]
        if partial and self.groups.tensor.size() > 1:
            flat = torch.cat([gradient.flatten() for gradient in partial])
            dist.all_reduce(flat, group=self.groups.tensor)
            for gradient, part in zip(partial, flat.split([gradient.numel() for gradient in partial]), strict=True):
                gradient.copy_(part.view_as(gradient))
        if self.groups.ends is not None:
            for copy, original in self.model.aliases.items():
                dist.all_reduce(main_grad(named[copy if copy in named else original]), group=self.groups.ends)

    @property
    def _owns_loss(self) -> bool:
        """Whether this rank's part of a loss is the one that counts among its tensor and pipeline ranks."""
        return self.groups.is_last_stage and self.groups.tensor.rank() == 0

    def _sum(self, parts: Sequence[Tensor], vote: StopVote | None) -> list[float]:
        """Sum scalars over all ranks, and vote, in one all-reduce."""
        values = torch.stack([part.double() for part in parts])
        return sum_over_ranks(values) if vote is None else vote.sum(values)
