"""Small published looped models in their own file layout, with random weights, and their published graphs in plain
torch, in fp64: what an import is held to. Nothing of the model under test is used."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

VOCAB, WIDTH, HEADS, FFN, SEQ_LEN = 300, 32, 4, 48, 24
Weights = dict[str, Tensor]


@dataclass
class PublishedModel:
    """Values of config.json, tensors by name, and the graph: tokens [b, s], loops -> logits [b, s, v] and, of a gate,
    the probability [loops, b, s] of stopping after each loop, given that the token has come so far."""

    config: dict[str, Any]
    weights: Weights
    graph: Callable[["PublishedModel", Tensor, int], tuple[Tensor, Tensor | None]]
    start: Tensor | None = None
    """[s, d] state with which the loop begins, if it is not the input."""
    wide: Weights = field(init=False)

    def __post_init__(self) -> None:
        self.wide = {name: tensor.double() for name, tensor in self.weights.items()}

    @property
    def num_loops(self) -> int:
        """As config.json says."""
        names = {"nanbeige": "num_loops", "ouro": "total_ut_steps", "huginn_raven": "mean_recurrence"}
        return self.config[names[self.config["model_type"]]]

    def logits(self, tokens: Tensor, num_loops: int) -> Tensor:
        return self.graph(self, tokens, num_loops)[0]

    def stops(self, tokens: Tensor, num_loops: int) -> Tensor:
        stops = self.graph(self, tokens, num_loops)[1]
        assert stops is not None
        return stops

    def write(self, folder: Path, tokenizer: Path) -> Path:
        """A folder as it is published, with the files of a tokenizer."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.weights, folder / "model.safetensors", metadata={"format": "pt"})
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder


