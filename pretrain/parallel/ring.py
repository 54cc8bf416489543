"""The ring: loops are virtual pipeline stages, and all loops of a stage are views of the same parameters.

Stage p of P owns 1/P of the loop block; a micro-batch goes round the stages once for each loop. This is Megatron's
interleaved 1F1B schedule (`pretrain/plan/pipeline.py`) with one model chunk per loop, except that the chunks share
their weights. Embedding and prelude run in chunk 0 of stage 0; coda, norm, head and loss in the last chunk of the last
stage. No weight is copied, and no gradient of a shared weight is exchanged between stages; the idle share falls from
(P-1)/(M+P-1) to (P-1)/(L·M+P-1), for L times as many messages. L may change from step to step: chunks are made per
call.

Facts of megatron-core 0.16.1 that shape this file:
- with two stages, previous and next rank are the same process and batched point-to-point messages of the two directions
  mix, so the interleaved schedule must use `overlap_p2p_comm`, never `batch_p2p_comm`; with one chunk it is the other
  way round;
- any M >= P works if the group of micro-batches that run through a chunk together is chosen as in
  `pretrain.plan.pipeline.group_size`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.data.stream.batch import Inputs
from pretrain.model.gpt import LoopedGPT, num_cut, without_gradient
from pretrain.model.kept_keys import KeptKeys
from pretrain.model.layers import Context
from pretrain.model.loop_loss import LoopLosses, LoopObjective
from pretrain.model.loss import loss_sums
from pretrain.model.recompute import recomputed
from pretrain.parallel.apart import Apart
from pretrain.parallel.gradients import GradientBuffers, LastUses, Part
from pretrain.parallel.groups import Groups
from pretrain.parallel.megatron import (
    ModelType,
    P2PCommunicator,
    ProcessGroupCollection,
    TransformerConfig,
    get_forward_backward_func,
)
from pretrain.parallel.teacher import Teacher
from pretrain.plan.pipeline import group_size


class _Carried:
    """What each micro-batch carries from before the loop into every loop (`LoopedGPT.begin`), kept on the first stage.

    The chunks of a stage have backward passes of their own, the later loops' first. A later loop uses a detached copy,
    whose gradient collects here and joins that of the original when chunk 0 runs backward.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Tensor] = {}

    def keep(self, micro_batch: int, states: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Keep a copy for the later loops; returns states and what is carried as loop 0 uses them."""
        if carried is None:
            return states, None
        self._copies[micro_batch] = carried.detach().requires_grad_(carried.requires_grad)
        return _JoinGradient.apply(states, carried, self._copies, micro_batch)  # type: ignore[no-any-return]

    def get(self, micro_batch: int) -> Tensor | None:
        return self._copies.get(micro_batch)


class _JoinGradient(torch.autograd.Function):
    """Identity of states and what is carried; backward adds the gradient that the copy of the latter has collected, and
    lets the copy go.

    Whichever of the two loop 0 uses, backward comes here. The copy is not an input: it must not wait for this.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, carried: Tensor, copies: dict[int, Tensor], micro_batch: int
    ) -> tuple[Tensor, Tensor]:
        ctx.copies, ctx.micro_batch = copies, micro_batch
        ctx.set_materialize_grads(False)
        return states.view_as(states), carried.view_as(carried)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, of_states: Tensor | None, of_carried: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        collected = ctx.copies.pop(ctx.micro_batch).grad
        if collected is not None and of_carried is not None:
            collected = of_carried + collected
        return of_states, of_carried if collected is None else collected, None, None


class _Cut(torch.autograd.Function):
    """A pass without gradient, `run(states, carried)`, in a chunk of which the schedule expects a backward pass: this
    one keeps nothing, has no gradient for weights, and sends zeros to the stage before.

    What is carried is an input because in chunk 0 backward has to go on to where it came from (`_JoinGradient`).
    """

    @staticmethod
    def forward(
        _: Any, run: Callable[[Tensor, Tensor | None], Tensor], states: Tensor, carried: Tensor | None
    ) -> Tensor:
        return run(states, carried)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        return None, torch.zeros_like(gradient), None


