"""When an alarm is raised, and that what is known of it survives a resume as JSON."""

import json
from typing import Any

import pytest

from pretrain.config.alarms import AlarmsSection
from pretrain.config.run import RunConfig
from pretrain.watch.alarms import Alarms

SPIKES = {"loss_spike": {"policy": "rollback", "window": 8, "deviations": 5.0, "steps": 2}}


def alarms_of(sections: dict[str, Any]) -> Alarms:
    return Alarms(AlarmsSection.model_validate(sections))


def raised(alarms: Alarms) -> list[tuple[str, int]]:
    return [(alarm.name, alarm.since) for alarm in alarms.take()]


def test_a_spike_is_steps_in_a_row_above_what_was_usual_raised_once_and_again_after_it_is_over() -> None:
    alarms, found = alarms_of(SPIKES), {}
    losses = [9, 8, 7, 6, 5.0, 5.1, 4.9, 5, 50, 5, 50, 60, 70, 5, 80, 80, float("nan")]
    for step, loss in enumerate(losses, start=1):
        alarms = Alarms(alarms.section, json.loads(json.dumps(alarms.as_meta())))  # as a resumed run
        alarms.on_step(step, loss)
        if lines := raised(alarms):
            found[step] = lines
    assert found == {12: [("loss_spike", 11)], 16: [("loss_spike", 15)]}


def test_a_loss_that_falls_or_is_noisy_or_stays_the_same_is_no_spike() -> None:
    alarms = alarms_of(SPIKES | {"max_rollbacks": 3})
    for step in range(1, 100):
        alarms.on_step(step, 10 / step + (step % 3) * 0.5)
    for step in range(100, 200):
        alarms.on_step(step, 1.0 if step % 7 else 1.04)
    for step in range(200, 300):  # learnt: losses of a thousandth differ by many times their usual deviation
        alarms.on_step(step, 0.0002 if step % 7 else 0.005)
    assert not raised(alarms)
    alarms.on_step(300, 0.05)
    alarms.on_step(301, 0.05)
    assert raised(alarms) == [("loss_spike", 300)], "of a learnt task too"


def test_a_loss_that_stays_high_is_what_is_usual_in_the_end() -> None:
    alarms = alarms_of(SPIKES)
    for step in range(1, 60):
        alarms.on_step(step, 1.0 if step < 20 else 30.0)
    assert raised(alarms) == [("loss_spike", 20)]
    alarms.on_step(60, 300.0)
    alarms.on_step(61, 300.0)
    assert raised(alarms) == [("loss_spike", 60)]


def test_alike_states_are_those_of_the_last_loop_from_the_threshold_on() -> None:
    alarms = alarms_of({"states_alike": {"policy": "stop", "correlation": 0.9}})
    name = "token_correlation.loop"
    for step, (first, last) in {10: (0.95, 0.1), 20: (0.1, 0.89), 30: (0.1, 0.9), 40: (0.1, 0.99)}.items():
        alarms.on_diagnostics(step, {f"{name}2": first, f"{name}10": last})
        assert raised(alarms) == ([("states_alike", 21)] if step == 30 else [])


def test_unused_loops_are_validations_in_a_row_in_which_all_are_no_better_than_one() -> None:
    alarms = alarms_of({"loops_unused": {"policy": "warn", "validations": 2, "difference": 0.01}})
    for step, gain in {10: 0.0, 20: 0.5, 30: 0.005, 40: -0.2, 50: 0.0, 60: 0.02}.items():
        alarms.on_validation(step, {4: 3.0 - gain, 1: 3.0, 2: 0.0})
        assert raised(alarms) == ([("loops_unused", 21)] if step == 40 else [])
    alarms.on_validation(70, {4: 3.0})


def test_the_weightiest_comes_first_and_off_is_off() -> None:
    alike = {"token_correlation.loop1": 1.0}
    for policy, names in {"stop": ["states_alike", "loops_unused"], "off": ["loops_unused"]}.items():
        alarms = alarms_of({"states_alike": {"policy": policy}, "loops_unused": {"policy": "warn", "validations": 1}})
        alarms.on_validation(1, {1: 1.0, 2: 1.0})
        alarms.on_diagnostics(1, alike)
        assert [name for name, _ in raised(alarms)] == names


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"alarms": {"states_alike": {"policy": "stop"}}}, r"it needs train.hooks=\[loop_diagnostics\]"),
        ({"alarms": {"loops_unused": {"policy": "stop"}}}, "1 and more among validation.num_loops"),
        (
            {"alarms": {"loss_spike": {"policy": "rollback"}}, "checkpoint": {"every": 0}},
            "it needs checkpoint.every",
        ),
    ],
)
def test_an_alarm_that_could_never_act_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(sections)
