"""A machine without GPUs as the planner takes it (`--gpu cpu`): what a rank needs for each piece of a step, measured
here in seconds, in the place of the formulas of `cost.py`; what the pieces make is planned as for GPUs.

A piece is a layer forward and backward, the embedding, head and loss, the addition of gradients to their buffers, and
the update of weights, each in the sizes of the plan and run by the code that training runs; so are the ways in which
ranks send (`messages.py`). Times are medians; with one thread by the processor's clock, on which others that use the
machine show little.

Not known: what ranks take from each other, as they share memory and caches.
"""

import math
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from pretrain.config.run import OptimizerSection, Precision, RunConfig
from pretrain.device.hardware import DTYPES, measure_flops
from pretrain.device.host_memory import installed_memory, keep_freed_memory
from pretrain.model.config import ModelSection, Recompute
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.loss import loss_sums
from pretrain.optim.make import fill_state, make_optimizer, parameter_groups
from pretrain.plan.machine import CPU, Gpu, Sending
from pretrain.plan.messages import seconds_to_send

MOST_TOKENS = 4096
"""Of a measured piece; more take as many times longer."""
MEASURE_S, LEAST_TIMES = 0.6, 5
"""How long a piece is measured, and how often at least."""
MESSAGE = 512 << 10
"""Bytes of what is sent to measure the rate of connections."""


def measured_machine(config: RunConfig, num_ranks: int) -> Gpu:
    """This machine, for so many ranks, each with as many threads as `pretrain.launch` gives it.

    Raises:
        ValueError: there are more ranks than cores, or the configuration asks for compiled layers.
    """
    cores = os.cpu_count() or 1
    if num_ranks > cores:
        raise ValueError(f"--gpus {num_ranks} --gpu cpu: ranks of this machine, which has {cores} cores")
    if config.train.compile:
        raise ValueError("train.compile=true: --gpu cpu measures layers as they are without it; leave it out")
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, cores // num_ranks))))
    pieces = CpuPieces()
    rate = MESSAGE / pieces.sending("message", MESSAGE, 4, 2)
    return Gpu(
        name=CPU, peak_flops=measure_flops(torch.device("cpu"), DTYPES[config.train.precision]),
        memory=(installed_memory() or math.inf) / num_ranks, memory_rate=4 / _addition("fp32")[0],
        link_rate=rate, network_rate=rate, per_node=num_ranks, pieces=pieces,
    )  # fmt: skip


