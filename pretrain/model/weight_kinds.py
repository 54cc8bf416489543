"""One weight, described without torch: shape, split, initial value, decay, gradient; and the kinds that models use."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Init = Literal["normal", "residual", "ones", "zeros"]
PartialUnder = Literal["never", "tensor", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter tensor."""

    shape: tuple[int, ...]
    """Logical shape, before tensor parallelism."""
    split: int | None = None
    """Dimension that is cut into equal parts for the tensor-parallel ranks, or None: every rank holds all of it."""
    init: Init | float
    """Normal with model.init_std; the same over sqrt(2 · effective depth), for projections into the residual stream;
    ones; zeros; a number that fills it."""
    std: float | None = None
    """Standard deviation of a normal one in place of model.init_std."""
    decays: bool = False
    """Whether weight decay pulls it towards zero."""
    is_table: bool = False
    """Whether each of its rows belongs to a token, a position or a loop: embeddings, the head, tables of loops."""
    partial_under: PartialUnder = "never"
    """When a rank's gradient is only a part, to be summed over the tensor-parallel ranks. "tensor": a weight that every
    rank holds and uses behind `ParallelOps.to_split`, so each sees its own heads or columns. "sequence": one that is
    used between the split regions, where under sequence parallelism each rank sees its own tokens. "never": a split
    weight, or one used before the tokens are cut."""

    @property
    def constant(self) -> float | None:
        """The number that fills it at the start; None where it is drawn."""
        return self.init if isinstance(self.init, float) else {"ones": 1.0, "zeros": 0.0}.get(str(self.init))

    def std_of(self, stds: Mapping[Any, float]) -> float:
        """Standard deviation at the start, where it is drawn; `stds` are those of the kinds of init."""
        return stds[self.init] if self.std is None else self.std

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_hidden_matrix(self) -> bool:
        """Whether it maps states to states: a matrix that is no table."""
        return len(self.shape) == 2 and not self.is_table

    def held_shape(self, num_ranks: int) -> tuple[int, ...]:
        """Shape of the part that one of `num_ranks` tensor-parallel ranks holds."""
        return tuple(size // num_ranks if dim == self.split else size for dim, size in enumerate(self.shape))


Weights: TypeAlias = Mapping[str, Weight]
"""Weights by name: the path inside their module, as in the state dict."""


def under(weights: Weights, name: str) -> dict[str, Weight]:
    """The weights of one module, by their path inside it."""
    prefix = f"{name}."
    return {path.removeprefix(prefix): weight for path, weight in weights.items() if path.startswith(prefix)}


def inside(parts: Mapping[str, Weights]) -> dict[str, Weight]:
    """The weights of several modules, by module, as those of the module around them."""
    return {f"{part}.{name}": weight for part, weights in parts.items() for name, weight in weights.items()}


def column(inputs: int, outputs: int, bias: bool = False) -> Weights:
    """A linear layer [outputs, inputs] whose outputs are split."""
    matrix = Weight(shape=(outputs, inputs), split=0, init="normal", decays=True)
    return {"weight": matrix, **({"bias": Weight(shape=(outputs,), split=0, init="zeros")} if bias else {})}


def row(inputs: int, outputs: int, bias: bool = False) -> Weights:
    """A linear layer into the residual stream whose inputs are split; its bias is added after the sum over ranks."""
    matrix = Weight(shape=(outputs, inputs), split=1, init="residual", decays=True)
    return {"weight": matrix, **({"bias": stream_vector(outputs, "zeros")} if bias else {})}


def stream_vector(size: int, init: Init | float) -> Weight:
    """A vector that is used on the residual stream, between the split regions."""
    return Weight(shape=(size,), init=init, partial_under="sequence")


def loop_table(rows: int, width: int, init: Init) -> Weight:
    """A table of vectors [rows, width] that are used on the residual stream, chosen or mixed by the number of the
    loop."""
    return Weight(shape=(rows, width), init=init, is_table=True, partial_under="sequence")


def square(width: int) -> Weights:
    """A matrix [width, width] from residual stream to residual stream, whole on every rank. It keeps most of the
    variance of its input (Geiping et al. 2025, section 4: std of sqrt(2/(5·width)))."""
    std = math.sqrt(2 / (5 * width))
    return {"weight": Weight(shape=(width, width), init="normal", std=std, decays=True, partial_under="sequence")}
