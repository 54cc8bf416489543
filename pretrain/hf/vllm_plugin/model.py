# pyright: reportMissingImports=false
"""The looped GPT in vLLM: the graph of `modeling_looped_gpt.py` over vLLM's linear layers, attention and head.

Weights are there once. Each application of a layer that computes keys and values has an `Attention` of vLLM of its own,
and so a paged cache: prelude + k·L + coda of them, fewer where loops share keys. What happens between loops, norms,
rotation and feed-forward is the code of the exported class itself, on [1, t, d]: the t tokens of all sequences of a
step, whose boundaries only attention knows.

An exit gate is not used: a step of vLLM runs all loops for all tokens.

Shapes: t tokens, d hidden width, h heads and g key/value heads of this rank, e head width, v vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention as PagedAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from pretrain.hf.modeling_looped_gpt import (
    Attention,
    KeysValues,
    Layer,
    LoopedGPTConfig,
    LoopedGPTForCausalLM,
    RMSNorm,
    Rotary,
    SharedKeys,
    WholeWeights,
    loop_design,
    make_norm,
    rotate,
)
from pretrain.hf.vllm_plugin.launch import entries_of, launched, require_held
from pretrain.model.loop.held import HeldWeights
from pretrain.model.loop.per_loop.this import InThisLoop
from pretrain.model.weight_kinds import under

logger = init_logger("vllm.looped")  # vLLM shows its own loggers only


def column(inputs: int, outputs: int, prefix: str, *, bias: bool) -> Any:
    """A linear map whose outputs are split over ranks."""
    return ColumnParallelLinear(inputs, outputs, bias=bias, return_bias=False, prefix=prefix)


def row(inputs: int, outputs: int, prefix: str, *, bias: bool) -> Any:
    """A linear map whose inputs are split over ranks, and its outputs summed."""
    return RowParallelLinear(inputs, outputs, bias=bias, return_bias=False, prefix=prefix)


class ServedAttention(nn.Module):
    """As `Attention`, called as it is, with vLLM's cache in place of the one of transformers."""

    _heads = Attention._heads

    def __init__(self, config: LoopedGPTConfig, entries: list[int], vllm_config: Any, prefix: str, root: str) -> None:
        super().__init__()
        self.head_dim, self.kept = config.head_dim, -1
        width, kv_width = config.num_attention_heads * config.head_dim, config.kv_heads * config.head_dim
        has_bias, has_value_bias = config.bias != "none", config.bias in ("qkv", "all")
        self.query = column(config.hidden_size, width, f"{prefix}.query", bias=has_bias)
        self.key = column(config.hidden_size, kv_width, f"{prefix}.key", bias=has_bias)
        self.value = column(config.hidden_size, kv_width, f"{prefix}.value", bias=has_value_bias)
        self.output = row(width, config.hidden_size, f"{prefix}.output", bias=config.bias == "all")
        self.query_norm = self.key_norm = None
        if config.qk_norm != "none":
            is_whole = config.qk_norm == "all"
            self.query_norm = RMSNorm(width if is_whole else config.head_dim, config.norm_epsilon)
            self.key_norm = RMSNorm(kv_width if is_whole else config.head_dim, config.norm_epsilon)
        ranks = get_tensor_model_parallel_world_size()
        heads, kv_heads = config.num_attention_heads // ranks, config.kv_heads // ranks
        self.caches = nn.ModuleDict()
        for entry in entries:  # vLLM knows a cache by its name, in which it wants one number
            self.caches[str(entry)] = PagedAttention(
                heads, config.head_dim, config.head_dim**-0.5, num_kv_heads=kv_heads,
                cache_config=vllm_config.cache_config, prefix=f"{root}layers.{entry}.attn",
            )  # fmt: skip

    def forward(
        self, states: Tensor, rotary: Rotary | None, mask: None, cache: None, entry: int, this: InThisLoop,
        shared: SharedKeys, near: None, earlier: KeysValues,
    ) -> tuple[Tensor, KeysValues]:  # fmt: skip
        """[1, t, d] what it adds to the residual stream. No keys are handed on: later loops find them in the cache."""
        queries = self._heads(this.linear("attention.query", states, self.query(states)), self.query_norm)
        queries = queries if rotary is None else rotate(queries, rotary)  # [1, t, h, e]
        keys = values = None
        if shared.computes:
            keys = self._heads(this.linear("attention.key", states, self.key(states)), self.key_norm)
            keys = (keys if rotary is None else rotate(keys, rotary)).flatten(2)[0]  # [t, g·e]
            values = this.linear("attention.value", states, self.value(states))[0]
        else:
            entry = self.kept  # of the newest loop that kept any: loops come in order
        if shared.keeps:
            self.kept = entry
        mixed = self.caches[str(entry)](queries.flatten(2)[0], keys, values)[None]  # [1, t, h·e]
        return this.linear("attention.output", mixed, self.output(mixed)), earlier


