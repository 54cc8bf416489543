"""The shape of the model as configuration. The rest of a run: `pretrain/config/run.py`."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.model.loop.config import LoopSection
from pretrain.model.loop.keys import keys_of, window_of
from pretrain.model.loop.residual_scale import EXPONENTS
from pretrain.model.loop.tables import variant_class
from pretrain.schema.section import Section, require_divides

MOST_LAYERS_DEEP = 100_000
"""Most applications of layers to a token: a mistyped number is refused, not worked on for ever."""
Recompute = Literal["none", "selective", "loop", "layer", "offload", "segment"]
"""What a backward pass computes again instead of keeping."""
KEEPS_LAYERS: tuple[Recompute, ...] = ("none", "selective")
"""Those of which layers and loops run once."""
WeightGroup = Literal["query", "key", "value", "attention_output", "gate", "up", "down"]


class LoopRegulariserSection(Section):
    weight: float = Field(default=0.0, ge=0)
    """λ of the loop regulariser; the loss gains λ·mean(1 - cosine) over pairs of blocks. 0 leaves the loss bitwise
    unchanged."""
    block_size: int = Field(default=0, ge=0)
    """k: layers per block that is pulled towards the next block, in layers. 0 = no blocks. Must divide
    num_loop_layers."""
    groups: tuple[WeightGroup, ...] = Field(
        default=("query", "key", "value", "attention_output", "gate", "up", "down"), min_length=1
    )
    """Kinds of weight matrix that are compared; gate is passed over in a model without SwiGLU."""
    warmup: float = Field(default=0.0, ge=0, le=1)
    """Share of train.steps over which the weight grows in a straight line, from 0 in the first step. 0 = all of it from
    the first step on."""

    def without_effect(self) -> dict[str, str]:
        return {} if self.weight else dict.fromkeys(("groups", "warmup"), "weight=0")


class ModelSection(Section):
    renamed: ClassVar[Mapping[str, str]] = {"input_injection": "loop.injection"}
    vocab_size: int = Field(default=32000, gt=0)
    """Rows of the embedding, in tokens; at least the tokenizer's size, a multiple of parallel.tensor."""
    hidden_size: int = Field(default=512, gt=0)
    """Width of the residual stream."""
    num_attention_heads: int = Field(default=8, gt=0)
    """Query heads."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Key/value heads (grouped-query attention). Default: num_attention_heads."""
    head_size: int | None = Field(default=None, gt=0)
    """Width of a head. Default: hidden_size / num_attention_heads."""
    ffn_size: int = Field(default=1408, gt=0)
    """Width inside the feed-forward layer (of each of gate and up for SwiGLU)."""
    num_prelude_layers: int = Field(default=0, ge=0)
    """Layers before the loop, with weights of their own."""
    num_loop_layers: int = Field(default=8, gt=0)
    """k: layers in the loop block."""
    num_coda_layers: int = Field(default=0, ge=0)
    """Layers after the loop, with weights of their own."""
    num_loops: int = Field(default=1, gt=0)
    """L: how often the loop block is applied; the default of every command that takes a loop count."""
    loop: LoopSection = LoopSection()
    """What happens when the loop begins and between its passes."""
    norm: Literal["rms", "layer", "plain"] = "rms"
    """RMSNorm (Llama), LayerNorm with weight and bias (GPT-2), or LayerNorm without either (OLMo)."""
    norm_place: Literal["before", "after", "both", "around", "sum"] = "before"
    """Norms before attention and feed-forward (Llama, GPT-2); after them, before they join the residual stream (OLMo
    2); both (Ouro); around them: before, and of the residual stream once they have joined it (Huginn); or only of that,
    the sum (the first transformer, DeepNorm)."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMSNorm of queries and keys before attention: none, over each head (Qwen 3), or over all heads together (OLMo
    2)."""
    norm_epsilon: float = Field(default=1e-5, gt=0)
    """Added to the variance inside the norm."""
    positions: Literal["rope", "learned"] = "rope"
    """Rotary positions (Llama) or a learned table of train.seq_len rows (GPT-2)."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary wavelengths."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU (gate, up, down) or GELU in its tanh form (up, down)."""
    bias: Literal["none", "qk", "qkv", "all"] = "none"
    """Biases in the linear layers of attention and feed-forward: in none, of query and key (Huginn), of these and value
    (Qwen 2), or in all (GPT-2)."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """What the embeddings of tokens are multiplied by, where they enter the model: √hidden_size in Huginn."""
    tied_head: bool = False
    """Use the embedding as output head."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of initial weights; projections into the residual stream get init_std / sqrt(2 · effective
    depth)."""
    loop_regulariser: LoopRegulariserSection = LoopRegulariserSection()
    """Pulls the blocks of an unlooped model together (Saunshi et al. 2025, eq. 3 and 4)."""

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def pass_layers(self) -> int:
        """Layers of one pass through the loop part: the loop block, or one block of a block-regularised model."""
        return self.loop_regulariser.block_size or self.num_loop_layers

    @property
    def num_blocks(self) -> int:
        """Distinct blocks of `pass_layers` layers: 1 in a looped model, num_loop_layers / k in a block-regularised
        one."""
        return self.num_loop_layers // self.pass_layers

    def num_passes(self, num_loops: int | None = None) -> int:
        """Passes of a token through the loop part: L (by default num_loops), or once through each block of a
        block-regularised model."""
        return self.num_blocks if self.num_blocks > 1 else num_loops or self.num_loops

    def at_loops(self, num_loops: int) -> "ModelSection":
        """The same model with another loop count by default: what depends on the count that it was made for stays."""
        loop = self.loop
        if loop.depends_on_loops and loop.made_for is None:
            loop = loop.model_copy(update={"made_for": self.num_loops})
        return self.model_copy(update={"num_loops": num_loops, "loop": loop})

    def effective_depth(self, num_loops: int | None = None) -> int:
        """Applications of layers to a token: prelude + k·L + coda."""
        return self.num_prelude_layers + self.pass_layers * self.num_passes(num_loops) + self.num_coda_layers

    def num_key_passes(self, num_loops: int | None = None) -> int:
        """Passes that compute keys and values of their own, of those at a loop count (num_loops by default)."""
        return sum(self.keys_of(loop) == loop for loop in range(self.num_passes(num_loops)))

    def keys_of(self, loop: int) -> int:
        """The loop whose keys and values a loop attends to, both counted from 0."""
        return keys_of(self.loop.keys, self.loop.keys_every, loop)

    def window_of(self, loop: int) -> int | None:
        """Tokens whose keys and values of the loop itself it attends to beside those; None: it has none."""
        return window_of(self.loop.keys, self.loop.keys_window, loop)

    def cached_depth(self, num_loops: int | None = None) -> int:
        """Applications of layers to a token that leave keys and values in a cache for all later tokens."""
        return self.num_prelude_layers + self.pass_layers * self.num_key_passes(num_loops) + self.num_coda_layers

    def require_loops(self, key: str, loops: Collection[int]) -> None:
        """Raise a ValueError that names `key` unless the model can run at each of these loop counts."""
        given = f"{key}={', '.join(map(str, loops))}"
        if any(count < 1 for count in loops):
            raise ValueError(f"{given}: loop counts start at 1")
        if self.num_blocks > 1 and any(count != 1 for count in loops):
            raise ValueError(f"{given}: a block-regularised model has no loops to vary: its only count is 1")
        self.require_depth(given, max(loops, default=1))

    def require_depth(self, given: str, num_loops: int) -> None:
        """Raise a ValueError that begins with `given` if the model would be too deep at a loop count."""
        depth = self.effective_depth(num_loops)
        if depth > MOST_LAYERS_DEEP:
            raise ValueError(f"{given}: {depth:,} layers deep, {MOST_LAYERS_DEEP:,} at most")

    def require_split(self, tensor: tuple[str, int], pipeline: tuple[str, int]) -> None:
        """Raise a ValueError unless the matrices and the loop block can be split over ranks: the key, or option, of the
        tensor-parallel and of the pipeline size, and its value."""
        require_divides("model.vocab_size", self.vocab_size, *tensor)
        require_divides("model.num_attention_heads", self.num_attention_heads, *tensor)
        require_divides("model.num_key_value_heads", self.kv_heads, *tensor)
        require_divides("model.ffn_size", self.ffn_size, *tensor)
        name = "model.loop_regulariser.block_size" if self.loop_regulariser.block_size else "model.num_loop_layers"
        require_divides(name, self.pass_layers, *pipeline)

    @model_validator(mode="after")
    def _check_shape(self) -> "ModelSection":
        parts = ("num_prelude_layers", "num_loop_layers", "num_coda_layers", "num_loops")
        self.require_depth(", ".join(f"model.{part}={getattr(self, part)}" for part in parts), self.num_loops)
        heads, regulariser = ("model.num_attention_heads", self.num_attention_heads), self.loop_regulariser
        if self.head_size is None:
            require_divides("model.hidden_size", self.hidden_size, *heads)
        require_divides(*heads, "model.num_key_value_heads", self.kv_heads)
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(
                f"the width of a head, {self.head_dim}, must be even for rotary positions: see model.head_size"
            )
        if regulariser.weight and not regulariser.block_size:
            raise ValueError("model.loop_regulariser.weight needs model.loop_regulariser.block_size: layers per block")
        if regulariser.weight and self.num_blocks == 1:
            raise ValueError(
                "model.loop_regulariser.weight pulls blocks together, but "
                f"model.num_loop_layers={self.num_loop_layers} is one block of block_size={regulariser.block_size}"
            )
        twice = [name for number, name in enumerate(regulariser.groups) if name in regulariser.groups[:number]]
        if twice:
            raise ValueError(f"model.loop_regulariser.groups names {twice[0]} twice")
        if regulariser.groups == ("gate",) and self.activation != "swiglu":
            raise ValueError("model.loop_regulariser.groups=[gate] needs model.activation=swiglu")
        norms_sum = self.norm_place in ("around", "sum")
        if norms_sum and self.loop.residual != "plain":
            raise ValueError(
                f"model.norm_place={self.norm_place} norms the residual stream, of which "
                f"model.loop.residual={self.loop.residual} has several: choose before, after or both"
            )
        where: Any = variant_class("final_norm", self.loop.final_norm)
        if where.ends_passes and self.loop.residual != "plain":
            raise ValueError(
                f"model.loop.final_norm={self.loop.final_norm} norms the residual stream, of which "
                f"model.loop.residual={self.loop.residual} has several: choose end or coda"
            )
        if self.loop.residual_scale in EXPONENTS and not norms_sum:
            raise ValueError(
                f"model.loop.residual_scale={self.loop.residual_scale} is for a residual stream that is normed behind "
                f"every sum: model.norm_place={self.norm_place} does not, choose sum or around"
            )
        for key, alike in {"per_loop": "none", "keys": "own"}.items():
            if regulariser.block_size and getattr(self.loop, key) != alike:
                raise ValueError(
                    f"model.loop.{key}={getattr(self.loop, key)} is for a block that is shared by its loops; the "
                    "blocks of model.loop_regulariser have weights of their own"
                )
        if regulariser.block_size:
            if self.num_loops != 1:
                raise ValueError(
                    "model.loop_regulariser is for an unlooped model: "
                    "set model.num_loops=1 or loop_regulariser.block_size=0"
                )
            block = ("model.loop_regulariser.block_size", regulariser.block_size)
            require_divides("model.num_loop_layers", self.num_loop_layers, *block)
        return self
