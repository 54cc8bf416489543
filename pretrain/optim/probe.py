"""Whether an optimizer of a user's file keeps its contract: tried on two small weights, before the first step.

1. It keeps for each weight what it declares, by name, shape and type, and nothing else, neither there nor in its
   groups: that is what a checkpoint holds.
2. Zeros in place of a state that is not there yet change nothing: that is what a checkpoint is read into.
3. Another one, made anew and given weights and states, goes on as the first: a resumed run is the uninterrupted one.
4. At a learning rate of zero no weight moves: it follows the schedule.

That no layout shows in it needs no test: every rank updates whole weights.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.run import OptimizerSection
from pretrain.optim.make import fill_state, make_optimizer, set_lr, set_num_updates
from pretrain.optim.optimizers import Group, optimizer_kind
from pretrain.schema.plugin import describe_plugin_error

_LR = 1e-2


class _Trial:
    """The optimizer on a matrix and a vector."""

    def __init__(self, settings: OptimizerSection, *, is_filled: bool) -> None:
        self.weights = [nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6)), nn.Parameter(torch.linspace(-1, 1, 6))]
        groups: list[Group] = [{"params": [weight], "weight_decay": 0.1} for weight in self.weights]
        if optimizer_kind(settings).matrices is not None:
            groups[0]["is_matrices"] = True
        self.optimizer = make_optimizer(groups, settings)
        if is_filled:
            fill_state(self.optimizer, settings)

    def step(self, number: int, lr: float = _LR) -> list[Tensor]:
        """Make a step; the weights after it."""
        for weight in self.weights:
            weight.grad = torch.sin(3 * weight.detach() + number)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        return self.copies()

    def copies(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    def groups(self) -> list[dict[str, Any]]:
        """What the groups hold beside their weights and learning rates."""
        return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.optimizer.param_groups]


def require_contract(settings: OptimizerSection) -> None:
    """Try the optimizer of `settings`.

    Raises:
        ValueError: it breaks the contract, or an error came out of it: one line.
    """
    key = f"optimizer.name={settings.name}"
    try:
        problem = _first_problem(settings)
    except Exception as error:
        raise ValueError(f"{key}: {describe_plugin_error(error)}") from None
    if problem is not None:
        raise ValueError(f"{key}: {problem}")


def _first_problem(settings: OptimizerSection) -> str | None:
    whole = _Trial(settings, is_filled=False)
    groups = str(whole.groups())
    after = [whole.step(0)]
    problem = _undeclared(whole, settings)
    if problem is not None:
        return problem
    resumed = _Trial(settings, is_filled=True)
    for weight, saved, other in zip(resumed.weights, after[0], whole.weights, strict=True):
        weight.data.copy_(saved)
        for name, value in whole.optimizer.state[other].items():
            resumed.optimizer.state[weight][name].copy_(value)
    set_num_updates(resumed.optimizer, 1)
    after.append(whole.step(1))
    if str(whole.groups()) != groups:
        return "keeps numbers in its groups, for all weights together, which no checkpoint would hold"
    filled = _Trial(settings, is_filled=True)
    if not all(_equal(filled.step(number), after[number]) for number in range(2)):
        return "a state of zeros is not what it begins with"
    if not _equal(resumed.step(1), after[1]):
        return "goes on otherwise when it is made anew and given its states: it keeps something beside them"
    still = _Trial(settings, is_filled=True)
    if not _equal(still.copies(), still.step(0, lr=0.0)):
        return "moves weights at a learning rate of zero: it does not read `lr` of its groups at each step"
    return None


def _undeclared(trial: _Trial, settings: OptimizerSection) -> str | None:
    """A state that differs from what the optimizer declares."""
    for weight in trial.weights:
        kind = optimizer_kind(settings)
        kind = kind.matrices if kind.matrices is not None and weight.dim() == 2 else kind
        declared = {name: tuple(shape) for name, shape in kind.states(tuple(weight.shape)).items()}
        if kind.counts_steps:
            declared["step"] = ()
        shape = list(weight.shape)
        for name, value in trial.optimizer.state[weight].items():
            if not isinstance(value, Tensor):
                return f"keeps {name} of a weight {shape} as {type(value).__name__}, not as a tensor"
            if name not in declared:
                return f"keeps {name} of a weight {shape}, which its `states` do not name"
            if tuple(value.shape) != declared[name]:
                return f"keeps {name} {list(value.shape)} of a weight {shape}; its `states` say {list(declared[name])}"
            if name != "step" and value.dtype != weight.dtype:
                return f"keeps {name} as {value.dtype}, not in the type of its weight"
        if missing := declared.keys() - trial.optimizer.state[weight].keys():
            return f"keeps no {sorted(missing)[0]} of a weight {shape}, which its `states` name"
    return None


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(map(torch.equal, ours, theirs))
