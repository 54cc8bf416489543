"""Memory of a forward and backward pass, activations and working space, and of the evaluations between steps.

Activations are what autograd keeps of the chunks in flight, each a share of one micro-batch. How much is in flight at a
time follows from the timetable (`pretrain/plan/pipeline.py`). Working space is what the backward pass adds at its
worst: the loss, or the gradients of a layer and what it recomputes. Not counted: statistics of one number a token,
document masks, attention's scratch space on a CPU (some MiB), the loop regulariser (it works when no activations are
held). torch.compile may keep less.

An evaluation keeps states where training keeps activations (`pretrain/parallel/depths.py`): those of one batch on one
stage, of TOGETHER batches for each of several, which may be more than a ring with few micro-batches trains with.
Working space is that of one layer or of the loss. Not counted: the caches of a task that continues texts.
"""

from dataclasses import dataclass

from pretrain.config.run import BYTES, RunConfig
from pretrain.model.config import KEEPS_LAYERS, ModelSection
from pretrain.model.count import LOSS_BLOCK_TOKENS
from pretrain.model.loop.recurrence import WHOLE, Recurrence, Stage
from pretrain.model.weights import loop_design
from pretrain.plan.pipeline import TOGETHER, peak_in_flight


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of the tensors that autograd keeps on one rank of a stage, chunk by chunk, for one micro-batch.

    A layer keeps the input and output of both norms, queries, keys, values and the mixed values, and in the
    feed-forward what its products and its activation need: 4 tensors of its width for SwiGLU (gate, silu(gate), up,
    their product), 2 for GELU. Tensors behind split weights are divided by the tensor-parallel size; residuals only
    under sequence parallelism.
    """

    config: RunConfig
    stage: Stage = WHOLE
    teacher: ModelSection | None = None
    """Of train.teacher: its logits and those of the model are held whole, for a divergence."""

    @property
    def _held(self) -> Recurrence:
        return Recurrence(config=self.config.model, stage=self.stage)

    @property
    def _tokens(self) -> int:
        return self.config.train.micro_batch * self.config.train.seq_len

    @property
    def _size(self) -> int:
        return BYTES[self.config.train.precision]

    @property
    def _wide(self) -> int:
        return max(4, self._size)

    @property
    def whole_state(self) -> int:
        """A state behind a norm, [tokens, width]: gathered before split weights meet it."""
        return self._tokens * self.config.model.hidden_size * self._size

    @property
    def state(self) -> float:
        """One residual state, [tokens held, width]."""
        parallel = self.config.parallel
        return self.whole_state / (parallel.tensor if parallel.sequence else 1)

    @property
    def _ffn_kept(self) -> int:
        """Tensors of a feed-forward's width that its layer keeps."""
        whole = {"swiglu": 4, "gelu": 2}[self.config.model.activation]
        return whole // 2 if self.config.train.chosen_recompute == "selective" else whole

    @property
    def layer(self) -> float:
        """One layer without recomputation."""
        model = self.config.model
        attention = 2 * (model.num_attention_heads + model.kv_heads) * model.head_dim
        ffn = self._ffn_kept * model.ffn_size
        split = self._tokens * (attention + ffn) * self._size / self.config.parallel.tensor
        norms = 2 * (self.state + self.whole_state)
        if model.norm_place in ("both", "around"):  # what the second norms of both halves are of
            norms += 2 * self.state
        return norms + split

    @property
    def _streams(self) -> float:
        """All residual streams of the loop."""
        return loop_design(self.config.model).residual.num_streams * self.state

    @property
    def _connections(self) -> float:
        """What the connections of one layer to several streams keep: of each half the streams, normed too where that
        decides, and what joined them."""
        loop = self.config.model.loop
        if loop.residual == "plain":
            return 0
        wide = self._streams * self._wide / self._size if self._size < self._wide else 0
        normed = self._streams + wide if loop.hyper.dynamic else 0  # type: ignore[attr-defined]
        return 2 * (self._streams + normed + self.state)

    @property
    def _keys(self) -> float:
        """Keys and values of one layer."""
        model = self.config.model
        return 2 * self._tokens * model.kv_heads * model.head_dim * self._size / self.config.parallel.tensor

    def _window(self, window: int) -> float:
        """What attention to a window of own keys adds to a layer: what it gives, what the gate mixes and, of blocks, a
        copy of queries and two of keys and values in place of one."""
        model, is_in_blocks = self.config.model, self.config.train.seq_len > 2 * window
        of_heads = self._tokens * model.num_attention_heads * model.head_dim * self._size / self.config.parallel.tensor
        return (3 * of_heads + self._keys) if is_in_blocks else 2 * of_heads

    @property
    def head(self) -> float:
        """Final norm, head and loss. A whole head keeps the gradients of its input and weight, a split one input and
        logits."""
        model, num_ranks = self.config.model, self.config.parallel.tensor
        kept = model.hidden_size if num_ranks == 1 else self._tokens / num_ranks
        return self.state + self.whole_state + model.vocab_size * kept * self._wide + self._imitated

    @property
    def _logits(self) -> float:
        """Logits of all tokens, held whole."""
        return self._tokens * self.config.model.vocab_size * self._wide

    @property
    def _imitated(self) -> float:
        """What the divergence from a teacher keeps: the model's log-probabilities, the teacher's probabilities, and the
        final states of supervised tokens, which may be all."""
        return 2 * self._logits + self.whole_state if self.teacher is not None else 0

    @property
    def _teaching(self) -> float:
        """What the divergence adds at its worst to what it keeps: a pass of the teacher, before there is any of that;
        later the teacher's log-probabilities, their difference and its product."""
        if self.teacher is None:
            return 0
        frozen = Activations(config=self.config.model_copy(update={"model": self.teacher}))
        return max(3 * self._logits, frozen.without_gradients(1) - self._imitated)

    @property
    def _loss_working(self) -> float:
        """What the loss adds at its worst: a whole head a block of logits and its share of the weight's gradient, a
        split one logits."""
        model, num_ranks = self.config.model, self.config.parallel.tensor
        if num_ranks > 1:
            return 3 * self._tokens * model.vocab_size * self._wide / num_ranks
        narrow = self._size if self._size < self._wide else 0  # a second copy in the type of the weights
        return model.vocab_size * (min(self._tokens, LOSS_BLOCK_TOKENS) + model.hidden_size) * (self._wide + narrow)

    @property
    def _outside(self) -> float:
        """One layer outside the loop."""
        return self.layer if self.config.train.chosen_recompute in (*KEEPS_LAYERS, "loop") else self.state

    def _segment_size(self, num_passes: int) -> int:
        """Passes that are computed again together: those with a gradient, if nothing is done after each of them."""
        train = self.config.train
        if train.loop_loss.outputs != "last":
            return 1
        return self._held.segment_size(min(num_passes, train.backprop_loops or num_passes))

    @property
    def _tail(self) -> float:
        """What follows the loop on the last stage."""
        is_twice = loop_design(self.config.model).final_norm.begins_coda and self._held.num_coda_layers
        return self._held.num_coda_layers * self._outside + self.head + (self.state if is_twice else 0)

    @property
    def _waiting(self) -> float:
        """Coda and norm of a short run, until the last final states are there."""
        is_short = self.stage.is_last and self.config.train.loop_loss.outputs == "two"
        return self._held.num_coda_layers * self._outside + 4 * self.state if is_short else 0

    def chunk(self, index: int, num_passes: int) -> float:
        """Chunk `index` of `num_passes`: its part of the loop, with the prelude, or coda, norm and logits, where the
        stage has them."""
        num_looped, design = self._held.num_pass_layers, loop_design(self.config.model)
        whole, state = num_looped * (self.layer + self._connections), self._streams
        cut = max(0, num_passes - (self.config.train.backprop_loops or num_passes))
        enters = state if (index - cut) % self._segment_size(num_passes) == 0 else 0
        recompute = self.config.train.chosen_recompute
        keeps = recompute in KEEPS_LAYERS
        by_mode = {"loop": state, "layer": num_looped * state, "offload": state, "segment": enters}
        kept = whole if keeps else by_mode[recompute]
        if (window := design.window_of(index)) is not None:
            kept += num_looped * self._window(window) if keeps else 0
        elif design.keys_of(index) != index:  # another loop's keys and values
            kept -= num_looped * self._keys if keeps else 0
        elif design.shares_keys and not keeps:  # those that the loops that read them need
            kept += num_looped * self._keys
        is_normed = self.stage.is_last and design.final_norm.ends_passes and recompute != "segment"
        if is_normed and (self._held.num_coda_layers or index < num_passes - 1):
            kept += self.state  # what the final norm is of; that of the last pass is of the head
        if index < cut:  # without gradient: what came from another stage, or goes on to the first pass with one
            is_kept = index == cut - 1 if self.stage.count == 1 else index > 0 or not self.stage.is_first
            kept = state if is_kept else 0
        if index == 0:
            kept += self._held.num_prelude_layers * self._outside
        if self.stage.is_last and index == num_passes - 1:
            return kept + self._tail
        outputs = self.config.train.loop_loss.outputs
        if self.stage.is_last and (outputs == "every" or (outputs == "two" and index == 0)):
            kept += state  # the gradient of this loop's own loss
            kept += self._waiting if self.stage.count > 1 else 0
        return kept + (state if self.stage.count > 1 else 0)  # the output, held until its gradient comes back

    def peak(self, num_micro_batches: int, num_passes: int) -> float:
        """The most that is in flight at one time."""
        chunks = [self.chunk(index, num_passes) for index in range(num_passes)]
        if self.stage.count == 1:
            return sum(chunks)
        return peak_in_flight(chunks, self.stage.index, self.stage.count, num_micro_batches)

    def host(self, num_micro_batches: int, num_passes: int) -> float:
        """The most that waits on the host: what enters all layers of a loop but the first."""
        if self.config.train.chosen_recompute != "offload":
            return 0
        each = (self._held.num_pass_layers - 1) * self._streams
        cut = max(0, num_passes - (self.config.train.backprop_loops or num_passes))
        chunks = [each * (index >= cut) for index in range(num_passes)]
        if self.stage.count == 1:
            return sum(chunks)
        return peak_in_flight(chunks, self.stage.index, self.stage.count, num_micro_batches)

    def evaluation(self, num_batches: int) -> float:
        """The most that an evaluation of batches as large as a micro-batch holds, working space and all."""
        together = 1 if self.stage.count == 1 else min(TOGETHER * self.stage.count, num_batches)
        return self.without_gradients(together, self._scoring if self.stage.is_last else 0)

    def without_gradients(self, together: int, scoring: float = 0) -> float:
        """What passes of so many batches hold at the most, with working space: that of a layer, or `scoring`.

        A layer sees its batch's state before the loop or coda, before itself and after its attention; attention has
        queries, keys and values, copies of them in the order that the kernel wants, and the mixed values.
        """
        model, stage = self.config.model, self.stage
        heads = (3 * model.num_attention_heads + 4 * model.kv_heads) * model.head_dim
        ffn = {"swiglu": 4, "gelu": 2}[model.activation] * model.ffn_size
        working = self._tokens * max(heads, ffn) * self._size / self.config.parallel.tensor
        working = max(working, scoring)
        design = loop_design(model)
        carried = together if stage.is_first and design.carries else 0
        sent = together if stage.count > 1 else 0
        keys = together * self._held.num_pass_layers * self._keys if design.shares_keys else 0
        return carried * self.state + (3 + sent) * self._streams + self.whole_state + keys + working

    @property
    def _scoring(self) -> float:
        """What a loss without gradients adds: of a whole head two blocks of logits, as one is made while the one before
        is still there."""
        model, num_ranks = self.config.model, self.config.parallel.tensor
        if num_ranks > 1:
            return self._loss_working
        narrow = self._size if self._size < self._wide else 0
        blocks = self._wide * (1 + (self._tokens > LOSS_BLOCK_TOKENS)) + narrow
        return model.vocab_size * min(self._tokens, LOSS_BLOCK_TOKENS) * blocks

    @property
    def working(self) -> float:
        """What the backward pass needs on top: that of the loss; later one recomputed unit and the gradients inside a
        feed-forward, and of a segment what enters its layers.

        By the time the last stage comes to its first unit, what follows that unit has gone.
        """
        model, recompute = self.config.model, self.config.train.chosen_recompute
        num_layers = {"none": 0, "selective": 0, "loop": self._held.num_pass_layers}.get(recompute, 1)
        num_gradients = {"swiglu": 2, "gelu": 1}[model.activation]
        num_gradients += self._ffn_kept if recompute == "selective" else 0  # what is computed again beside them
        gradients = num_gradients * self._tokens * model.ffn_size * self._size / self.config.parallel.tensor
        window = loop_design(model).window_of(model.num_passes() - 1)
        in_window = 0 if window is None else self._window(window)
        unit = num_layers * (self.layer + self._connections + in_window) + gradients
        entering = 0.0  # what enters each layer of a segment
        if recompute == "segment":
            size = self._segment_size(model.num_passes(self.config.max_loops))
            entering = size * self._held.num_pass_layers * self._streams
        if not self.stage.is_last:
            return unit + entering
        in_coda = 0.0 if recompute == "loop" else unit - self.head
        waiting = self._waiting if self.stage.count == 1 else 0
        return max(in_coda, unit + entering - self._tail, self._loss_working + waiting - self._imitated, self._teaching)
