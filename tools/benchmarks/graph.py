"""One loop as a CUDA graph that is replayed L times, against the loop as it is run: is what it gives the same, and is
it faster? Without a GPU the same two functions are called in place of replays, which shows that the numbers are right.

A graph has one set of buffers, so what a pass keeps for its backward pass would be overwritten by the next one. So no
pass keeps anything: the forward graph is replayed L times and what enters each pass is copied aside, the backward graph
computes one pass again and then its gradients, which join those of the other loops. That is `train.recompute=loop`, and
with it, and with the loop as it is, the replayed one is compared.
"""

import argparse
from collections.abc import Callable, Sequence
from statistics import median

import torch
from benchmarks.measure import Row, Turns, add_rounds, row, timed
from benchmarks.train import LARGE, SMALL
from torch import Tensor

from pretrain.model.config import ModelSection, Recompute
from pretrain.model.gpt import LoopedGPT
from pretrain.model.initialise import initialise
from pretrain.model.layers import Context

LOOPS, LAYERS = 4, 4
MOST_DIFFERENCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Of gradients as one vector, relative: of two ways to add them up."""
Gradients = Sequence[Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_rounds(parser, "graph", 10)


def run(args: argparse.Namespace) -> list[Row]:
    shape, sizes, dtype, device = SMALL, [(1, 128)], torch.float32, torch.device("cpu")
    if torch.cuda.is_available():
        shape, sizes, dtype, device = LARGE, [(1, 512), (1, 2048), (8, 2048)], torch.bfloat16, torch.device("cuda")
    shape = shape.model_copy(update={"vocab_size": 16, "num_loop_layers": LAYERS, "num_loops": LOOPS})
    return [each for size in sizes for each in _measure(shape, *size, dtype, device, args.graph_rounds)]


def _measure(
    shape: ModelSection, sequences: int, seq_len: int, dtype: torch.dtype, device: torch.device, rounds: Turns
) -> list[Row]:
    built = {way: make_block(shape, seq_len, dtype, device, way) for way in ("none", "loop")}
    compiled = make_block(shape, seq_len, dtype, device, "none")
    if device.type == "cuda":
        compiled.compile_layers()
    states, gradient = (torch.randn(sequences * seq_len, shape.hidden_size, device=device).to(dtype) for _ in range(2))
    tokens = torch.zeros(sequences, seq_len, dtype=torch.long, device=device)
    contenders: dict[str, Callable[[], Gradients]] = {
        "as it is": lambda: loops_of(built["none"], built["none"].context(tokens), states, gradient),
        "compiled": lambda: loops_of(compiled, compiled.context(tokens), states, gradient),
        "recomputed": lambda: loops_of(built["loop"], built["loop"].context(tokens), states, gradient),
    }
    graphs = {
        "replayed": ReplayedLoop(built["none"], built["none"].context(tokens), states),
        "compiled, replayed": ReplayedLoop(compiled, compiled.context(tokens), states),
    }
    for name, graph in graphs.items():
        contenders[name] = lambda graph=graph: graph.run(LOOPS, states, gradient)
    require_equal({name: run() for name, run in contenders.items()}, dtype)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in rounds.numbers():
        for name, contender in contenders.items():
            times[name].append(timed(_finished, contender, device))
    title = f"speed: {LAYERS}⊗{LOOPS} of width {shape.hidden_size}, {sequences} × {seq_len} tokens"
    plain = median(times["as it is"])
    return [
        row(f"{title}, loop {name}: time", median(seconds) / plain, "x", "", f"as it is, {1000 * plain:.1f} ms")
        for name, seconds in times.items()
        if name != "as it is"
    ]


def _finished(contender: Callable[[], Gradients], device: torch.device) -> None:
    contender()
    if device.type == "cuda":
        torch.cuda.synchronize()


def make_block(
    shape: ModelSection, seq_len: int, dtype: torch.dtype, device: torch.device, recompute: Recompute
) -> LoopedGPT:
    """A looped model of random weights, the same each time."""
    model = LoopedGPT(shape, seq_len, recompute=recompute)
    initialise(model, seed=0)
    return model.to(device, dtype)


def loops_of(model: LoopedGPT, context: Context, states: Tensor, gradient: Tensor) -> Gradients:
    """The gradients of the block's weights, and then of the states [t, d] that enter it, where the loops' output has
    this gradient."""
    weights, entering = list(model.loop.parameters()), states.detach().requires_grad_()
    left = entering
    for loop in range(LOOPS):
        left = model.run_loop(left, context, loop)
    return torch.autograd.grad(left, [*weights, entering], gradient)


class ReplayedLoop:
    """A pass over the block forward, and one computed again and backward, each captured once. Of designs in which all
    loops are alike."""

    def __init__(self, model: LoopedGPT, context: Context, like: Tensor) -> None:
        self._weights = list(model.loop.parameters())
        self._entering, self._gradient = torch.zeros_like(like), torch.zeros_like(like)
        self._left, self._sent = torch.zeros_like(like), torch.zeros_like(like)
        self._sums = [torch.zeros_like(weight) for weight in self._weights]

        def ahead() -> None:
            with torch.no_grad():
                self._left.copy_(model.run_loop(self._entering, context, 0))

        def back() -> None:
            entering = self._entering.detach().requires_grad_()
            output = model.run_loop(entering, context, 0)
            *of_weights, sent = torch.autograd.grad(output, [*self._weights, entering], self._gradient)
            torch._foreach_add_(self._sums, of_weights)  # type: ignore[attr-defined]
            self._sent.copy_(sent)

        self._ahead, self._back = _captured(ahead), _captured(back)

    def run(self, num_loops: int, states: Tensor, gradient: Tensor) -> Gradients:
        """As `loops_of`."""
        entered = []
        for total in self._sums:
            total.zero_()
        self._entering.copy_(states)
        for _ in range(num_loops):
            entered.append(self._entering.clone())
            self._ahead()
            self._entering.copy_(self._left)
        self._gradient.copy_(gradient)
        for each in reversed(entered):
            self._entering.copy_(each)
            self._back()
            self._gradient.copy_(self._sent)
        return [*(total.clone() for total in self._sums), self._sent.clone()]


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    """What replays a piece of work, captured after it ran a few times aside, as torch asks for; without a GPU the work
    itself."""
    if not torch.cuda.is_available():
        return work
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def require_equal(found: dict[str, Gradients], dtype: torch.dtype) -> None:
    """Raise a ValueError if a way to run the loops has other gradients than the loops as they are."""
    flat = {name: torch.cat([each.flatten().double() for each in gradients]) for name, gradients in found.items()}
    for name, gradients in flat.items():
        difference = ((gradients - flat["as it is"]).norm() / flat["as it is"].norm()).item()
        if not difference <= MOST_DIFFERENCE[dtype]:
            raise ValueError(
                f"the loop {name} has other gradients than as it is: {difference:.2g} of their length apart"
            )
