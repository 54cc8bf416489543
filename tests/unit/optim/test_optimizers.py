"""Tables of optimizers, schedules and distributions: they are what the configuration allows, and what torch does."""

from collections.abc import Mapping
from typing import get_args

import pytest
import torch
from pydantic import BaseModel

from pretrain.config.run import LoopSamplingSection, OptimizerSection
from pretrain.model.config import ModelSection
from pretrain.model.feed_forward import ACTIVATIONS
from pretrain.model.layers import NORMS
from pretrain.model.loop.config import LoopSection
from pretrain.model.loop.tables import TABLES
from pretrain.optim.learning_rate import SCHEDULES, learning_rate
from pretrain.optim.loop_count import DISTRIBUTIONS
from pretrain.optim.make import fill_state, make_optimizer, set_lr
from pretrain.optim.optimizers import OPTIMIZERS, optimizer_kind


@pytest.mark.parametrize(
    ("section", "field", "table"),
    [
        (OptimizerSection, "name", OPTIMIZERS),
        (OptimizerSection, "schedule", SCHEDULES),
        (LoopSamplingSection, "distribution", DISTRIBUTIONS),
        (ModelSection, "norm", NORMS),
        (ModelSection, "activation", ACTIVATIONS),
        *((LoopSection, kind, table) for kind, table in TABLES.items()),
    ],
)
def test_the_configuration_allows_what_the_table_has(
    section: type[BaseModel], field: str, table: Mapping[str, object]
) -> None:
    annotation = section.model_fields[field].annotation
    names = [name for part in (annotation, *get_args(annotation)) for name in get_args(part) if isinstance(name, str)]
    assert set(names) == set(table)


def test_what_a_table_does_not_have_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.name=adam is not known, did you mean adamw\?"):
        optimizer_kind(OptimizerSection.model_construct(name="adam"))  # type: ignore[arg-type]
    unknown = OptimizerSection().model_copy(update={"schedule": "cosinus", "warmup_steps": 0})
    with pytest.raises(ValueError, match=r"optimizer\.schedule=cosinus is not known, did you mean cosine\?"):
        learning_rate(unknown, 1, 10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_the_one_that_a_first_step_makes(name: str) -> None:
    """Its names, shapes and types, of matrices and of a vector; a step from either state is the same, bitwise."""
    settings = OptimizerSection(name=name)  # type: ignore[arg-type]
    results = []
    for fills in (False, True):
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, 6).view(shape)) for shape in ((2, 3), (6,), (3, 2))]
        groups = [{"params": weights[:2], "weight_decay": 0.1}, {"params": weights[2:], "weight_decay": 0.1}]
        groups[1]["is_matrices"] = OPTIMIZERS[name].matrices is not None
        optimizer = make_optimizer(groups, settings)
        if fills:
            fill_state(optimizer, settings)
        for weight in weights:
            weight.grad = torch.sin(weight.detach())
        optimizer.step()
        results.append([dict(optimizer.state[weight], weight=weight.detach()) for weight in weights])
    for made, ours in zip(*results, strict=True):
        assert ours.keys() == made.keys()
        for key, tensor in ours.items():
            assert tensor.dtype == made[key].dtype
            assert torch.equal(tensor, made[key])


def test_settings_are_those_of_the_configuration() -> None:
    settings = OptimizerSection(beta1=0.8, beta2=0.9, epsilon=1e-3)
    (group,) = make_optimizer([{"params": [torch.nn.Parameter(torch.ones(2))]}], settings).param_groups
    assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-3)


def test_a_group_keeps_its_share_of_the_learning_rate() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = make_optimizer([{"params": weights[:1]}, {"params": weights[1:], "lr_scale": 0.5}], OptimizerSection())
    for lr in (0.1, 0.3):
        set_lr(optimizer, lr)
        assert [group["lr"] for group in optimizer.param_groups] == [lr, lr * 0.5]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "changed", [{"beta1": 0.5}, {"beta2": 0.5}, {"epsilon": 1e-3}, {"momentum": 0.5}, {"adamw_lr": 1e-5}]
)
def test_a_setting_is_said_to_have_no_effect_exactly_if_the_optimizer_does_not_read_it(
    name: str, changed: dict[str, float]
) -> None:
    def made(settings: OptimizerSection) -> list[dict[str, object]]:
        matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (2,)))
        has_two = OPTIMIZERS[name].matrices is not None
        optimizer = make_optimizer([{"params": [matrix], "is_matrices": has_two}, {"params": [vector]}], settings)
        set_lr(optimizer, settings.lr)
        return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    settings = OptimizerSection(name=name)  # type: ignore[arg-type]
    (key,) = changed
    is_read = made(settings) != made(settings.model_copy(update=changed))
    assert is_read == (key not in settings.without_effect())
