"""What the ranks of the pool run, and the one-process model that it is compared with.

Tiny models on purpose: what is tested is who computes and sends what. Arrays travel as numpy, since a tensor sent
between processes lives in memory shared with its sender.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.data.stream.batch import Inputs, make_inputs
from pretrain.data.stream.labels import IGNORED, label_text
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.model.hashed_numbers import noise_salt, row_keys
from pretrain.model.initialise import draw, initialise
from pretrain.model.loss import loss_sums
from pretrain.model.regulariser import regularisation
from pretrain.parallel.engine import Engine, StepResult
from pretrain.parallel.groups import Groups, make_groups
from pretrain.parallel.optimizer import main_grad

SEPARATORS = Separators(bos_id=1, eos_id=2)
SEQ_LEN = 8
VOCAB_SIZE = 32
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"norm": "layer", "positions": "learned", "activation": "gelu", "bias": "all", "tied_head": True},
    "qwen2": {"bias": "qkv", "num_key_value_heads": 2},
    "qwen3": {"qk_norm": "head", "head_size": 6, "num_key_value_heads": 2},
    "olmo": {"norm": "plain"},
    "olmo2": {"qk_norm": "all", "norm_place": "after"},
    "ouro": {"norm_place": "both"},
    "huginn": {"norm_place": "around", "norm": "layer", "bias": "qk", "embedding_scale": 4.0},
    "post-norm": {"norm_place": "sum"},
}


def tiny_config(
    family: str = "llama",
    *,
    tensor: int = 1,
    pipeline: int = 1,
    sequence: bool = False,
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    document_mask: bool = False,
) -> RunConfig:
    """A model of four loop layers of width 16, and enough micro-batches for any layout of four ranks.

    `global_batch` only has to pass the checks of the configuration: the engine takes as many rows as it is given.
    """
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "ffn_size": 24,
        "num_loop_layers": 4,
        "init_std": 0.2,
    }
    settings = {"steps": 10, "seq_len": SEQ_LEN, "global_batch": 16, "micro_batch": 1, "precision": "fp64"}
    return RunConfig.model_validate(
        {
            "model": {**shape, **FAMILIES[family], **(model or {})},
            "parallel": {"tensor": tensor, "pipeline": pipeline, "sequence": sequence},
            "data": {"document_mask": document_mask},
            "train": {**settings, **(train or {})},
            "optimizer": {"warmup_steps": 0, **(optimizer or {})},
        }
    )


def make_rows(num_rows: int, seed: int = 0) -> Tensor:
    """[n, s + 1] random tokens, about one in eight of them the begin of a document."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(2, VOCAB_SIZE, (num_rows, SEQ_LEN + 1), generator=generator)
    rows = rows.masked_fill(torch.rand(rows.shape, generator=generator) < 1 / 8, SEPARATORS.bos_id)
    return torch.from_numpy(label_text(rows.numpy(), SEPARATORS))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank holds of a tensor of the model."""

    name: str
    dim: int | None
    """Dim that is split over tensor-parallel ranks."""
    index: int
    count: int
    values: np.ndarray

    def of(self, whole: Tensor) -> Tensor:
        """The same part of a whole tensor."""
        return whole if self.dim is None else whole.chunk(self.count, self.dim)[self.index]


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What one rank saw and holds after some steps."""

    results: list[StepResult]
    weights: list[Part]
    gradients: list[Part]
    """Sums over the whole batch; meaningful where the optimizer is replicated."""


