"""The time that a run still takes goes by the loops that are still to come."""

import io
import json
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.run import RunConfig
from pretrain.model.count import train_flops_per_token
from pretrain.optim.loop_count import step_loops
from pretrain.run.logger import RunMetrics
from pretrain.run.time_left import TimeLeft, work_of_steps
from tests.support.run_rows import step_row

SECONDS_PER_FLOP, SLOW_START_S = 1e-6, 100.0
GROWTH: dict[str, Any] = {"start": 1, "begin": 0.5, "end": 0.75}


def growing(steps: int, **train: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"vocab_size": 64, "hidden_size": 32, "num_loops": 8, "loop": {"injection": "add"}},
            "train": {"steps": steps, "seq_len": 32, "global_batch": 8, "loop_sampling": {"growth": GROWTH}, **train},
            "optimizer": {"warmup_steps": 0},
            "logging": {"wandb": "disabled"},
        }
    )


def seconds_of_steps(config: RunConfig) -> list[float]:
    """A machine whose steps take as long as the FLOPs of the loops that are drawn."""
    model, train, seconds = config.model, config.train, []
    of_token = cache(partial(train_flops_per_token, model, train.seq_len, recompute=train.recompute))
    for step in range(train.steps):
        loops = step_loops(model, train, 0, step, step * train.global_batch)
        flops = [of_token(num_loops=count, backprop_loops=loops.backprop_loops) for count in loops.counts]
        seconds.append(SECONDS_PER_FLOP * sum(flops) / len(flops))
    return seconds


@pytest.mark.parametrize(
    ("steps", "train", "tolerance"),
    [
        (40, {}, 1e-12),
        (40, {"recompute": "loop"}, 1e-12),
        (3000, {}, 5e-3),  # more steps than are looked at
        (
            1000,
            {"loop_sampling": {"growth": GROWTH, "distribution": "poisson", "per": "sequence"}},
            2e-2,
        ),
    ],
)
def test_growing_loops_are_foreseen(steps: int, train: dict[str, Any], tolerance: float) -> None:
    config = growing(steps, **train)
    seconds = seconds_of_steps(config)
    time_left = TimeLeft(steps, work_of_steps(config))
    now = SLOW_START_S
    assert time_left.after(1, now) is None
    for done, passed in enumerate(accumulate(seconds[1:]), start=2):
        found, wanted = time_left.after(done, now + passed), sum(seconds[done:])
        assert found is not None
        if steps // 20 < done < steps // 2:
            assert found == pytest.approx(wanted, rel=tolerance)
            assert found > 2 * passed / (done - 1) * (steps - done)  # by the mean step so far
    assert time_left.after(steps, now + 1) == 0


def test_the_depth_of_the_gradient_is_foreseen() -> None:
    config = growing(40, loop_sampling={}, backprop_loops=4, backprop_growth=GROWTH)
    seconds, time_left = seconds_of_steps(config), TimeLeft(40, work_of_steps(config))
    time_left.after(1, 0.0)
    assert time_left.after(10, sum(seconds[1:10])) == pytest.approx(sum(seconds[10:]))
    assert seconds[-1] > 1.2 * seconds[0]


def test_a_return_to_an_earlier_step_counts_anew() -> None:
    time_left = TimeLeft(10)
    assert [time_left.after(step, 2.0 * step) for step in (1, 2, 3)] == [None, 16.0, 14.0]
    assert time_left.after(2, 50.0) is None
    assert time_left.after(3, 53.0) == 21.0


def test_rows_have_it(tmp_path: Path) -> None:
    with RunMetrics(growing(10), tmp_path, num_steps=10, resumed_step=0, stream=io.StringIO()) as metrics:
        for step in (1, 2, 10):
            metrics.log_step(step_row(step))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["eta_s"] is None and rows[1]["eta_s"] > 0 and rows[2]["eta_s"] == 0
