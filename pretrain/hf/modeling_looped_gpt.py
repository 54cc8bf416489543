"""The looped GPT for transformers: prelude, a block of k layers applied L times with shared weights, coda.

An exported model needs config.json, model.safetensors, this file and, beside it, `loop_design.py`: the parts of the
training code that say what happens between loops (`pretrain/hf/travelling.py` writes both). They import only torch and
transformers:

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.generate(**tokenizer("KING HENRY.", return_tensors="pt"), max_new_tokens=50, num_loops=6)

`num_loops` is an argument of `forward` and of `generate`; the configuration has its default. The forward pass:
1. embed the tokens (and learned positions);
2. prelude layers, each once;
3. L times: what the design of the loop says, then the k layers of the loop block with the same weights;
4. coda layers, final norm, head.
Every application of a layer has its own keys and values, so a cache has effective depth = prelude + k·L + coda entries;
where loops share them (`keys` of the loop's configuration), one for each that computes any. Those of windows
(`keys_window`) hold all positions here, of which the newest are seen.
Source: Saunshi et al. 2025 (arXiv 2502.17416), section 2. Weights are named as in the training code.

Requires transformers 5. Saved models also load and generate with 4.57, without static caches; a configuration made with
4.57 must set `tied_head` explicitly.

Shapes: b batch, s positions of this call, d hidden width, h heads, g key/value heads, e head width, v vocabulary.
"""

import copy
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from pretrain.model.hashed_numbers import normal
from pretrain.model.loop.design import LoopDesign
from pretrain.model.loop.held import HeldWeights
from pretrain.model.loop.keys import gate_far_and_near, keys_of, window_of, window_weights
from pretrain.model.loop.per_loop.this import ALIKE, InLayers, InThisLoop
from pretrain.model.loop.variant import Shape
from pretrain.model.weight_kinds import Weight, Weights, under

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of the rotation of each position, [b or 1, s, 1, e/2] each."""


CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What outputs call the cache: transformers 5.24 has the new name, and warns of the old one."""

PLAIN_LOOP = {
    "injection": "none", "injection_at": "later", "start": "prelude", "per_loop": "none", "residual": "plain",
    "exit": "none", "final_norm": "end", "residual_scale": "one", "keys": "own", "keys_every": 2, "keys_window": 0,
    "made_for": None,
}  # fmt: skip
"""A loop that applies the block again and does nothing else."""