@dataclass(kw_only=True)
class Reference:
    """One process, plain torch: loss and gradients of a batch by autograd of `LoopedGPT.forward`, without the
    engine."""

    config: RunConfig
    shake: bool = False
    """As in `make_engine`."""
    model: LoopedGPT = field(init=False)

    def __post_init__(self) -> None:
        self.model = LoopedGPT(self.config.model, self.config.train.seq_len)
        initialise(self.model, self.config.run.seed)
        self.model.to(DTYPES[self.config.train.precision])
        if self.shake:
            shake_vectors(self.model, 0, 1)

    def loss(self, rows: Tensor, num_loops: int) -> tuple[Tensor, Tensor, Tensor]:
        """(what is differentiated, negative log-likelihood per token, regularisation)."""
        inputs = make_inputs(rows, SEPARATORS.bos_id, self.config.data.document_mask)
        states = self.model(
            inputs.tokens, num_loops, positions=inputs.positions, documents=inputs.documents,
            noise_rows=row_keys(inputs.tokens, noise_salt(self.config.run.seed, 0)),
        )  # fmt: skip
        total, nll = loss_sums(self.model, states, inputs.labels, self.config.train.z_loss_weight)
        if self.config.train.loop_loss.over != "last":
            total = self._over_loops(inputs, num_loops)
        num_supervised = (inputs.labels != IGNORED).sum()
        pull = torch.zeros(())
        if self.config.model.loop_regulariser.weight:
            pull = regularisation(self.model)
        return total / num_supervised + pull, nll / num_supervised, pull

    def _over_loops(self, inputs: Inputs, num_loops: int) -> Tensor:
        """What is minimised where the loss is of every loop: a sum over tokens, in one graph of plain torch; with a
        short run of half the loops."""
        short_loops = max(1, num_loops // 2)
        model, settings = self.model, self.config.train.loop_loss
        context = model.context(
            inputs.tokens, positions=inputs.positions, documents=inputs.documents,
            noise_rows=row_keys(inputs.tokens, noise_salt(self.config.run.seed, 0)),
        )  # fmt: skip
        states, carried = model.begin(inputs.tokens, context)
        losses, z_losses, stops, finals, labels = [], [], [], [], inputs.labels.flatten()
        for loop in range(num_loops):
            states = model.run_loop(model.enter(states, carried, loop), context, loop)
            finals.append(model.finish(states, context, loop + 1))
            logits = model.logits(finals[-1])
            z_losses.append(self.config.train.z_loss_weight * logits.logsumexp(-1).square() * (labels >= 0))
            losses.append(cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED))
            if settings.over == "expected":
                state = states.unflatten(-1, (-1, model.config.hidden_size)).mean(-2)  # of all streams
                unit = state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()
                unit = state if model.config.loop.exit == "linear" else unit
                stops.append((unit @ model.exit["direction"] + model.exit["bias"]).sigmoid())
        if settings.over == "expected":
            left, shares = torch.ones_like(stops[0]), []
            for stop in [*stops[:-1], torch.ones_like(stops[0])]:
                shares.append(left * stop)
                left = left * (1 - stop)
            p = torch.stack(shares)
            prior = torch.tensor([0.75**loop for loop in range(num_loops)], dtype=torch.float64)  # of mean 4
            kl = (p * (p / (prior / prior.sum())[:, None]).log()).sum(0) * (labels >= 0)
            of_tokens = (p * torch.stack(losses) + p.detach() * torch.stack(z_losses)).sum(0)
            return (of_tokens + settings.prior_weight * kl).sum()
        if settings.over == "consistent":
            of_loops = (torch.stack(losses) + torch.stack(z_losses)).sum(-1)
            if num_loops == 1:
                return of_loops[0]
            apart = (finals[short_loops - 1] - finals[-1].detach()).square().mean(-1) * (labels >= 0)
            return of_loops[-1] + 0.3 * of_loops[short_loops - 1] + 0.7 * apart.sum()
        raw = {"uniform": [1.0] * num_loops, "linear": [loop + 1.0 for loop in range(num_loops)]}.get(
            str(settings.weights), [*settings.weights, *[settings.weights[-1]] * num_loops][:num_loops]
        )
        weights = torch.tensor([float(weight) for weight in raw], dtype=torch.float64)
        return (weights / weights.sum()) @ (torch.stack(losses) + torch.stack(z_losses)).sum(-1)

    @torch.no_grad()
    def minimised(self, rows: Tensor, num_loops: int) -> float:
        """What the step minimises, per token, without the z-loss."""
        config = self.config
        train = config.train.model_copy(update={"z_loss_weight": 0.0})
        self.config = config.model_copy(update={"train": train})
        total, _, _ = self.loss(rows, num_loops)
        self.config = config
        return total.item()

    def backward(self, rows: Tensor, num_loops: int) -> tuple[float, float, float]:
        """Fill the gradients; (negative log-likelihood per token, regularisation, gradient norm)."""
        self.model.zero_grad()
        total, nll, pull = self.loss(rows, num_loops)
        total.backward()
        squares = [gradient.double().square().sum() for gradient in self.gradients().values()]
        return nll.item(), pull.item(), torch.stack(squares).sum().sqrt().item()

    def gradients(self) -> dict[str, Tensor]:
        return {name: parameter.grad for name, parameter in self.model.named_parameters() if parameter.grad is not None}

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


@torch.no_grad()
def shake_vectors(model: LoopedGPT, tensor_rank: int, tensor_size: int) -> None:
    """Move what begins as 1 or 0 off it, norm weights and biases, where adding a bias twice or leaving it out would not
    show."""
    for name, parameter in model.named_parameters():
        weight = model.weights[name]
        if parameter.dim() == 1 or weight.init in ("zeros", "ones"):
            noise = 0.2 * draw(weight.shape, 0, f"shake/{name}").to(parameter.dtype)
            parameter.add_(noise if weight.split is None else noise.chunk(tensor_size, weight.split)[tensor_rank])


def make_engine(config: RunConfig, *, shake: bool = False) -> tuple[Engine, Groups]:
    """An engine in the world of this case. With `shake`, vectors leave their initial values (the master weights do not:
    for one step)."""
    groups = make_groups(config.parallel, torch.device("cpu"))
    engine = Engine(config, groups, SEPARATORS)
    if shake:
        shake_vectors(engine.model, groups.tensor.rank(), groups.tensor.size())
    return engine, groups