def draw(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Random tensors: norms about 1, others about 0."""
    generator = torch.Generator().manual_seed(5)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    is_norm = {name: "norm" in name or "ln_f" in name for name in shapes}
    return {name: 1 + 0.3 * each if is_norm[name] else 0.2 * each for name, each in drawn.items()}


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[b, s, heads, e] of each, fewer heads of keys and values -> [b, s, heads·e]."""
    groups = queries.shape[2] // keys.shape[2]
    keys, values = (each.repeat_interleave(groups, 2) for each in (keys, values))
    scores = torch.einsum("bqhe,bkhe->bhqk", queries, keys) / queries.shape[-1] ** 0.5
    is_future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.einsum("bhqk,bkhe->bqhe", scores.masked_fill(is_future, -torch.inf).softmax(-1), values).flatten(2)


def angles(length: int, head_dim: int, theta: float) -> Tensor:
    """[s, 1, e/2]."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequencies)[:, None]


def rotate_halves(heads: Tensor, angle: Tensor) -> Tensor:
    """Llama's: channel i turns with channel i + e/2."""
    turned = torch.cat((-heads[..., heads.shape[-1] // 2 :], heads[..., : heads.shape[-1] // 2]), -1)
    return heads * angle.cos().repeat(1, 1, 2) + turned * angle.sin().repeat(1, 1, 2)


def llama_shapes(num_layers: int, kv_heads: int, head_dim: int, norms: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    for number in range(num_layers):
        layer = {
            "self_attn.q_proj": (HEADS * head_dim, WIDTH), "self_attn.k_proj": (kv_heads * head_dim, WIDTH),
            "self_attn.v_proj": (kv_heads * head_dim, WIDTH), "self_attn.o_proj": (WIDTH, HEADS * head_dim),
            "mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH), "mlp.down_proj": (WIDTH, FFN),
            **dict.fromkeys(norms, (WIDTH,)),
        }  # fmt: skip
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"lm_head.weight": (VOCAB, WIDTH)}


def llama_halves(model: PublishedModel, number: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Attention and feed-forward of a layer, without norms."""
    config, prefix = model.config, f"model.layers.{number}"
    matrix = lambda name, states: states @ model.wide[f"{prefix}.{name}.weight"].T  # noqa: E731

    def attention(states: Tensor) -> Tensor:
        heads = lambda name: matrix(f"self_attn.{name}", states).unflatten(-1, (-1, config["head_dim"]))  # noqa: E731
        angle = angles(states.shape[1], config["head_dim"], config["rope_theta"])
        queries, keys = (rotate_halves(heads(name), angle) for name in ("q_proj", "k_proj"))
        return matrix("self_attn.o_proj", causal_attention(queries, keys, heads("v_proj")))

    def feed(states: Tensor) -> Tensor:
        return matrix("mlp.down_proj", F.silu(matrix("mlp.gate_proj", states)) * matrix("mlp.up_proj", states))

    return attention, feed


NORMS = ("input_layernorm", "post_attention_layernorm")


def nanbeige(**changes: Any) -> PublishedModel:
    """Llama's layers, looped as a whole; the final norm behind every pass, or the last alone."""
    config = {
        "architectures": ["NanbeigeForCausalLM"], "model_type": "nanbeige", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "intermediate_size": FFN, "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "head_dim": 12, "kv_channels": 12, "hidden_act": "silu", "max_position_embeddings": SEQ_LEN,
        "rms_norm_eps": 1e-5, "rope_theta": 70_000_000, "rope_scaling": None, "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "initializer_range": 0.02,
        "num_loops": 2, "skip_loop_final_norm": False, "loop_loss_weights": [],
    } | changes  # fmt: skip

    def graph(model: PublishedModel, tokens: Tensor, num_loops: int) -> tuple[Tensor, None]:
        norm = lambda name, states: rms_norm(states, model.wide[f"model.{name}.weight"], config["rms_norm_eps"])  # noqa: E731
        states = model.wide["model.embed_tokens.weight"][tokens]
        for loop in range(num_loops):
            for number in range(config["num_hidden_layers"]):
                attention, feed = llama_halves(model, number)
                states = states + attention(norm(f"layers.{number}.input_layernorm", states))
                states = states + feed(norm(f"layers.{number}.post_attention_layernorm", states))
            if loop == num_loops - 1 or not config["skip_loop_final_norm"]:
                states = norm("norm", states)
        return states @ model.wide["lm_head.weight"].T, None

    return PublishedModel(config, draw(llama_shapes(2, 2, config["head_dim"], NORMS)), graph)


def ouro(**changes: Any) -> PublishedModel:
    """Four norms a layer, the final norm behind every pass, and a gate on what it gives."""
    config = {
        "architectures": ["OuroForCausalLM"], "model_type": "ouro", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "intermediate_size": FFN, "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": SEQ_LEN, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "rope_scaling": None, "attention_dropout": 0.0, "tie_word_embeddings": False,
        "initializer_range": 0.02, "layer_types": ["full_attention"] * 2, "sliding_window": None,
        "use_sliding_window": False, "total_ut_steps": 4, "early_exit_threshold": 1.0,
    } | changes  # fmt: skip

    def graph(model: PublishedModel, tokens: Tensor, num_loops: int) -> tuple[Tensor, Tensor]:
        norm = lambda name, states: rms_norm(states, model.wide[f"model.{name}.weight"], config["rms_norm_eps"])  # noqa: E731
        states, stops = model.wide["model.embed_tokens.weight"][tokens], []
        for _ in range(num_loops):
            for number in range(config["num_hidden_layers"]):
                layer, (attention, feed) = f"layers.{number}", llama_halves(model, number)
                update = attention(norm(f"{layer}.input_layernorm", states))
                states = states + norm(f"{layer}.input_layernorm_2", update)
                update = feed(norm(f"{layer}.post_attention_layernorm", states))
                states = states + norm(f"{layer}.post_attention_layernorm_2", update)
            states = norm("norm", states)
            weight, bias = (model.wide[f"model.early_exit_gate.{name}"] for name in ("weight", "bias"))
            stops.append((states @ weight.T + bias).sigmoid()[..., 0])
        return states @ model.wide["lm_head.weight"].T, torch.stack(stops)

    shapes = llama_shapes(2, HEADS, 8, (*NORMS, *(f"{name}_2" for name in NORMS)))
    gate = {"model.early_exit_gate.weight": (1, WIDTH), "model.early_exit_gate.bias": (1,)}
    return PublishedModel(config, draw(shapes | gate), graph)


def rotate_pairs(heads: Tensor, angle: Tensor) -> Tensor:
    """Huginn's: channel 2i turns with channel 2i + 1, as complex numbers."""
    turned = torch.view_as_complex(heads.contiguous().unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.view_as_real(turned).flatten(-2)


def huginn(**changes: Any) -> PublishedModel:
    """Prelude, core and coda of layers with norms around their halves; the state begins as `start`."""
    config = {
        "architectures": ["RavenForCausalLM"], "model_type": "huginn_raven", "vocab_size": VOCAB, "n_embd": WIDTH,
        "n_heads": HEADS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "intermediate_size": FFN,
        "block_size": SEQ_LEN, "n_layers": 5, "n_layers_in_prelude": 2, "n_layers_in_recurrent_block": 2,
        "n_layers_in_coda": 1, "mean_recurrence": 3, "norm_eps": 1e-6, "rope_base": 50_000.0, "qk_bias": True,
        "bias": False, "tie_embeddings": True, "block_class_name": "SandwichBlock", "nonlin_name": "SiLU",
        "norm_class_name": "RMSNorm_llama", "mlp_class_name": "GatedMLP", "injection_type": "linear",
        "state_init": "like-init", "test_time_noise": 0,
    } | changes  # fmt: skip
    head_dim = WIDTH // HEADS

    def graph(model: PublishedModel, tokens: Tensor, num_loops: int) -> tuple[Tensor, None]:
        w, epsilon = model.wide, config["norm_eps"]
        angle = angles(tokens.shape[1], head_dim, config["rope_base"])

        def layer(prefix: str, states: Tensor) -> Tensor:
            norm = lambda number, states: rms_norm(states, w[f"{prefix}.norm_{number}.weight"], epsilon)  # noqa: E731
            projected = (norm(1, states) @ w[f"{prefix}.attn.Wqkv.weight"].T).unflatten(-1, (3, HEADS, head_dim))
            queries, keys, values = projected.unbind(2)
            if config["qk_bias"]:
                bias = w[f"{prefix}.attn.qk_bias"]
                queries, keys = queries + bias[0], keys + bias[1]
            mixed = causal_attention(rotate_pairs(queries, angle), rotate_pairs(keys, angle), values)
            states = norm(2, states + mixed @ w[f"{prefix}.attn.proj.weight"].T)
            gate, up = (norm(3, states) @ w[f"{prefix}.mlp.fc.weight"].T).chunk(2, -1)
            return norm(4, states + (F.silu(gate) * up) @ w[f"{prefix}.mlp.proj.weight"].T)

        def part(name: str, states: Tensor) -> Tensor:
            count = {"core_block": "recurrent_block"}.get(name, name)
            for number in range(config[f"n_layers_in_{count}"]):
                states = layer(f"transformer.{name}.{number}", states)
            return states

        embedded = part("prelude", w["transformer.wte.weight"][tokens] * WIDTH**0.5)
        assert model.start is not None
        states = model.start.expand_as(embedded)
        for _ in range(num_loops):
            states = torch.cat((states, embedded), -1) @ w["transformer.adapter.weight"].T
            states = part("core_block", states)
        final = lambda states: rms_norm(states, w["transformer.ln_f.weight"], epsilon)  # noqa: E731
        head = w["transformer.wte.weight"] if config["tie_embeddings"] else w["lm_head.weight"]
        return final(part("coda", final(states))) @ head.T, None

    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, WIDTH), "transformer.adapter.weight": (WIDTH, 2 * WIDTH),
        "transformer.ln_f.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH),
    }  # fmt: skip
    for name, count in (("prelude", 2), ("core_block", 2), ("coda", 1)):
        one = {
            "attn.Wqkv.weight": (3 * WIDTH, WIDTH), "attn.qk_bias": (2, 1, HEADS, head_dim),
            "attn.proj.weight": (WIDTH, WIDTH), "mlp.fc.weight": (2 * FFN, WIDTH), "mlp.proj.weight": (WIDTH, FFN),
            **{f"norm_{number}.weight": (WIDTH,) for number in (1, 2, 3, 4)},
        }  # fmt: skip
        shapes |= {f"transformer.{name}.{number}.{key}": one[key] for number in range(count) for key in one}
    absent = ("lm_head",) * config["tie_embeddings"] + ("qk_bias",) * (not config["qk_bias"])
    weights = {name: tensor for name, tensor in draw(shapes).items() if not any(part in name for part in absent)}
    angle = angles(config["block_size"], head_dim, config["rope_base"])
    table = torch.stack((angle.cos(), angle.sin()), -1)[None].float()  # [1, s, 1, e/2, 2]
    return PublishedModel(config, weights | {"freqs_cis": table.contiguous()}, graph)