class LoopedGPTConfig(PretrainedConfig):
    """Shape of a looped GPT; fields are named as in the training configuration's `model` section."""

    model_type = "looped_gpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]
    attribute_map: ClassVar[dict[str, str]] = {"tie_word_embeddings": "tied_head"}

    vocab_size: int = 32000
    """Rows of the embedding, in tokens."""
    hidden_size: int = 512
    """Width of the residual stream."""
    num_attention_heads: int = 8
    """Query heads."""
    num_key_value_heads: int | None = None
    """Key/value heads (grouped-query attention). Default: num_attention_heads."""
    head_size: int | None = None
    """Width of a head. Default: hidden_size / num_attention_heads."""
    ffn_size: int = 1408
    """Width inside the feed-forward layer (of each of gate and up for SwiGLU)."""
    num_prelude_layers: int = 0
    """Layers before the loop, with weights of their own."""
    num_loop_layers: int = 8
    """k: layers in the loop block."""
    num_coda_layers: int = 0
    """Layers after the loop, with weights of their own."""
    num_loops: int = 1
    """L: applications of the loop block in calls without `num_loops`."""
    loop: dict[str, Any] | None = None
    """What happens when the loop begins and between its passes, as `model.loop` of the training configuration; None:
    nothing."""
    norm: Literal["rms", "layer", "plain"] = "rms"
    """RMSNorm, LayerNorm with weight and bias, or LayerNorm without either."""
    norm_epsilon: float = 1e-5
    """Added to the variance inside the norm."""
    norm_place: Literal["before", "after", "both", "around", "sum"] = "before"
    """Whether the norm is on the input of attention and feed-forward, on their output before it is added, on both, on
    the input and on the sum, or on the sum alone."""
    positions: Literal["rope", "learned"] = "rope"
    """Rotary positions, or a learned table of max_position_embeddings rows."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    max_position_embeddings: int = 2048
    """Longest sequence trained on, in tokens."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """SwiGLU (gate, up, down) or GELU in its tanh form (up, down)."""
    bias: Literal["none", "qk", "qkv", "all"] = "none"
    """Linear layers with a bias: none, only query and key, these and value, or all in attention and feed-forward."""
    embedding_scale: float = 1.0
    """What the embeddings of tokens are multiplied by; not `inputs_embeds`."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMSNorm of queries and keys before the rotation: none, per head, or over all heads together."""
    tied_head: bool = False
    """Use the embedding as output head."""
    init_std: float = 0.02
    """Standard deviation of initial weights; divided by sqrt(2 · effective depth) for residual projections."""
    use_cache: bool = True
    """Keep keys and values for the next call, outside training."""

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        """Layers as transformers counts them: applications with keys and values of their own."""
        return self.cached_depth()

    def cached_depth(self, num_loops: int | None = None) -> int:
        """Entries of a cache."""
        loop = PLAIN_LOOP | (self.loop or {})
        passes = range(num_loops or self.num_loops)
        num_passes = sum(
            keys_of(loop["keys"], loop["keys_every"], number) == number
            or window_of(loop["keys"], loop["keys_window"], number) is not None
            for number in passes
        )
        return self.num_prelude_layers + self.num_loop_layers * num_passes + self.num_coda_layers

    def effective_depth(self, num_loops: int | None = None) -> int:
        """Layers a token passes: prelude + k·L + coda."""
        return self.num_prelude_layers + self.num_loop_layers * (num_loops or self.num_loops) + self.num_coda_layers

    def check(self) -> None:
        """Raise a ValueError that names the field if the configuration is invalid."""
        for name, hint in LoopedGPTConfig.__annotations__.items():
            choices = get_args(hint)
            if choices and all(isinstance(choice, str) for choice in choices) and getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} in the model's configuration: one of {', '.join(choices)}"
                )
        heads, kv_heads = self.num_attention_heads, self.kv_heads
        if self.head_size is None and self.hidden_size % heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={heads}")
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads={heads} is not divisible by num_key_value_heads={kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_size={self.head_dim} must be even for rotary positions")


def loop_design(config: LoopedGPTConfig) -> LoopDesign:
    """The design of the loop, from the configuration."""
    values = PLAIN_LOOP | (config.loop or {})
    section = SimpleNamespace(
        **{name: SimpleNamespace(**value) if isinstance(value, dict) else value for name, value in values.items()}
    )
    width, ffn = config.hidden_size, config.ffn_size
    heads, kv_heads = (count * config.head_dim for count in (config.num_attention_heads, config.kv_heads))
    gate = {"ffn.gate": (ffn, width)} if config.activation == "swiglu" else {}
    shapes = {
        "attention.query": (heads, width), "attention.key": (kv_heads, width), "attention.value": (kv_heads, width),
        "attention.output": (width, heads), **gate, "ffn.up": (ffn, width), "ffn.down": (width, ffn),
    }  # fmt: skip
    linears = {name: Weight(shape=shape, init="normal") for name, shape in shapes.items()}
    num_loops, num_layers = section.made_for or config.num_loops, config.num_loop_layers
    return LoopDesign(section, Shape(width=width, num_loops=num_loops, num_layers=num_layers, linears=linears))


class SharedKeys(NamedTuple):
    """What one application of a layer has to do with keys and values that loops share."""

    computes: bool
    """Whether it computes its own."""
    reads: bool
    """Whether it reads those of an earlier loop."""
    keeps: bool
    """Whether later loops may read its own."""


ALONE = SharedKeys(computes=True, reads=False, keeps=False)
KeysValues = tuple[Tensor | None, Tensor | None]
"""[b, g, keys, e] each, those of the cache among them; None: none."""


class WholeWeights:
    """Makes the weights of a loop design, whole."""

    @staticmethod
    def linear(weights: Weights) -> nn.Module:
        outputs, inputs = weights["weight"].shape
        return nn.Linear(inputs, outputs, bias="bias" in weights)

    @staticmethod
    def parameter(weight: Weight) -> nn.Parameter:
        return nn.Parameter(torch.empty(weight.shape))


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in fp32 or wider (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.width, self.epsilon = width, epsilon

    def forward(self, states: Tensor) -> Tensor:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        scale = (wide.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()
        return (wide * scale * self.weight).to(states.dtype)


def make_norm(config: LoopedGPTConfig) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, config.norm_epsilon)
    return nn.LayerNorm(config.hidden_size, config.norm_epsilon, elementwise_affine=config.norm == "layer")


class ResidualLinear(nn.Linear):
    """A projection into the residual stream, whose initial weights are smaller."""


def rotary_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """The rotation of positions [b or 1, s] (Su et al. 2021).

    Computed in fp64 and rounded once to `dtype`; `theta` is the base of the wavelengths.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # Apple's GPUs have no fp64
    exponents = torch.arange(0, head_dim, 2, dtype=wide, device=positions.device) / head_dim
    angles = positions[..., None, None].to(wide) * theta**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pairs (i, i + e/2) of [b, s, h, e] by the angle of each position; the pairing of Hugging Face's Llama."""
    cosine, sine = rotary
    first, second = states.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(states.dtype)


def visibility(attention_mask: Tensor | None, cache: Cache | None, past: int, tokens: Tensor) -> Tensor | None:
    """The attention mask of the queries: [b or 1, 1, s, past + s], True where a query may attend.

    None if plain causal attention is right: no padding, and the first query is the first token or the only one.

    Args:
        attention_mask: [b, past + s], nonzero at tokens and 0 at padding, or None without padding.
        cache: keys and values of `past` earlier tokens.
        past: their number.
        tokens: [b, s, d] embedded tokens of this call.
    """
    num_new = tokens.shape[1]
    # a static cache returns positions that are not filled yet
    has_spare_slots = cache is not None and cache.is_compileable
    if attention_mask is None and (past == 0 or num_new == 1) and not has_spare_slots:
        return None
    keys = torch.arange(past + num_new, device=tokens.device)
    queries = keys[past:, None]
    visible = (keys <= queries)[None]  # [1, s, keys]
    if attention_mask is not None:
        if attention_mask.shape[-1] != len(keys):
            raise ValueError(
                f"attention_mask has {attention_mask.shape[-1]} columns for {past} cached "
                f"and {num_new} new tokens: give one for each"
            )
        itself = keys == queries  # padding attends to itself: softmax over no keys would be NaN
        visible = visible & attention_mask.to(visible.device, torch.bool)[:, None] | itself
    return visible[:, None]


def within(window: int, mask: Tensor | None, num_new: int, past: int, device: torch.device) -> Tensor:
    """The mask, of the newest `window` keys that a query may attend to, its own among them: as `visibility`, or as the
    caller gave it."""
    if mask is None:
        keys = torch.arange(past + num_new, device=device)
        mask = (keys <= keys[past:, None])[None, None]
    is_added = mask.dtype != torch.bool
    visible = mask > torch.finfo(mask.dtype).min / 2 if is_added else mask
    near = visible.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1) <= window
    return mask.masked_fill(~near, torch.finfo(mask.dtype).min) if is_added else mask & near


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries [b, h, s, e] over keys and values [b, g, keys, e], masked by `visibility`: [b, h, s, e]."""
    groups = queries.shape[1] // keys.shape[1]
    is_causal = queries.shape[2] > 1 and mask is None  # this order gives a plain bool under torch.compile too
    if mask is not None and groups > 1:  # the fused kernels support a mask or grouped heads, not both
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    if mask is not None and mask.dtype == torch.bool:
        mask = F.pad(mask, (0, keys.shape[2] - mask.shape[-1]))  # mask the unfilled positions of a static cache
    has_groups = queries.shape[1] != keys.shape[1]
    attention = F.scaled_dot_product_attention
    return attention(queries, keys, values, attn_mask=mask, is_causal=is_causal, enable_gqa=has_groups)


class Attention(nn.Module):
    """Causal multi-head attention with grouped key/value heads."""

    def __init__(self, config: LoopedGPTConfig, *, has_window: bool = False) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, kv_width = config.num_attention_heads * config.head_dim, config.kv_heads * config.head_dim
        has_bias = config.bias != "none"
        self.query = nn.Linear(config.hidden_size, width, bias=has_bias)
        self.key = nn.Linear(config.hidden_size, kv_width, bias=has_bias)
        self.value = nn.Linear(config.hidden_size, kv_width, bias=config.bias in ("qkv", "all"))
        self.output = ResidualLinear(width, config.hidden_size, bias=config.bias == "all")
        self.query_norm = self.key_norm = None
        if config.qk_norm != "none":
            is_whole = config.qk_norm == "all"
            self.query_norm = RMSNorm(width if is_whole else config.head_dim, config.norm_epsilon)
            self.key_norm = RMSNorm(kv_width if is_whole else config.head_dim, config.norm_epsilon)
        if has_window:
            weights = window_weights(config.num_attention_heads, config.head_dim)
            self.window = HeldWeights(WholeWeights, weights)

    def _heads(self, projected: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """[b, s, heads·e] -> [b, s, heads, e], normed in groups of `norm.width` numbers."""
        if norm is not None:
            projected = norm(projected.unflatten(-1, (-1, norm.width))).flatten(-2)
        return projected.unflatten(-1, (-1, self.head_dim))

    def forward(
        self, states: Tensor, rotary: Rotary | None, mask: Tensor | None, cache: Cache | None, entry: int,
        this: InThisLoop, shared: SharedKeys, near: Tensor | None, earlier: KeysValues,
    ) -> tuple[Tensor, KeysValues]:  # fmt: skip
        """[b, s, d] what it adds to the residual stream, and the keys and values of `earlier` or, if it computes any,
        its own."""
        queries = self._heads(this.linear("attention.query", states, self.query(states)), self.query_norm)
        queries = (queries if rotary is None else rotate(queries, rotary)).transpose(1, 2)  # [b, h, s, e]
        mixed, (keys, values) = None, earlier
        if shared.reads:
            assert keys is not None and values is not None, "an earlier loop has computed them"
            mixed = attend(queries, keys, values, mask)
        if shared.computes:
            keys = self._heads(this.linear("attention.key", states, self.key(states)), self.key_norm)
            values = self._heads(this.linear("attention.value", states, self.value(states))).transpose(1, 2)
            keys = (keys if rotary is None else rotate(keys, rotary)).transpose(1, 2)  # [b, g, s, e]
            if cache is not None:
                keys, values = cache.update(keys, values, entry)
            own = attend(queries, keys, values, mask if mixed is None else near)
            mixed = own if mixed is None else self.window(gate_far_and_near, queries, mixed, own)
        assert mixed is not None, "it computes or reads"
        mixed = mixed.transpose(1, 2).flatten(2)
        return this.linear("attention.output", mixed, self.output(mixed)), (keys, values)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) or GELU in its tanh form."""

    def __init__(self, config: LoopedGPTConfig) -> None:
        super().__init__()
        has_bias = config.bias == "all"
        self.gate = None
        if config.activation == "swiglu":
            self.gate = nn.Linear(config.hidden_size, config.ffn_size, bias=has_bias)
        self.up = nn.Linear(config.hidden_size, config.ffn_size, bias=has_bias)
        self.down = ResidualLinear(config.ffn_size, config.hidden_size, bias=has_bias)

    def forward(self, states: Tensor, this: InThisLoop) -> Tensor:
        up = this.linear("ffn.up", states, self.up(states))
        if self.gate is None:
            inner = F.gelu(up, approximate="tanh")
        else:
            inner = F.silu(this.linear("ffn.gate", states, self.gate(states))) * up
        return this.linear("ffn.down", inner, self.down(inner))


class Layer(GradientCheckpointingLayer):
    """Attention, then feed-forward, each a half f: x + f(norm(x)); by `norm_place` x + norm(f(x)) (after),
    x + post_norm(f(norm(x))) (both), post_norm(x + f(norm(x))) (around) or norm(x + f(x)) (sum)."""

    def __init__(
        self, config: LoopedGPTConfig, in_loop: InLayers | None = None, number: int = 0, *, has_window: bool = False
    ) -> None:
        super().__init__()
        self.number = number
        self.norm_place, self.attention_post_norm, self.ffn_post_norm = config.norm_place, None, None
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, has_window=has_window)
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config)
        if config.norm_place in ("both", "around"):
            self.attention_post_norm, self.ffn_post_norm = make_norm(config), make_norm(config)
        self.in_loop = in_loop
        if in_loop is not None:
            self.per_loop = HeldWeights(WholeWeights, in_loop.variant.layer_weights())
            self.residual = HeldWeights(WholeWeights, in_loop.residual.layer_weights())

    # Gradient checkpointing removes the cache by the name `past_key_values`, and hands on gradients of what comes in by
    # position and goes out: so keys and values that loops share do both.
    def forward(
        self, states: Tensor, rotary: Rotary | None, mask: Tensor | None, entry: int, loop: int | None,
        shared: SharedKeys = ALONE, near: Tensor | None = None, earlier_keys: Tensor | None = None,
        earlier_values: Tensor | None = None, past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """The states, and the keys and values that it keeps for later loops."""
        this = ALIKE
        if self.in_loop is not None and loop is not None:
            this = self.in_loop.at(self.per_loop, self.residual, self.number, loop)

        kept: KeysValues = None, None

        def attended(states: Tensor) -> Tensor:
            nonlocal kept
            earlier = earlier_keys, earlier_values
            mixed, own = self.attention(states, rotary, mask, past_key_values, entry, this, shared, near, earlier)
            kept = own if shared.keeps else kept
            return mixed

        states = self._half("attention", states, attended, (self.attention_norm, self.attention_post_norm), this)
        states = self._half("ffn", states, lambda x: self.ffn(x, this), (self.ffn_norm, self.ffn_post_norm), this)
        return states, *kept

    def _half(
        self, part: str, states: Tensor, compute: Callable[[Tensor], Tensor],
        norms: tuple[nn.Module, nn.Module | None], this: InThisLoop,
    ) -> Tensor:  # fmt: skip
        norm, post_norm = norms
        entering, join = this.branch(part, states)
        if self.norm_place == "sum":
            return this.normed(part, norm(join(this.update(part, compute(entering)))))
        if self.norm_place == "after":
            update = this.normed(part, norm(compute(entering)))
        else:
            update = compute(this.normed(part, norm(entering)))
        if post_norm is not None and self.norm_place == "both":
            update = post_norm(update)
        states = join(this.update(part, update))
        return post_norm(states) if post_norm is not None and self.norm_place == "around" else states


class LoopedGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The looped GPT with its head; every call accepts `num_loops`.

    Raises:
        ValueError: the configuration is invalid.
    """

    config: LoopedGPTConfig
    config_class = LoopedGPTConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Layer"]  # noqa: RUF012 - transformers declares these three
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _tied_weights_keys = {"head.weight": "embedding.weight"}  # noqa: RUF012

    def __init__(self, config: LoopedGPTConfig) -> None:
        super().__init__(config)
        config.check()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = None
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.design = loop_design(config)
        self.injection, self.per_loop = (
            HeldWeights(WholeWeights, under(self.design.weights(), part)) for part in ("injection", "per_loop")
        )
        self.exit = HeldWeights(WholeWeights, under(self.design.exit_weights(), "exit"))
        in_loop = self.design.layers
        self.prelude = nn.ModuleList(Layer(config) for _ in range(config.num_prelude_layers))
        self.loop = nn.ModuleList(
            Layer(config, in_loop, number, has_window=self.design.has_windows)
            for number in range(config.num_loop_layers)
        )
        self.first_gains = {
            layer.get_submodule(name): gain for layer in self.loop for name, gain in self.design.first_gains.items()
        }
        self.coda = nn.ModuleList(Layer(config) for _ in range(config.num_coda_layers))
        self.final_norm = make_norm(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise like the training code, but from torch's global generator; transformers skips loaded weights."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            is_residual = isinstance(module, ResidualLinear)
            scale = 1 / math.sqrt(2 * self.config.effective_depth()) if is_residual else 1
            nn.init.normal_(module.weight, std=self.config.init_std * self.first_gains.get(module, scale))
        elif isinstance(module, HeldWeights):
            for name, weight in module.descriptions.items():
                if weight.constant is not None:
                    nn.init.constant_(module.get_parameter(name), weight.constant)
                else:
                    std = weight.std_of({"normal": self.config.init_std})
                    nn.init.normal_(module.get_parameter(name), std=std)
        elif isinstance(module, (nn.LayerNorm, RMSNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_loops: int | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token.

        Args:
            input_ids: [b, s] tokens; with a cache, those after the cached ones.
            attention_mask: [b, cached + s], 0 at padding; or [b or 1, 1, s, keys], True (or 0, added) where a query may
                attend.
            position_ids: [b or 1, s]. Default: counted within each row without padding.
            past_key_values: cache of earlier calls with the same `num_loops`, extended in place.
            inputs_embeds: [b, s, d], instead of `input_ids`.
            labels: [b, s] the tokens again, -100 where not supervised.
            use_cache: return a cache. Default: the configuration's, and False in training.
            num_loops: L. Default: the configuration's.
            logits_to_keep: number of last positions to return logits for (0: all), or their indices.
            output_hidden_states: return the input of each layer application, and the states after the final norm.
            cache: another name of past_key_values, used by transformers from 5.24 on.
            kwargs: passed to the loss.

        Returns:
            mean loss (with labels), logits [b, s, v], past_key_values, hidden_states.

        Raises:
            ValueError: both or none of input_ids and inputs_embeds, num_loops below 1, a cache of another loop count, a
                mask of another length, or a position beyond the learned table.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        num_loops = self.config.num_loops if num_loops is None else num_loops
        if num_loops < 1:
            raise ValueError(f"num_loops={num_loops}: the loop block is applied at least once")
        past_key_values = cache if past_key_values is None else past_key_values
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        if past_key_values is not None:
            self._check_cache(past_key_values, num_loops)
        states = self._embed(input_ids) if inputs_embeds is None else inputs_embeds  # [b, s, d]
        mask = attention_mask
        if position_ids is None or mask is None or mask.dim() == 2:
            past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            if position_ids is None:
                position_ids = self._positions(mask, past, states)
            if mask is None or mask.dim() == 2:
                mask = visibility(mask, past_key_values, past, states)
        wants_trace = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        trace = [] if wants_trace else None
        states = self._run(states, position_ids, mask, past_key_values, num_loops, trace)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(states[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        cached: dict[str, Any] = {CACHE_NAME: past_key_values if use_cache else None}
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=None if trace is None else (*trace, states), **cached
        )

    def _embed(self, input_ids: Tensor | None) -> Tensor:
        embedded, scale = self.embedding(input_ids), self.config.embedding_scale
        return embedded if scale == 1 else scale * embedded

    def _run(
        self, states: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None, num_loops: int,
        trace: list[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """All layers and the final norm: [b, s, d] -> [b, s, d]; appends the input of each layer to `trace`."""
        rotary = None
        if self.position_embedding is not None:
            self._check_positions(positions)
            states = states + self.position_embedding(positions)
        else:
            rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta, states.dtype)
        entries = itertools.count()
        kept: dict[int, tuple[Tensor, Tensor]] = {}  # by layer of the block: those of the newest loop with any
        near = None
        if (window := self.design.window_of(1)) is not None:
            past = 0 if cache is None else int(cache.get_seq_length())
            near = within(window, mask, states.shape[1], past, states.device)

        def run(layers: nn.ModuleList, states: Tensor, loop: int | None = None) -> Tensor:
            reads = loop is not None and self.design.keys_of(loop) != loop
            computes = loop is None or not reads or self.design.window_of(loop) is not None
            shared = SharedKeys(computes, reads, keeps=loop is not None and self.design.shares_keys and not reads)
            for number, layer in enumerate(layers):
                if trace is not None:
                    trace.append(states if loop is None else self.design.residual.combine(states))
                entry = next(entries) if computes else -1
                earlier = kept[number] if reads else (None, None)
                states, keys, values = layer(
                    states, rotary, mask, entry, loop, shared, near, *earlier, past_key_values=cache
                )
                if shared.keeps:
                    kept[number] = keys, values
            return states

        def noise(like: Tensor) -> Tensor:
            rows = torch.zeros(like.shape[0], dtype=torch.int32, device=like.device)
            return normal(rows, positions.expand(like.shape[0], -1), like.shape[-1], like.dtype)

        states, carried = self.design.begin(run(self.prelude, states), noise)
        where = self.design.final_norm
        for loop in range(num_loops):
            states = run(self.loop, self.design.enter(self.injection, self.per_loop, states, carried, loop), loop)
            if where.ends_passes:
                states = self.final_norm(states)
        states = self.design.residual.combine(states)
        if where.begins_coda and self.coda:
            states = self.final_norm(states)
        states = run(self.coda, states)
        return states if where.ends_passes and not self.coda else self.final_norm(states)

    def _positions(self, attention_mask: Tensor | None, past: int, states: Tensor) -> Tensor:
        """Positions [b or 1, s] of the new tokens in their rows, not counting padding."""
        num_new = states.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -num_new:]
        return torch.arange(past, past + num_new, device=states.device)[None]

    def _check_positions(self, positions: Tensor) -> None:
        num_positions = self.config.max_position_embeddings
        if not torch.compiler.is_compiling() and positions.max() >= num_positions:
            raise ValueError(
                f"position {int(positions.max())} is past the {num_positions} learned positions: "
                "shorten the prompt or max_new_tokens"
            )

    def _check_cache(self, cache: Cache, num_loops: int) -> None:
        version = transformers.__version__
        # a static cache of transformers 4 would overwrite the same position in every call
        if cache.is_compileable and version.startswith("4."):
            raise ValueError(f"a static cache needs transformers 5, this is {version}: use a DynamicCache")
        depth = self.config.cached_depth(num_loops)
        num_filled = sum(layer.is_initialized for layer in cache.layers)  # type: ignore[union-attr]
        has_room = cache.layer_class_to_replicate is not None or len(cache.layers) >= depth
        if num_filled not in (0, depth) or not has_room:
            raise ValueError(
                f"past_key_values has {num_filled or len(cache.layers)} entries, "
                f"but num_loops={num_loops} fills {depth}: a cache serves one loop count, start a new one"
            )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Called by `generate`: give the cache an entry for each layer application of the call's loop count."""
        user = self
        if model_kwargs.get("num_loops") is not None:
            # the cache is sized from the model's configuration; change a copy, since other threads may read this one
            user = copy.copy(self)
            user.config = copy.copy(self.config)
            user.config.num_loops = model_kwargs["num_loops"]
        return super(LoopedGPTForCausalLM, user)._prepare_cache_for_generation(  # type: ignore[attr-defined]
            generation_config, model_kwargs, *args, **kwargs
        )