def own_rows(rows: Tensor, groups: Groups) -> Tensor:
    """The rows of this data-parallel rank."""
    return rows[groups.data.rank() :: groups.data.size()]


def tokens_in_the_block(config: RunConfig, rows: Tensor, counts: list[int]) -> int:
    """Tokens that enter the first layer of the loop block on this stage in a step."""
    engine, groups = make_engine(config)
    seen: list[int] = []
    layer: Any = next(iter(engine.model.loop.values()))
    layer.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    engine.train_step(own_rows(rows, groups), counts, 0.0)
    return sum(seen)


def report(engine: Engine, results: Sequence[StepResult]) -> RankReport:
    model, groups = engine.model, engine.groups
    named = dict(model.named_parameters())
    return RankReport(
        results=list(results),
        weights=[make_part(model, groups, name, parameter) for name, parameter in named.items()],
        gradients=[make_part(model, groups, name, main_grad(parameter)) for name, parameter in named.items()],
    )


def make_part(model: LoopedGPT, groups: Groups, name: str, values: Tensor) -> Part:
    """This rank's part of a parameter, or of its gradient, as numbers."""
    wide = values.float() if values.dtype == torch.bfloat16 else values
    return Part(
        name=model.stored_name(name), dim=model.weights[name].split, index=groups.tensor.rank(),
        count=groups.tensor.size(), values=wide.detach().clone().numpy(),
    )  # fmt: skip


def one_step(
    config: RunConfig,
    rows: Tensor,
    num_loops: int | Sequence[int],
    backprop_loops: int | None = None,
    backend: str | None = None,
) -> RankReport:
    """One step at learning rate 0, with shaken vectors, for loss and gradients; `num_loops` may be of each row. With a
    backend of torch.compile its layers are compiled."""
    engine, groups = make_engine(config, shake=True)
    if backend is not None:
        engine.model.compile_layers(backend)
    if not isinstance(num_loops, int):
        num_loops = num_loops[groups.data.rank() :: groups.data.size()]
    short_loops = max(1, num_loops // 2) if isinstance(num_loops, int) else 1
    result = engine.train_step(
        own_rows(rows, groups), num_loops, 0.0, backprop_loops=backprop_loops, short_loops=short_loops
    )
    return report(engine, [result])


def gradient_errors(reports: Sequence[RankReport], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest error of each gradient on any rank, over the largest entry of all gradients."""
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    errors: dict[str, float] = {}
    for part in (part for report in reports for part in report.gradients):
        error = np.abs(part.values - part.of(wanted[part.name]).numpy()).max() / largest
        errors[part.name] = max(errors.get(part.name, 0.0), float(error))
    return errors


@dataclass(frozen=True, kw_only=True)
class SavedPart:
    """A piece of a checkpoint as it travels."""

    name: str
    shape: tuple[int, ...]
    dim: int | None
    index: int
    count: int
    start: int
    values: np.ndarray


def saved_parts(engine: Engine) -> list[SavedPart]:
    """What this rank would save: its share of fp32 weights and optimizer state."""
    return [
        SavedPart(
            name=piece.name, shape=piece.shape, dim=piece.partition_dim, index=piece.partition_index,
            count=piece.partition_count, start=piece.start, values=piece.tensor.clone().numpy(),
        )
        for piece in engine.pieces()
    ]  # fmt: skip


def save(engine: Engine, folder: str, step: int) -> None:
    """Write a checkpoint of this step. Collective."""
    store = CheckpointStore(
        directory=folder, rank=dist.get_rank(), world_size=dist.get_world_size(), nonce="test", keep_last=1,
        keep_every=0, asynchronous=True, timeout_s=60,
    )  # fmt: skip
    dist.barrier()
    store.save(step, engine.pieces(), {})
    store.wait()


def saved_tensors(parts_of_ranks: Sequence[Sequence[SavedPart]]) -> dict[str, Tensor]:
    """Logical tensors from what all ranks save; every element must be there exactly once."""
    found: dict[str, Tensor] = {}
    times: dict[str, Tensor] = {}
    for part in (part for parts in parts_of_ranks for part in parts):
        places = torch.arange(prod(part.shape)).view(part.shape)
        held = (places if part.dim is None else places.chunk(part.count, part.dim)[part.index]).reshape(-1)
        held = held[part.start : part.start + part.values.size]
        values = torch.from_numpy(part.values)
        found.setdefault(part.name, torch.zeros(prod(part.shape), dtype=values.dtype))[held] = values
        times.setdefault(part.name, torch.zeros(prod(part.shape), dtype=torch.int64))[held] += 1
    for name, count in times.items():
        assert (count == 1).all(), f"{name}: elements are saved {count.min()} to {count.max()} times"
    shapes = {part.name: part.shape for parts in parts_of_ranks for part in parts}
    return {name: tensor.view(shapes[name]) for name, tensor in found.items()}


def world_size(config: RunConfig, data: int = 1) -> int:
    """Ranks that a configuration and a data-parallel size make."""
    return config.parallel.tensor * config.parallel.pipeline * data
