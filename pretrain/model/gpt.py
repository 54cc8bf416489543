"""The looped GPT: prelude, a block of k layers applied L times with shared weights (k⊗L), coda. Single-device code.

Forward, top to bottom:
1. embed the tokens (and learned positions);
2. prelude layers, each once;
3. L times: what the design of the loop says (injection, what differs from loop to loop), then the k layers of the loop
   block, always the same weights;
4. coda layers, final norm; then the head gives logits or the loss.

Which layer is applied when, and what happens between passes, is said in `pretrain/model/loop/`. A pipeline stage builds
the same class with its share of the layers (`Stage`); the ring calls the same methods piece by piece
(`pretrain/parallel/ring.py`). An unlooped model is L = 1; a block-regularised one has `num_blocks` blocks of its own
weights. The loop count is an argument, never drawn here. Source: Saunshi et al. 2025 (arXiv 2502.17416), section 2.
Legend of shapes: b batch, s positions, t = b·s tokens, d hidden width, v vocabulary (held by this rank). Between
`begin` and `finish` states are [t, n·d] where the loop has n residual streams (`model.loop.residual`).
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.model.config import KEEPS_LAYERS, ModelSection, Recompute
from pretrain.model.dropout import Dropout
from pretrain.model.hashed_numbers import normal
from pretrain.model.kept_keys import KeptKeys, leave_out_of_graphs
from pretrain.model.kernels.documents import Documents
from pretrain.model.layers import HALF, Context, KeyValueCache, Layer, make_norm, rotary_table
from pretrain.model.loop.held import HeldWeights
from pretrain.model.loop.recurrence import WHOLE, Application, Recurrence, Stage
from pretrain.model.offload import on_host
from pretrain.model.parallel_ops import PLAIN, ParallelOps
from pretrain.model.recompute import recomputed
from pretrain.model.weight_kinds import under
from pretrain.model.weights import aliases, check_parameters, head_weights, loop_design, stage_weights

KEPT_HERE = nullcontext()
"""In which what autograd saves stays where it is."""


class LoopedGPT(nn.Module):
    """The model, or one pipeline stage of it.

    Args:
        config: shape of the model.
        seq_len: longest sequence, in tokens; rows of the learned position table.
        ops: plain or tensor-parallel building blocks.
        stage: the part to build; everything by default.
        recompute: what the backward pass computes again instead of keeping: "none", the activations of feed-forwards
            alone, "selective", a whole "loop" (on a stage: its
            part of one), every "layer", the same with what enters all but the first of a loop on the host, "offload",
            or a "segment" of loops and then each layer in it.

    Parameters carry global names whatever the stage: loop layer 5 is `loop.5` on the stage that holds it.
    """

    def __init__(
        self,
        config: ModelSection,
        seq_len: int,
        ops: ParallelOps = PLAIN,
        stage: Stage = WHOLE,
        recompute: Recompute = "none",
    ) -> None:
        super().__init__()
        self.config, self.ops, self.stage, self.recompute = config, ops, stage, recompute
        self.recurrence = Recurrence(config=config, stage=stage)
        self.await_weights: Callable[..., None] = lambda *_: None
        """Called with parts of the model, or None for one that is not here, before their weights are used."""
        self.weights, self.aliases = stage_weights(config, seq_len, stage), aliases(config)
        self.design = loop_design(config)
        self.embedding = self.position_embedding = None
        if stage.is_first:
            self.embedding = ops.embedding(under(self.weights, "embedding"), config.embedding_scale)
            if config.positions == "learned":
                self.position_embedding = ops.embedding(under(self.weights, "position_embedding"), 1.0)
            self.injection = HeldWeights(ops, under(self.weights, "injection"))
            self.per_loop = HeldWeights(ops, under(self.weights, "per_loop"))
        in_loop = self.design.layers
        self.prelude, self.loop, self.coda = (
            nn.ModuleDict(
                {
                    str(n): Layer(config, ops, under(self.weights, f"{part}.{n}"), inside, n, recompute == "selective")
                    for n in numbers
                    for inside in (in_loop if part == "loop" else None,)
                }
            )
            for part, numbers in self.recurrence.layers().items()
        )
        self.final_norm = self.head = None
        if stage.is_last:
            self.exit = HeldWeights(ops, under(self.weights, "exit"))
            self.final_norm = make_norm(config)
            self.head = ops.linear(head_weights(config))
            if config.tied_head and self.embedding is not None:
                self.head.weight = self.embedding.weight
        shapes = {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}
        check_parameters(shapes, self.weights, ops.size)

    def compile_layers(self, backend: str = "inductor") -> None:
        """torch.compile each layer by itself: one of each kind is traced, for all of its kind and all loops."""
        leave_out_of_graphs()
        for layer in (*self.prelude.values(), *self.loop.values(), *self.coda.values()):
            layer.compile(backend=backend)

    def split_dim(self, name: str) -> int | None:
        """The dimension along which tensor-parallel ranks share a parameter, or None if this rank holds it whole."""
        return self.weights[name].split if self.ops.size > 1 else None

    def stored_name(self, name: str) -> str:
        """What a parameter is drawn, counted and saved as: the copy of a tied embedding as the embedding."""
        return self.aliases.get(name, name)

    def forward(
        self,
        tokens: Tensor,
        num_loops: int | None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        documents: Documents | None = None,
        cache: KeyValueCache | None = None,
        embeddings: Tensor | None = None,
        dropout: Dropout | None = None,
        noise_rows: Tensor | None = None,
        backprop_loops: int | None = None,
    ) -> Tensor:
        """States after the final norm.

        Args:
            tokens: [b, s] token ids; with a cache, the tokens after the cached ones.
            num_loops: L; the configuration's by default.
            positions: [b or 1, s] position of each token; counted on from the cache by default.
            mask: [b or 1, 1, s, keys] True where a query may look; causal by default.
            documents: within which attention stays, in place of a mask and without a cache.
            cache: keys and values of earlier tokens, extended in place.
            embeddings: [b, s, d] what enters in place of the tokens' embeddings: latent thoughts.
            dropout: of this pass; none by default.
            noise_rows: int32 [b] keys of the rows, for a start state of noise; equal ones by default.
            backprop_loops: gradients flow through the last so many loops, see `num_cut`; through all by default.

        Returns:
            [t, d] states, rows in the order of the flattened tokens.
        """
        context = self.context(
            tokens, positions=positions, mask=mask, documents=documents, cache=cache, dropout=dropout,
            noise_rows=noise_rows,
        )  # fmt: skip
        num_passes = self.config.num_passes(num_loops)
        cut = num_cut(num_passes, backprop_loops)
        (states,) = deque(self.passes(tokens, num_passes, context, embeddings, cut), maxlen=1)  # those of the last
        return self.finish(states, context, num_passes)

    def passes(
        self, tokens: Tensor, num_passes: int, context: Context, embeddings: Tensor | None = None, cut: int = 0
    ) -> Iterator[Tensor]:
        """The states [t, d] as each pass over the block leaves them, or each segment of passes that will be computed
        again; `finish` makes final ones of any. The first `cut` passes are without gradient."""
        states, carried = self.begin(tokens, context, embeddings)
        for loops in self.parts(num_passes, cut):
            run = partial(self.run_passes, context=context, loops=loops)
            if loops.start < cut:
                states = without_gradient(run, states, carried)
            elif self.recomputes_segments and torch.is_grad_enabled():
                states = recomputed(run, context.kept, states, carried)
            else:
                states = run(states, carried)
            yield states

    @property
    def recomputes_segments(self) -> bool:
        """Whether segments of passes have backward passes of their own, which compute them again."""
        return self.recompute == "segment"

    def parts(self, num_passes: int, cut: int, *, one_by_one: bool = False) -> list[range]:
        """All passes, in segments where these are computed again; alone those without gradient, the first `cut`, and
        all where something is done after each of them."""
        cut, size = min(cut, num_passes), 1
        if self.recomputes_segments and torch.is_grad_enabled() and not one_by_one:
            size = self.recurrence.segment_size(num_passes - cut)
        starts = (*range(cut), *range(cut, num_passes, size))
        return [range(start, stop) for start, stop in pairwise((*starts, num_passes))]

    def run_passes(self, states: Tensor, carried: Tensor | None, context: Context, loops: range) -> Tensor:
        """Some passes in a row, as `run_pass`."""
        for loop in loops:
            states = self.run_pass(states, carried, context, loop)
        return states

    def run_pass(self, states: Tensor, carried: Tensor | None, context: Context, loop: int) -> Tensor:
        """This stage's part of one pass: [t, d] -> [t, d], see `enter` and `run_loop`. Rows whose loops are over
        (`Context.loop_counts`) stay as they are."""
        num_active, num_tokens = context.num_active(loop), context.batch * context.positions.shape[1]
        if not num_active:
            return states
        if num_active == context.batch:
            return self.run_loop(self.enter(states, carried, loop), context, loop)
        active = num_active * context.positions.shape[1]
        if len(states) < num_tokens:  # sequence parallelism: every rank holds a run of tokens, all go through
            held = min(max(0, active - self.ops.rank * len(states)), len(states))
            return torch.cat((self.run_loop(self.enter(states, carried, loop), context, loop)[:held], states[held:]))
        entered = self.enter(states[:active], None if carried is None else carried[:active], loop)
        return torch.cat((self.run_loop(entered, context.first(num_active), loop), states[active:]))

    def context(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        documents: Documents | None = None,
        cache: KeyValueCache | None = None,
        dropout: Dropout | None = None,
        noise_rows: Tensor | None = None,
    ) -> Context:
        """What all layers share: rotations and mask for `tokens` [b, s]; arguments as for `forward`."""
        batch, seq = tokens.shape
        past = cache.length if cache is not None else 0
        if positions is None:
            positions = torch.arange(past, past + seq, device=tokens.device)[None]
        dtype = next(self.parameters()).dtype
        needs_mask = dropout is not None or self.config.loop.keys_window or (tokens.is_cuda and dtype not in HALF)
        if documents is not None and needs_mask:
            mask, documents = documents.mask(), None
        if mask is None and past:
            keys = torch.arange(past + seq, device=tokens.device)
            mask = (keys[None, :] <= keys[past:, None])[None, None]
        rotary = None
        if self.config.positions == "rope":
            rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta, dtype)
        keeps = self.design.shares_keys and cache is None
        return Context(
            batch=batch, positions=positions, rotary=rotary, mask=mask, cache=cache, dropout=dropout,
            noise_rows=noise_rows, documents=documents,
            kept=KeptKeys(self.config.pass_layers, is_apart=self.recomputes_segments) if keeps else None,
        )  # fmt: skip

    def begin(self, tokens: Tensor, context: Context, embeddings: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embedding (unless given, [b, s, d]) and prelude: [b, s] tokens -> [t, d] states with which the loop begins,
        and what `enter` needs in every loop, if anything."""
        assert self.embedding is not None, "only the first stage embeds"
        self.await_weights(self.embedding, self.position_embedding, self.injection, self.per_loop)
        states = self.embedding(tokens) if embeddings is None else embeddings  # [b, s, d]
        if self.position_embedding is not None:
            states = states + self.position_embedding(context.positions)
        states = states.flatten(0, 1)
        if context.dropout is not None:
            states = context.dropout.states(states, "embedding")
        states = self.ops.scatter(states)
        for number, application in self.recurrence.in_prelude():
            states = self._run(self.prelude[str(number)], states, context, application)
        return self.design.begin(states, partial(self._noise, context=context))

    def enter(self, states: Tensor, carried: Tensor | None, loop: int) -> Tensor:
        """The states [t, d] with which this stage begins a loop: the design of the loop acts on the first one."""
        if not self.stage.is_first:
            return states
        return self.design.enter(self.injection, self.per_loop, states, carried, loop)

    def run_loop(self, states: Tensor, context: Context, loop: int | tuple[int, ...]) -> Tensor:
        """One application of this stage's part of the loop block (of block `loop` in a block-regularised model): [t, d]
        -> [t, d], with what ends a pass on the last stage. In generation tokens may be in different loops, that of each
        is given then, alike ones in a row."""

        def run(states: Tensor) -> Tensor:
            for place, (number, application) in enumerate(self.recurrence.in_loop(loop)):
                waits = on_host() if self.recompute == "offload" and place else KEPT_HERE
                states = self._run(self.loop[str(number)], states, context, application, waits)
            return states

        if self.recompute == "loop" and torch.is_grad_enabled():
            states = checkpoint(run, states, use_reentrant=False, preserve_rng_state=False)
        else:
            states = run(states)
        if self.final_norm is None or not self.design.final_norm.ends_passes:
            return states
        self.await_weights(self.final_norm)
        return self.final_norm(states)

    def exit_log_odds(self, states: Tensor) -> Tensor:
        """[t, d] states that a pass left -> [t] log-odds that the gate gives to stopping there (of the tokens held)."""
        self.await_weights(self.exit)
        return self.exit(self.design.exit.log_odds, self.design.residual.combine(states))  # type: ignore[no-any-return]

    def finish(self, states: Tensor, context: Context, num_passes: int) -> Tensor:
        """What a pass left, through coda and final norm: -> [t, d]."""
        assert self.final_norm is not None, "only the last stage has coda and head"
        self.await_weights(self.final_norm, self.head)
        states, where = self.design.residual.combine(states), self.design.final_norm
        if where.begins_coda and self.coda:
            states = self.final_norm(states)
        for number, application in self.recurrence.in_coda(num_passes):
            states = self._run(self.coda[str(number)], states, context, application)
        is_normed = where.ends_passes and not self.coda
        return states if is_normed else self.final_norm(states)

    def logits(self, states: Tensor) -> Tensor:
        """[t, d] final states -> [t, v] logits, the part of the vocabulary held by this rank."""
        assert self.head is not None, "only the last stage has coda and head"
        return self.head(self.ops.to_split(states))

    def all_logits(self, states: Tensor) -> Tensor:
        """[t, d] final states -> [t, vocabulary] logits, whole on every tensor-parallel rank."""
        return self.ops.gather_columns(self.logits(states))

    def _noise(self, like: Tensor, context: Context) -> Tensor:
        """Standard normal numbers like states [t, d], by row and position."""
        rows = context.noise_rows
        if rows is None:
            rows = torch.zeros(context.batch, dtype=torch.int32, device=like.device)
        positions = context.positions.expand(context.batch, -1)
        return self.ops.scatter(normal(rows, positions, like.shape[-1], like.dtype).flatten(0, 1))

    def _run(
        self, layer: nn.Module, states: Tensor, context: Context, application: Application,
        keeping: AbstractContextManager[None] = KEPT_HERE,
    ) -> Tensor:  # fmt: skip
        """One application of a layer; what enters one that is computed again is saved within `keeping`."""
        self.await_weights(layer)
        if self.recompute in (*KEEPS_LAYERS, "loop") or not torch.is_grad_enabled():
            return layer(states, context, application)
        with keeping:
            return checkpoint(layer, states, context, application, use_reentrant=False, preserve_rng_state=False)


def num_cut(num_passes: int, backprop_loops: int | None) -> int:
    """Passes that run without gradient where it reaches back through the last `backprop_loops` (None: all).

    The state that the last of them leaves counts as given (truncated back-propagation: Geiping et al. 2025, arXiv
    2502.05171, section 3.3). Prelude and embedding then get no gradient through the state, only through what the
    injection carries from before the loop into the later passes.
    """
    return 0 if backprop_loops is None else max(0, num_passes - backprop_loops)


def without_gradient(run: Callable[[Tensor, Tensor | None], Tensor], states: Tensor, carried: Tensor | None) -> Tensor:
    """A pass that keeps nothing for a backward pass; its output asks for a gradient where gradients are wanted, so that
    later passes run as they would after any other."""
    with torch.no_grad():
        output = run(states, carried)
    return output.requires_grad_(torch.is_grad_enabled())
