"""The learning rate as a function of the step alone.

Steps count from 0, so t = step + 1 updates are done once a step is. In units of the peak:

1. Warm-up, t <= warmup_steps: t / warmup_steps. The first step already moves, the last step of warm-up is at the peak.
2. After it the rate falls from 1 to min_lr_ratio, which the last step of the run reaches exactly. With p the share of
   the fall that is done: cosine (1 + cos πp) / 2 and linear 1 - p, over all the remaining steps; wsd (warm-up, stable,
   decay; arXiv 2404.06395) stays at 1 and is linear over the last decay_steps; constant stays at 1.

Nothing is remembered between steps: a resumed run gets the rates of an uninterrupted one.
"""

import math
from collections.abc import Callable

from pretrain.config.run import OptimizerSection
from pretrain.schema.choice import choose


def learning_rate(config: OptimizerSection, step: int, num_steps: int) -> float:
    """The learning rate of a step, counted from 0, of a run of `num_steps`: in (0, config.lr] while warming up and in
    [min_lr_ratio · config.lr, config.lr] after."""
    assert 0 <= step < num_steps, f"step {step} of {num_steps}"
    done = step + 1
    if done <= config.warmup_steps:
        return config.lr * (done / config.warmup_steps)
    height = choose(SCHEDULES, config.schedule, "optimizer.schedule")(config, done, num_steps)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * height)


def _wsd(config: OptimizerSection, done: int, num_steps: int) -> float:
    decay_steps = config.decay_steps or math.ceil(num_steps / 5)
    return 1 - _fallen(max(config.warmup_steps, num_steps - decay_steps), done, num_steps)


def _fallen(start: int, done: int, num_steps: int) -> float:
    """Share that is done of a fall from step `start` to the end."""
    return max(0, done - start) / (num_steps - start)


SCHEDULES: dict[str, Callable[[OptimizerSection, int, int], float]] = {
    "cosine": lambda config, *steps: (1 + math.cos(math.pi * _fallen(config.warmup_steps, *steps))) / 2,
    "linear": lambda config, *steps: 1 - _fallen(config.warmup_steps, *steps),
    "constant": lambda *_: 1.0,
    "wsd": _wsd,
}
"""By the name in `optimizer.schedule`: (settings, steps done, steps of the run) -> height above the floor after
warm-up, 1 at the peak and 0 at the floor."""