class _Kept:
    """The keys and values that each micro-batch keeps for later loops on this stage, whose loops have backward passes
    of their own."""

    def __init__(self, model: LoopedGPT) -> None:
        self._model, self._of = model, dict[int, KeptKeys]()

    def of(self, micro_batch: int) -> KeptKeys | None:
        """Of a micro-batch, by its number; None where loops share none."""
        if not self._model.design.shares_keys:
            return None
        return self._of.setdefault(micro_batch, KeptKeys(self._model.config.pass_layers, is_apart=True))


class LoopChunk(nn.Module):
    """One loop on one stage, without gradient if it is one of the first `cut`; owns no parameters."""

    def __init__(
        self,
        model: LoopedGPT,
        config: TransformerConfig,
        loop: int,
        num_passes: int,
        carried: _Carried,
        losses: Sequence[LoopLosses],
        cut: int,
        kept: "_Kept",
        last_uses: LastUses,
    ) -> None:
        super().__init__()
        self.model_type, self.config = ModelType.encoder_or_decoder, config
        self.vp_stage = loop if num_passes > 1 else None
        self.loop, self.num_passes, self.carried, self.losses = loop, num_passes, carried, losses
        self.is_cut, self.kept, self.last_uses = loop < cut, kept, last_uses
        self.last_of: tuple[Part, ...] = ("start",) * (loop == 0) + ("loop",) * (loop == cut)
        self.received: Tensor | None = None
        self.num_seen = 0
        self._stage = [model]  # in a list, so that the parameters are not registered here

    def set_input_tensor(self, tensor: Any) -> None:
        """Called by the schedule with what the previous stage sent."""
        self.received = tensor[0] if isinstance(tensor, list) else tensor

    def forward(self, inputs: Inputs) -> Tensor:
        """Run this loop on one micro-batch: final states on the last stage's last chunk, else [t, 1, d] states for the
        next stage."""
        (model,) = self._stage
        context = replace(_context(model, inputs), kept=self.kept.of(self.num_seen))
        if self.received is None:
            states, carried = self.carried.keep(self.num_seen, *model.begin(inputs.tokens, context))
        else:
            states, carried = self.received.flatten(0, 1), self.carried.get(self.num_seen)
        self.num_seen += 1
        run = partial(model.run_pass, context=context, loop=self.loop)
        if self.is_cut:
            states = _Cut.apply(run, states, carried)  # type: ignore[assignment]
        elif model.recomputes_segments:
            states = recomputed(run, context.kept, states, carried)
        else:
            states = run(states, carried)
        states = self.last_uses.follow(states, self.num_seen - 1, *self.last_of)
        if model.stage.is_last and self.loop == self.num_passes - 1:
            return model.finish(states, context, self.num_passes)
        if self.losses:
            states = self.losses[self.num_seen - 1].after_loop(states, context, self.loop)
        return states.unsqueeze(1)


class WholeModel(nn.Module):
    """The one chunk of a pipeline of one stage: the first `cut` passes without gradient, each other `Apart` or not."""

    def __init__(
        self,
        model: LoopedGPT,
        config: TransformerConfig,
        num_passes: int,
        is_apart: bool,
        losses: Sequence[LoopLosses],
        cut: int,
        last_uses: LastUses,
    ) -> None:
        super().__init__()
        self.last_uses = last_uses
        self.model_type, self.config, self.num_passes = ModelType.encoder_or_decoder, config, num_passes
        self.is_apart, self.losses, self.num_seen, self.cut = is_apart, losses, 0, cut
        self._stage, self.kept = [model], _Kept(model)

    def set_input_tensor(self, tensor: Any) -> None:
        """Nothing comes from another stage."""

    def forward(self, inputs: Inputs) -> Tensor:
        """Final states [t, d] of one micro-batch."""
        (model,) = self._stage
        context = _context(model, inputs)
        if self.is_apart:
            context = replace(context, kept=self.kept.of(self.num_seen))
        states, carried = model.begin(inputs.tokens, context)
        num_passes = max(inputs.loop_counts or [self.num_passes])
        for loops in model.parts(num_passes, self.cut, one_by_one=bool(self.losses)):
            run = partial(self._run, context, self.num_seen, loops)
            if loops.start < self.cut:
                states = without_gradient(run, states, carried)
            elif model.recomputes_segments:
                states = recomputed(run, context.kept, states, carried)
            else:
                states = run(states, carried)
            if self.losses and loops.start < self.num_passes - 1:
                states = self.losses[self.num_seen].after_loop(states, context, loops.start)
        self.num_seen += 1
        return model.finish(states, context, self.num_passes)

    def _run(self, context: Context, number: int, loops: range, states: Tensor, carried: Tensor | None) -> Tensor:
        """Some passes of a micro-batch, each apart from the others where that is wanted."""
        (model,) = self._stage
        if not (self.is_apart and torch.is_grad_enabled()):
            return model.run_passes(states, carried, context, loops)
        for loop in loops:
            (states,) = Apart.apply(_Pass(model, context, loop), states, carried)  # type: ignore[misc]
            if loop == self.cut:
                states = self.last_uses.follow(states, number, "start", "loop")
        return states


