"""The optimizers by name: how each is made, what it keeps of a weight, and whether that can be sharded.

Everything that depends on the optimizer reads this table: the engine, checkpoints (the names of the states are theirs)
and the memory plan, for which the table does without torch. A new optimizer is one entry, and its name in
`optimizer.name`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pretrain.config.choice import choose
from pretrain.config.run import OptimizerSection

if TYPE_CHECKING:
    from torch.optim import Optimizer

Shape = tuple[int, ...]
Group = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """One optimizer."""

    make: Callable[[list[Group], OptimizerSection], "Optimizer"]
    """Made of parameter groups, which have their weight decay and may have a share of the learning rate, `lr_scale`."""
    states: Callable[[Shape], dict[str, Shape]]
    """Shape of a weight -> name and shape of each tensor that is kept for it, of its type and zero before the first
    step."""
    counts_steps: bool
    """Whether "step", the number of updates, is kept for each weight too."""
    shards: bool
    """Whether data-parallel ranks can each keep and update a flat range of the weights: an optimizer of single elements
    that Megatron's distributed optimizer takes, which is Adam's family alone."""


def _adamw(groups: list[Group], settings: OptimizerSection) -> "Optimizer":
    """AdamW in its fused form (Loshchilov and Hutter 2019)."""
    from torch.optim import AdamW

    betas = (settings.beta1, settings.beta2)
    return AdamW(groups, lr=settings.lr, betas=betas, eps=settings.epsilon, fused=True)


def _adafactor(groups: list[Group], settings: OptimizerSection) -> "Optimizer":
    """Adafactor as torch has it (Shazeer and Stern 2018)."""
    from torch.optim import Adafactor

    return Adafactor(groups, lr=settings.lr)


def _factored(shape: Shape) -> dict[str, Shape]:
    """Second moments as rows and columns; of a vector, whole."""
    if len(shape) < 2:
        return {"variance": shape}
    return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}


OPTIMIZERS = {
    "adamw": OptimizerKind(
        make=_adamw, states=lambda shape: {"exp_avg": shape, "exp_avg_sq": shape}, counts_steps=True, shards=True
    ),
    "adafactor": OptimizerKind(make=_adafactor, states=_factored, counts_steps=True, shards=False),
}


def optimizer_kind(settings: OptimizerSection) -> OptimizerKind:
    """The table's entry.

    Raises:
        ValueError: there is none of this name.
    """
    return choose(OPTIMIZERS, settings.name, "optimizer.name")


def is_sharded(settings: OptimizerSection, precision: str) -> bool:
    """Whether its state is sharded over the data-parallel ranks: if it can be, and not in fp64, which Megatron's
    distributed optimizer does not know."""
    return optimizer_kind(settings).shards and precision != "fp64"
