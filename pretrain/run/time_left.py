"""How long a run still takes: the time of the steps done, by their work, for the work of the steps to come.

Steps differ in their work where loops, or the depth of the gradient, grow over the run: then the time of a mean step so
far says too little of the steps to come.
"""

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from pretrain.config.run import RunConfig
from pretrain.model.count import train_flops_per_token
from pretrain.optim.loop_count import backprop_loops_at, expected_loops

Work = Callable[[int], float]
"""Step, counted from 0 -> its work, in any unit."""
MOST_LOOKS = 1024
"""Steps of a long run whose work is looked at, evenly spread."""


class TimeLeft:
    """Counts from the first step that this process has done, as that one is slow.

    Args:
        num_steps: of the whole run.
        work: of each step. Default: each has as much.
        began: when the first step began, if it was no slower than the others.
    """

    def __init__(self, num_steps: int, work: Work | None = None, *, began: float | None = None) -> None:
        looks = min(num_steps, MOST_LOOKS) if work is not None else 1
        self._num_steps, self._steps = num_steps, np.linspace(0, num_steps, looks + 1)
        middles = (self._steps[1:] + self._steps[:-1]) / 2
        amounts = [1.0 if work is None else work(int(middle)) for middle in middles]
        self._work = np.concatenate([[0.0], np.cumsum(np.diff(self._steps) * amounts)])
        self._first: tuple[float, int] | None = None if began is None else (began, 0)
        self._newest = 0

    def after(self, done: int, now: float) -> float | None:
        """Seconds from `now`, when `done` steps are done, to the end; None where this is the first one, of a start or
        of a return to an earlier step."""
        if self._first is None or done < self._newest:
            self._first = (now, done)
        began, first = self._first
        self._newest = done
        passed = self._until(done) - self._until(first)
        return (now - began) * (self._until(self._num_steps) - self._until(done)) / passed if passed > 0 else None

    def _until(self, step: int) -> float:
        """The work of the steps before one."""
        return float(np.interp(step, self._steps, self._work))


def work_of_steps(config: RunConfig) -> Work:
    """The expected FLOPs of a token in each step, with what is computed again: what the time of a step goes by."""
    model, train = config.model, config.train
    outputs, again = train.loop_loss.outputs, train.chosen_recompute
    at = cache(partial(train_flops_per_token, model, train.seq_len, recompute=again, outputs=outputs))

    def work(step: int) -> float:
        loops, backprop_loops = expected_loops(model, train, step), backprop_loops_at(train, step)
        fewer, share = divmod(loops, 1)
        counts = ((int(fewer), 1 - share), (int(fewer) + 1, share))
        return sum(part * at(num_loops=count, backprop_loops=backprop_loops) for count, part in counts if part)

    return work
