"""GPUs and networks as the planner knows them: data-sheet rates, and the shares of them that training software reaches.

Rates of a card are its vendor's (data sheets of NVIDIA's DGX and HGX systems). The shares in `Software` are fitted to
published runs of plain models and held to them by tests (`tests/unit/plan/test_published.py`, where the sources are).
No GPU has run this project's code: `tools/gpu_check.sh` is what replaces the fit by measurement.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from pretrain.config.run import RunConfig
from pretrain.device.gpus import BF16_DENSE_TFLOPS
from pretrain.schema.choice import choose

Sending = Literal["sum", "scatter", "gather", "message"]
"""How ranks send: all-reduce, reduce-scatter, all-gather, and from one to the next."""


class Pieces(Protocol):
    """Seconds that a rank takes for the pieces of a step in a configuration, where these are measured."""

    def layer(self, config: RunConfig) -> tuple[float, float]:
        """A layer applied to a micro-batch, forward and backward."""
        ...

    def embedding(self, config: RunConfig) -> float:
        """Both ways."""
        ...

    def head(self, config: RunConfig) -> float:
        """Final norm, head and loss, both ways."""
        ...

    def addition(self, config: RunConfig) -> float:
        """Of one number of a gradient to its buffer."""
        ...

    def update(self, config: RunConfig) -> float:
        """Of one weight."""
        ...

    def sending(self, way: Sending, size: float, number: int, num_ranks: int) -> float:
        """Of `size` bytes in numbers of `number` bytes between so many ranks, see `messages.py`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card, and how it is connected; bytes and bytes a second, in one direction."""

    name: str
    peak_flops: float
    """Dense bf16."""
    memory: float
    """What the driver reports, of which `USABLE` can be planned with."""
    memory_rate: float
    link_rate: float
    """To the other GPUs of its node (NVLink)."""
    network_rate: float
    """Of its share of the node's network."""
    per_node: int = 8
    pieces: Pieces | None = None
    """Measured, in place of what rates give; of a CPU (`measured.py`)."""


def _gpu(name: str, part: str, gib: float, memory_rate: float, link_rate: float, network_rate: float) -> Gpu:
    peak = 1e12 * dict(BF16_DENSE_TFLOPS)[part]
    return Gpu(
        name=name, peak_flops=peak, memory=gib * 2**30, memory_rate=memory_rate, link_rate=link_rate,
        network_rate=network_rate,
    )  # fmt: skip


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100", "A100", 79.3, 2.04e12, 300e9, 25e9),
        _gpu("h100", "H100", 79.6, 3.35e12, 450e9, 50e9),
        _gpu("h200", "H200", 140.4, 4.8e12, 450e9, 50e9),
        _gpu("b200", "B200", 178.0, 8.0e12, 900e9, 50e9),
    )
}
"""Cards with NVLink in nodes of eight, as in DGX and HGX systems, one network port a GPU."""

CPU = "cpu"
"""The name of the machine that plans, whose pieces of a step are measured."""
USABLE = 0.92
"""Of a card's memory: the rest is the framework's own (CUDA context, NCCL's buffers) and fragmentation."""


def find_gpu(name: str) -> Gpu:
    """A card by its name, in any case.

    Raises:
        ValueError: it is not known; names the nearest.
    """
    return choose(GPUS, name.lower(), "--gpu")


@dataclass(frozen=True, kw_only=True)
class Software:
    """What training software reaches of the rates of a card, and what of the traffic it hides behind computation."""

    matrices: float = 0.65
    """Share of the peak that a large matrix product reaches, its operands' traffic apart."""
    attention_forward: float = 0.33
    """Share of the peak that causal attention reaches on the products it needs, half of s × s; FlashAttention 2."""
    attention_backward: float = 0.26
    links: float = 0.8
    """Share of the rates of NVLink and network that collectives reach."""
    passes: float = 1.0
    """Times that states, heads and feed-forward widths cross memory, relative to fused kernels."""
    launch: float = 4e-6
    """Seconds to start a kernel: the least that one takes."""
    kernels: int = 12
    """Of one layer forward; twice as many backward."""
    hidden_tensor: float = 0.0
    """Shares of traffic that is hidden behind computation: of tensor-parallel collectives,"""
    hidden_data: float = 0.0
    """of the reduction of gradients and the gathering of weights, at the least,"""
    hidden_ring: float = 1.0
    """and of the messages between stages."""


COMPILED = Software()
"""Ours compiled, as it is on GPUs unless train.compile=false: collectives wait, but for what `parallel.overlap` hides
of the reduction of gradients (`cost.py`); messages of the ring overlap."""
EAGER = Software(passes=2.6, kernels=30)
"""Ours without."""
MEASURED = Software(matrices=1.0, links=1.0, launch=0.0, hidden_ring=0.0)
"""Ours where pieces and rates are measured."""
