"""Unlooped partners of a looped model, each equal to it in one cost: what a claim about loops has to be held against.

    equal_parameters             k layers once: the same weights, for less work
    equal_parameters_and_flops   the same, trained for so many more steps that the training FLOPs are equal
    equal_inference_flops        k·L layers once: the same work and cache for a token, with L times the weights (where
                                 loops share keys and values, with more cache)
    equal_cache                  where they do: as many layers once as there are applications that compute keys, wide
                                 enough for the same work; not for windows, of which no whole layer is as large
    equal_training_flops         the same, where training draws its loop counts: as many steps as cost the same
    equal_time                   k·L layers once, for as many steps as take the same time, if both were timed

Weights and work that only the looped model has, of an injection for example, go into the width of the partner's
feed-forward. What is counted agrees within 1 %, or it is an error.
"""

from dataclasses import dataclass, replace
from typing import Any

from pretrain.config.run import BYTES, RunConfig
from pretrain.model.count import cached_numbers, count_parameters, forward_flops_per_token, window_numbers
from pretrain.plan.plan import mean_train_flops

CLOSE = 0.01
"""Largest relative difference of what is counted."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a model costs."""

    parameters: int
    training_flops: float
    """Of the whole run, forward and backward, at the mean loop count."""
    inference_flops: int
    """Forward, for a token, at model.num_loops."""
    cache_bytes: float
    """Keys and values of a token, of a sequence of train.seq_len."""

    def over(self, other: "Costs") -> dict[str, float]:
        """These costs as multiples of another model's."""
        return {name: value / getattr(other, name) for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Partner:
    name: str
    equal: tuple[str, ...]
    """Costs in which it is equal."""
    config: RunConfig


def costs_of(config: RunConfig) -> Costs:
    """Costs of a configuration, counted."""
    model, train = config.model, config.train
    tokens = train.steps * train.global_batch * train.seq_len
    return Costs(
        parameters=sum(count_parameters(model, train.seq_len).values()),
        training_flops=tokens * mean_train_flops(config),
        inference_flops=forward_flops_per_token(model, train.seq_len),
        cache_bytes=(cached_numbers(model) + window_numbers(model) / train.seq_len) * BYTES[train.precision],
    )


def partners(config: RunConfig, time_ratio: float | None = None) -> list[Partner]:
    """The partners of a looped model.

    Args:
        config: of the looped model.
        time_ratio: measured seconds a step of it over those of its partner of equal inference FLOPs.

    Raises:
        ValueError: it does not loop, or a partner cannot be made equal.
    """
    model = config.model
    if model.num_loops == 1:
        raise ValueError("model.num_loops=1: a model without loops is its own partner; give one with loops")
    shallow = _fitted(config, applied_once(config, model.num_loop_layers), "parameters")
    deep = _fitted(config, applied_once(config, model.num_loop_layers * model.num_loops), "inference_flops")
    shares_keys, has_windows = model.loop.keys != "own", model.window_of(1) is not None
    same_cache = () if shares_keys else ("cache_bytes",)
    found = [
        Partner(name="equal_parameters", equal=("parameters",), config=shallow),
        Partner(
            name="equal_parameters_and_flops", equal=("parameters", "training_flops"), config=_as_long(config, shallow)
        ),
        Partner(name="equal_inference_flops", equal=("inference_flops", *same_cache), config=deep),
        Partner(name="equal_training_flops", equal=("training_flops",), config=_as_long(config, deep)),
    ]
    if shares_keys and not has_windows:
        num_layers = model.num_loop_layers * model.num_key_passes()
        cached = _fitted(config, applied_once(config, num_layers), "inference_flops")
        found.append(Partner(name="equal_cache", equal=("cache_bytes", "inference_flops"), config=cached))
    if time_ratio is not None:
        timed = _with_steps(deep, round(config.train.steps * time_ratio))
        found.append(Partner(name="equal_time", equal=(), config=timed))
    wanted = costs_of(config)
    for partner in found:
        ratios = costs_of(partner.config).over(wanted)
        for cost in partner.equal:
            if abs(ratios[cost] - 1) > CLOSE:
                raise ValueError(
                    f"{partner.name}: {cost} is {ratios[cost]:.3f} of the looped model's: no equal partner"
                )
    return [_named(config, partner) for partner in found]


def applied_once(config: RunConfig, num_layers: int) -> RunConfig:
    """So many layers in place of the loop, each applied once, with nothing between them."""
    section = type(config.model)
    plain = section.model_validate(
        config.model.model_dump(exclude={"loop"}) | {"num_loop_layers": num_layers, "num_loops": 1}
    )
    of_loops = ("loop_sampling", "loop_loss", "backprop_loops", "backprop_growth")
    plainly = {key: type(config.train).model_fields[key].default for key in of_loops}
    train = config.train.model_copy(update=plainly)
    validation = config.validation.model_copy(update={"num_loops": ()})
    return config.model_copy(update={"model": plain, "train": train, "validation": validation})


def _fitted(config: RunConfig, partner: RunConfig, cost: str) -> RunConfig:
    """The partner with its feed-forward as wide as makes a cost equal; costs are linear in that width."""

    def with_width(width: int) -> RunConfig:
        return partner.model_copy(update={"model": partner.model.model_copy(update={"ffn_size": width})})

    width, wanted = partner.model.ffn_size, getattr(costs_of(config), cost)
    now, wider = (getattr(costs_of(with_width(size)), cost) for size in (width, width + 1))
    multiple = config.parallel.tensor
    return with_width(max(multiple, round((width + (wanted - now) / (wider - now)) / multiple) * multiple))


def _as_long(config: RunConfig, partner: RunConfig) -> RunConfig:
    """The partner, trained for as many FLOPs."""
    ratio = costs_of(config).training_flops / costs_of(partner).training_flops
    return _with_steps(partner, round(partner.train.steps * ratio))


def _with_steps(config: RunConfig, steps: int) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": max(1, steps)})})


def _named(config: RunConfig, partner: Partner) -> Partner:
    """With a name of its own for its run; checked as any configuration."""
    values: dict[str, Any] = partner.config.model_dump()
    values["run"]["name"] = f"{config.run.name}-{partner.name}"
    return replace(partner, config=RunConfig.model_validate(values))