def served_layer(
    config: LoopedGPTConfig, number: int, entries: list[int], vllm_config: Any, prefix: str, root: str, **how: Any
) -> Layer:
    """A `Layer` whose matrices and attention are vLLM's."""
    with torch.device("meta"):
        layer = Layer(config, number=number, **how)
    norms = ("attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm")
    for name in norms:
        if getattr(layer, name) is not None:
            setattr(layer, name, make_norm(config))
    if layer.in_loop is not None:
        layer.per_loop = HeldWeights(WholeWeights, layer.in_loop.variant.layer_weights())
        layer.residual = HeldWeights(WholeWeights, layer.in_loop.residual.layer_weights())
    attention: Any = ServedAttention(config, entries, vllm_config, f"{prefix}.attention", root)
    layer.attention = attention
    has_bias, width, inner = config.bias == "all", config.hidden_size, config.ffn_size
    if layer.ffn.gate is not None:
        layer.ffn.gate = column(width, inner, f"{prefix}.ffn.gate", bias=has_bias)
    layer.ffn.up = column(width, inner, f"{prefix}.ffn.up", bias=has_bias)
    layer.ffn.down = row(inner, width, f"{prefix}.ffn.down", bias=has_bias)
    return layer


class ServedLoopedGPT(nn.Module):
    """What vLLM makes of a folder whose architecture is LoopedGPTForCausalLM.

    Raises:
        ValueError: a choice of the launch is invalid, or is of what vLLM cannot hold.
    """

    _run = LoopedGPTForCausalLM._run

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = launched(vllm_config.model_config.hf_config)
        parallel = vllm_config.parallel_config
        require_held(
            config, tensor=parallel.tensor_parallel_size, pipeline=parallel.pipeline_parallel_size,
            is_quantised=vllm_config.quant_config is not None,
        )  # fmt: skip
        self.config, self.design = config, loop_design(config)
        root = f"{prefix}." if prefix else ""
        self.embedding = VocabParallelEmbedding(config.vocab_size, config.hidden_size, prefix=f"{root}embedding")
        self.position_embedding = None
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.injection, self.per_loop = (
            HeldWeights(WholeWeights, under(self.design.weights(), part)) for part in ("injection", "per_loop")
        )
        in_loop = {"loop": {"in_loop": self.design.layers}}
        for part, layers in entries_of(config).items():
            how = in_loop.get(part, {})
            built = [
                served_layer(config, number, entries, vllm_config, f"{root}{part}.{number}", root, **how)
                for number, entries in enumerate(layers)
            ]
            self.add_module(part, nn.ModuleList(built))
        self.final_norm = make_norm(config)
        self.head = ParallelLMHead(config.vocab_size, config.hidden_size, bias=False, prefix=f"{root}head")
        if config.tied_head:
            self.head = self.head.tie_weights(self.embedding)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self._say()

    def _say(self) -> None:
        loop = self.config.loop or {}
        logger.info("%d loops, %d caches, keys=%s", self.config.num_loops, self.config.cached_depth(), loop["keys"])
        if loop["exit"] != "none":
            logger.warning("the exit gate (%s) is not used: all tokens run all loops", loop["exit"])

    def _check_positions(self, positions: Tensor) -> None:
        """vLLM ends a sequence at max_model_len, which max_position_embeddings bounds."""

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """[t] -> [t, d]."""
        embedded, scale = self.embedding(input_ids), self.config.embedding_scale
        return embedded if scale == 1 else scale * embedded

    def forward(
        self, input_ids: Tensor | None, positions: Tensor, intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[t] tokens and their positions -> [t, d] states after the final norm."""
        if inputs_embeds is None:
            assert input_ids is not None, "vLLM gives either"
            inputs_embeds = self.embed_input_ids(input_ids)
        return self._run(inputs_embeds[None], positions[None], None, None, self.config.num_loops, None)[0]

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[t, d] -> [t, v]."""
        return self.logits_processor(self.head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load an export; returns the names of what was loaded.

        Raises:
            ValueError: a tensor has no place, or one is missing.
        """
        parameters = dict(self.named_parameters())
        loaded: set[str] = set()
        for name, tensor in weights:
            if name.startswith("exit.") or (name == "head.weight" and self.config.tied_head):
                continue
            if name not in parameters:
                raise ValueError(f"the tensor {name} has no place in this model: its config.json is of another one")
            parameter = parameters[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
            loaded.add(name)
        if missing := sorted(parameters.keys() - loaded):
            raise ValueError(f"{len(missing)} tensors of the model are missing, the first is {missing[0]}")
        return loaded
