"""The optimizers by name: how each is made, what it keeps of a weight, and whether that can be sharded.

Everything that depends on the optimizer reads this table: the engine, checkpoints (the names of the states are theirs)
and the memory plan, for which the table does without torch. A new optimizer is one entry, and its name in
`optimizer.name`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pretrain.config.run import OptimizerSection
from pretrain.model.weight_kinds import Weight
from pretrain.schema.choice import choose
from pretrain.schema.plugin import EXAMPLE, is_plugin, load_plugin

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
    matrices: "OptimizerKind | None" = None
    """What updates the hidden matrices (`Weight.is_hidden_matrix`) in place of this optimizer, which has the rest."""

    def for_weight(self, weight: Weight) -> "OptimizerKind":
        """The optimizer that updates a weight: this one, or the one for matrices."""
        return self.matrices if self.matrices is not None and weight.is_hidden_matrix else self


def _adamw(groups: list[Group], settings: OptimizerSection) -> "Optimizer":
    """AdamW in its fused form (Loshchilov and Hutter 2019)."""
    from torch.optim import AdamW

    betas = (settings.beta1, settings.beta2)
    return AdamW(groups, lr=settings.lr, betas=betas, eps=settings.epsilon, fused=True)


def _adafactor(groups: list[Group], settings: OptimizerSection) -> "Optimizer":
    """Adafactor as in T5, at the rate of the schedule."""
    from pretrain.optim.adafactor import ScheduledAdafactor

    return ScheduledAdafactor(groups, lr=settings.lr)


def factored(shape: Shape) -> dict[str, Shape]:
    """Second moments as rows and columns; of a vector, whole."""
    if len(shape) < 2:
        return {"variance": shape}
    return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}


def _adamw_beside_muon(groups: list[Group], settings: OptimizerSection) -> "Optimizer":
    """AdamW at its own learning rate."""
    scale = 1.0 if settings.adamw_lr is None else settings.adamw_lr / settings.lr
    return _adamw([{**group, "lr_scale": scale} for group in groups], settings)


def _muon(groups: list[Group], settings: OptimizerSection) -> "Optimizer":
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) as torch has it, with the updates scaled to the RMS
    of AdamW's, so that its learning rates and weight decay fit (Liu et al. 2025, arXiv 2502.16982, equation 4).

    torch's smallest norm of 1e-7 is that of a gradient which a large model can have; 1e-30 only keeps 0 from 0 / 0.
    """
    from torch.optim import Muon

    return Muon(groups, lr=settings.lr, momentum=settings.momentum, eps=1e-30, adjust_lr_fn="match_rms_adamw")


ADAMW = OptimizerKind(
    make=_adamw, states=lambda shape: {"exp_avg": shape, "exp_avg_sq": shape}, counts_steps=True, shards=True
)
OPTIMIZERS = {
    "adamw": ADAMW,
    "adafactor": OptimizerKind(make=_adafactor, states=factored, counts_steps=True, shards=False),
    "muon": replace(
        ADAMW,
        make=_adamw_beside_muon,
        shards=False,
        matrices=OptimizerKind(
            make=_muon, states=lambda shape: {"momentum_buffer": shape}, counts_steps=False, shards=False
        ),
    ),
}


def optimizer_kind(settings: OptimizerSection) -> OptimizerKind:
    """The table's entry, or that of a user's file (`pretrain/EXTENDING.md`).

    Raises:
        ValueError: there is none of this name, or it is no such entry.
    """
    if is_plugin(settings.name):
        found = load_plugin(settings.name, "optimizer.name")
        if not isinstance(found, OptimizerKind):
            raise ValueError(
                f"optimizer.name={settings.name}: is no pretrain.optim.optimizers.OptimizerKind, {EXAMPLE}"
            )
        if found.shards or (found.matrices is not None and found.matrices.shards):
            raise ValueError(f"optimizer.name={settings.name}: needs shards=False: every rank updates whole weights")
        return found
    return choose(OPTIMIZERS, settings.name, "optimizer.name")


def is_sharded(settings: OptimizerSection, precision: str) -> bool:
    """Whether its state is sharded over the data-parallel ranks: if it can be, and not in fp64, which Megatron's
    distributed optimizer does not know."""
    return optimizer_kind(settings).shards and precision != "fp64"
