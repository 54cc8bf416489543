"""Optimizers of users: those of the table keep the contract, and each way to break it is named."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pretrain.config.run import OptimizerSection
from pretrain.optim import optimizers, probe
from pretrain.optim.optimizers import OPTIMIZERS, OptimizerKind


class Plain(torch.optim.Optimizer):
    """Momentum, with one thing that may be wrong."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, fault: str) -> None:
        super().__init__(groups, {"lr": lr, "count": 0})
        self.fault, self.steps, self.first_lr = fault, 0, lr

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        fault, self.steps = self.fault, self.steps + 1
        if fault == "crash":
            raise LookupError("no such thing")
        for group in self.param_groups:
            group["count"] += fault == "groups"
            for weight in group["params"]:
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.ones_like(weight) * (fault == "ones"))
                momentum.lerp_(weight.grad, 0.1 if fault != "hidden" else 0.1 / self.steps)
                weight.sub_((self.first_lr if fault == "deaf" else group["lr"]) * momentum)
                if fault == "number":
                    state["age"] = self.steps
                if fault in ("more", "half"):
                    state["more"] = weight.bfloat16() if fault == "half" else weight.clone()
                if fault == "shape":
                    state["momentum"] = momentum.view(1, *momentum.shape)


def kind_of(fault: str) -> OptimizerKind:
    def states(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        extra = {"half": ("more",), "missing": ("less",)}.get(fault, ())
        return dict.fromkeys(("momentum", *extra), shape)

    def make(groups: list[dict[str, Any]], settings: OptimizerSection) -> Plain:
        return Plain(groups, settings.lr, fault)

    return OptimizerKind(make=make, states=states, counts_steps=False, shards=False)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], OptimizerSection]:
    def use(kind: Any) -> OptimizerSection:
        monkeypatch.setattr(optimizers, "load_plugin", lambda *_: kind)
        return OptimizerSection(name="mine:KIND")

    return use


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_the_table_keep_the_contract(name: str) -> None:
    probe.require_contract(OptimizerSection(name=name))  # type: ignore[arg-type]


def test_one_of_a_user_that_keeps_it_passes(use: Callable[[Any], OptimizerSection]) -> None:
    probe.require_contract(use(kind_of("none")))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", r"test_probe\.py, line \d+: LookupError: no such thing"),
        ("groups", "keeps numbers in its groups"),
        ("ones", "a state of zeros is not what it begins with"),
        ("hidden", "goes on otherwise when it is made anew"),
        ("deaf", "moves weights at a learning rate of zero"),
        ("number", r"keeps age of a weight \[4, 6\] as int, not as a tensor"),
        ("more", r"keeps more of a weight \[4, 6\], which its `states` do not name"),
        ("half", "keeps more as torch.bfloat16, not in the type of its weight"),
        ("shape", r"keeps momentum \[1, 4, 6\] of a weight \[4, 6\]; its `states` say \[4, 6\]"),
        ("missing", r"keeps no less of a weight \[4, 6\], which its `states` name"),
    ],
)
def test_each_way_to_break_it_is_one_line(use: Callable[[Any], OptimizerSection], fault: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.name=mine:KIND: .*{message}"):
        probe.require_contract(use(kind_of(fault)))


def test_what_is_no_such_entry_is_refused(use: Callable[[Any], OptimizerSection]) -> None:
    for kind, message in (
        (Plain, "is no pretrain.optim"),
        (replace(kind_of("none"), shards=True), "needs shards=False"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizers.optimizer_kind(use(kind))