class CpuPieces:
    """What a rank of this machine takes, with the threads of this process, see `Pieces` in `machine.py`. Each piece is
    measured once."""

    def __init__(self) -> None:
        self._known = dict[str, tuple[float, float]]()
        self._sent = dict[tuple[Sending, float, int, int], float]()

    def layer(self, config: RunConfig) -> tuple[float, float]:
        is_selective = config.train.chosen_recompute == "selective"
        return self._scaled(config, _selective_layer if is_selective else _layer)

    def embedding(self, config: RunConfig) -> float:
        return sum(self._scaled(config, _embedding))

    def head(self, config: RunConfig) -> float:
        return sum(self._scaled(config, _head))

    def addition(self, config: RunConfig) -> float:
        return sum(self._once(_addition, config.train.precision))

    def update(self, config: RunConfig) -> float:
        return sum(self._once(_update, _one_layer(config), config.train.precision, config.optimizer))

    def sending(self, way: Sending, size: float, number: int, num_ranks: int) -> float:
        key = (way, size, number, num_ranks)
        if key not in self._sent:
            self._sent[key] = seconds_to_send(*key)
        return self._sent[key]

    def _once(self, measure: Callable[..., tuple[float, float]], *arguments: object) -> tuple[float, float]:
        key = f"{measure.__name__}{arguments}"
        if key not in self._known:
            self._known[key] = measure(*arguments)
        return self._known[key]

    def _scaled(self, config: RunConfig, measure: Callable[..., tuple[float, float]]) -> tuple[float, float]:
        """Seconds of a piece, of a micro-batch."""
        train = config.train
        sequences = min(train.micro_batch, max(1, MOST_TOKENS // train.seq_len))
        ahead, back = self._once(measure, _one_layer(config), train.seq_len, sequences, train.precision)
        return ahead * train.micro_batch / sequences, back * train.micro_batch / sequences


def _one_layer(config: RunConfig) -> ModelSection:
    """The model with one plain layer, and of that what one of the tensor-parallel ranks holds."""
    model, tensor = config.model, config.parallel.tensor
    plain = ModelSection()
    return model.model_copy(
        update={
            "num_prelude_layers": 0, "num_loop_layers": 1, "num_loops": 1, "num_coda_layers": 0, "loop": plain.loop,
            "loop_regulariser": plain.loop_regulariser, "head_size": model.head_dim,
            "num_attention_heads": model.num_attention_heads // tensor,
            "num_key_value_heads": model.kv_heads // tensor, "ffn_size": model.ffn_size // tensor,
            "vocab_size": model.vocab_size // tensor,
        }
    )  # fmt: skip


def _layer(
    model: ModelSection, seq_len: int, sequences: int, precision: Precision, recompute: Recompute = "none"
) -> tuple[float, float]:
    built, tokens = _built(model, seq_len, precision, recompute), _tokens(model, seq_len, sequences)
    context, states = built.context(tokens), _states(built, tokens)
    return _both_ways(lambda: built.run_loop(states, context, 0), built)


def _selective_layer(model: ModelSection, seq_len: int, sequences: int, precision: Precision) -> tuple[float, float]:
    return _layer(model, seq_len, sequences, precision, "selective")


def _embedding(model: ModelSection, seq_len: int, sequences: int, precision: Precision) -> tuple[float, float]:
    built, tokens = _built(model, seq_len, precision), _tokens(model, seq_len, sequences)
    return _both_ways(lambda: built.begin(tokens, built.context(tokens))[0], built)


def _head(model: ModelSection, seq_len: int, sequences: int, precision: Precision) -> tuple[float, float]:
    built, tokens = _built(model, seq_len, precision), _tokens(model, seq_len, sequences)
    context, states = built.context(tokens), _states(built, tokens)
    return _both_ways(lambda: loss_sums(built, built.finish(states, context, 1), tokens)[0], built)


def _addition(precision: Precision) -> tuple[float, float]:
    """Seconds in which one number of a gradient joins the sum, and nothing else."""
    dtype = DTYPES[precision]
    gradient, total = (
        torch.ones(1 << 22, dtype=dtype),
        torch.zeros(1 << 22, dtype=torch.promote_types(dtype, torch.float32)),
    )
    return _one_way(lambda: total.add_(gradient)) / total.numel(), 0.0


def _update(model: ModelSection, precision: Precision, settings: OptimizerSection) -> tuple[float, float]:
    """Seconds of an update for each weight that it is of, and nothing else: gradients to zero, their norm, clipping,
    the optimizer."""
    built = _built(model, 1, "fp32")
    weights = dict(built.loop.named_parameters(prefix="loop"))
    optimizer = make_optimizer(parameter_groups(weights.items(), built.weights, settings), settings)
    fill_state(optimizer, settings)
    gradients: list[Tensor] = [torch.full_like(weight, 1e-3) for weight in weights.values()]
    narrow = [torch.empty_like(weight, dtype=DTYPES[precision]) for weight in weights.values()]
    for weight, gradient in zip(weights.values(), gradients, strict=True):
        weight.grad = gradient

    def step() -> None:
        torch._foreach_norm(gradients)  # type: ignore[attr-defined]
        torch._foreach_mul_(gradients, 0.999)  # type: ignore[attr-defined]
        optimizer.step()
        if precision == "bf16":
            with torch.no_grad():
                torch._foreach_copy_(narrow, list(weights.values()))  # type: ignore[attr-defined]
        for gradient in gradients:
            gradient.zero_()

    return _one_way(step) / sum(gradient.numel() for gradient in gradients), 0.0


def _built(model: ModelSection, seq_len: int, precision: Precision, recompute: Recompute = "none") -> LoopedGPT:
    built = LoopedGPT(model, seq_len, recompute=recompute)
    initialise(built, seed=0)
    return built.to(DTYPES[precision])


def _tokens(model: ModelSection, seq_len: int, sequences: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.vocab_size, (sequences, seq_len), generator=generator)


def _states(built: LoopedGPT, tokens: Tensor) -> Tensor:
    """[t, d] that enter a layer, with a gradient."""
    generator, dtype = torch.Generator().manual_seed(0), next(built.parameters()).dtype
    states = torch.randn(tokens.numel(), built.config.hidden_size, generator=generator)
    return states.to(dtype).requires_grad_()


def _both_ways(run: Callable[[], Tensor], built: nn.Module) -> tuple[float, float]:
    """Seconds of a piece forward and backward, medians."""
    gradient = torch.ones_like(run())
    ahead, back = list[float](), list[float]()
    began = _clock()
    while len(ahead) < LEAST_TIMES or _clock() - began < MEASURE_S:
        built.zero_grad()
        started = _clock()
        output = run()
        between = _clock()
        output.backward(gradient)
        ahead.append(between - started)
        back.append(_clock() - between)
    return median(ahead), median(back)


def _one_way(run: Callable[[], object]) -> float:
    """Seconds of what is run, a median."""
    times, began = list[float](), _clock()
    while len(times) < LEAST_TIMES or _clock() - began < MEASURE_S:
        started = _clock()
        run()
        times.append(_clock() - started)
    return median(times)


def _clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
