"""Memory of a forward and backward pass: activations and working space.

Activations are what autograd keeps of the chunks in flight, each a share of one micro-batch. How much is in flight at a
time follows from the timetable (`pretrain/plan/pipeline.py`). Working space is what the backward pass adds at its
worst: the loss, or the gradients of a layer and what it recomputes. Not counted: statistics of one number a token,
document masks, attention's scratch space on a CPU (some MiB), the loop regulariser (it works when no activations are
held). torch.compile may keep less.
"""

from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.model.count import LOSS_BLOCK_TOKENS
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