class _Pass(NamedTuple):
    """A pass as `Apart` calls it."""

    model: LoopedGPT
    context: Context
    loop: int

    def __call__(self, states: Tensor, carried: Tensor | None) -> tuple[Tensor]:
        return (self.model.run_pass(states, carried, self.context, self.loop),)


class Ring:
    """Runs the micro-batches of a step forward and backward through the stages, of which `model` is this rank's.
    Gradients in `buffers` are sent as they are complete."""

    def __init__(
        self, model: LoopedGPT, config: TransformerConfig, groups: Groups, buffers: GradientBuffers | None = None
    ) -> None:
        self.model, self.config, self.groups, self.buffers = model, config, groups, buffers
        self.collection = ProcessGroupCollection(
            tp=groups.tensor, pp=groups.pipeline, cp=groups.alone, embd=None, pos_embd=None, dp_cp=groups.data
        )
        self._num_begun, self._num_micro_batches = 0, 0

    def how_far(self) -> str:
        """How much of the step has begun, for people; any thread may ask."""
        return f"{self._num_begun:,} of {self._num_micro_batches:,} micro-batches begun"

    def _counted(self, micro_batches: Sequence[Inputs]) -> Iterator[Inputs]:
        self._num_begun, self._num_micro_batches = 0, len(micro_batches)
        for inputs in micro_batches:
            self._num_begun += 1
            yield inputs

    def run(
        self,
        micro_batches: Sequence[Inputs],
        num_loops: int,
        *,
        num_supervised: Tensor,
        z_loss_weight: float = 0.0,
        objective: LoopObjective | None = None,
        backprop_loops: int | None = None,
        teacher: Teacher | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One trip of all micro-batches, forward and backward.

        Args:
            micro_batches: M inputs, all of one shape, the same on every stage.
            num_loops: L of this step.
            num_supervised: supervised tokens of the global batch; the loss is divided by it.
            z_loss_weight: see `loss_sums`.
            objective: what is minimised, where it is not the loss of the last loop alone.
            backprop_loops: gradients flow through the last so many loops; through all by default.
            teacher: adds a divergence from it to the loss, where the model is whole.

        Returns:
            Negative log-likelihood of the last loop, and what is minimised if that is more, summed over these
            micro-batches and divided by `num_supervised`; 0 except on the last stage.

        Raises:
            ValueError: fewer micro-batches than stages.
        """
        num_stages, num_passes = self.groups.pipeline.size(), self.model.config.num_passes(num_loops)
        is_apart = num_stages == 1 and (self.config.params_dtype.itemsize < 4 or self.model.recomputes_segments)
        config = self._schedule_config(num_stages, num_passes, len(micro_batches))
        losses, cut = [], num_cut(num_passes, backprop_loops)
        if objective is not None:
            losses = [LoopLosses(self.model, objective, inputs.labels) for inputs in micro_batches]
        last_uses = LastUses(self.buffers, len(micro_batches))
        chunks: list[nn.Module] = [WholeModel(self.model, config, num_passes, is_apart, losses, cut, last_uses)]
        if num_stages > 1:
            carried, kept = _Carried(), _Kept(self.model)
            chunks = [
                LoopChunk(self.model, config, loop, num_passes, carried, losses, cut, kept, last_uses)
                for loop in range(num_passes)
            ]

        several = len(chunks) > 1
        batches = [self._counted(micro_batches), *(iter(micro_batches) for _ in chunks[1:])]
        schedule = get_forward_backward_func(pp_size=num_stages, vp_size=num_passes if several else None)
        reported = schedule(
            forward_step_func=self._forward_step(num_supervised, z_loss_weight, losses, is_apart, teacher, last_uses),
            data_iterator=batches if several else batches[0],
            model=chunks if several else chunks[0],
            num_microbatches=len(micro_batches),
            seq_length=micro_batches[0].tokens.numel(),
            micro_batch_size=1,
            forward_only=False,
            pg_collection=self.collection,
            p2p_communicator=P2PCommunicator(self.groups.pipeline, config),
        )
        nll = torch.stack(reported).sum() if reported else torch.zeros_like(num_supervised)
        return nll, _minimised(losses, teacher, num_supervised)

    def _forward_step(
        self,
        num_supervised: Tensor,
        z_loss_weight: float,
        losses: Sequence[LoopLosses],
        is_apart: bool,
        teacher: Teacher | None,
        last_uses: LastUses,
    ) -> Callable[[Iterator[Inputs], Any], tuple[Tensor, Any]]:
        """What the schedule calls for the next micro-batch of a chunk: its output, and what makes a loss of it."""
        if teacher is not None:
            teacher.begin_step()
        is_one_pass = self.groups.pipeline.size() == 1 and not is_apart  # of autograd, over the whole model
        last_of: tuple[Part, ...] = ("start", "loop", "end") if is_one_pass else ("end",)

        def forward_step(batch: Iterator[Inputs], chunk: Any) -> tuple[Tensor, Any]:
            inputs, number = next(batch), chunk.num_seen
            loop = f", loop {chunk.loop + 1}" if isinstance(chunk, LoopChunk) else ""
            self.groups.phase.tick(f", micro-batch {number + 1}{loop}")

            def loss(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                parts = partial(loss_sums, self.model, labels=inputs.labels, z_loss_weight=z_loss_weight)
                if losses:
                    parts = losses[number].last
                if teacher is not None:
                    parts = partial(teacher.loss_sums, self.model, inputs, parts)
                total, nll = Apart.apply(parts, states) if is_apart else parts(states)  # type: ignore[misc]
                total = last_uses.follow(total / num_supervised, number, *last_of)
                return total, _NO_TOKENS, nll / num_supervised

            return chunk(inputs), loss

        return forward_step

    def _schedule_config(self, num_stages: int, num_passes: int, num_micro_batches: int) -> TransformerConfig:
        """The configuration that schedules; the one that builds layers must not know of virtual stages."""
        config = replace(self.config)
        config.hidden_size *= self.model.design.residual.num_streams  # of messages
        if num_stages > 1:
            interleaved = num_passes > 1
            config.overlap_p2p_comm, config.batch_p2p_comm = interleaved, not interleaved
            config.batch_p2p_sync = False  # it waits for the device after every message, as torch before 1.10 needed
            config.microbatch_group_size_per_vp_stage = group_size(num_micro_batches, num_stages)
            config.virtual_pipeline_model_parallel_size = num_passes if interleaved else None
        return config


def _minimised(losses: Sequence[LoopLosses], teacher: Teacher | None, num_supervised: Tensor) -> Tensor | None:
    """What was minimised, where it is more than the loss of the last loop, divided by `num_supervised`."""
    if teacher is not None:
        return teacher.value / num_supervised
    zero = torch.zeros_like(num_supervised)
    return sum((each.value for each in losses), zero) / num_supervised if losses else None


def _context(model: LoopedGPT, inputs: Inputs) -> Context:
    context = model.context(
        inputs.tokens, positions=inputs.positions, documents=inputs.documents, noise_rows=inputs.noise_rows
    )
    return replace(context, loop_counts=inputs.loop_counts)


_NO_TOKENS = torch.zeros((), dtype=torch.int)
