"""Rows of alarms, lines of `<run>/alarms.jsonl`: what was noticed and what was done. They stay when a run goes back to
an earlier step, and a resumed run that meets an alarm again adds it again."""

from dataclasses import dataclass

from pretrain.config.alarms import Policy

ALARMS = "alarms.jsonl"
"""In the run directory."""


@dataclass(frozen=True, kw_only=True)
class AlarmRow:
    """One alarm; run_id and config as of `RunIdentity`."""

    run_id: str | None
    config: str | None
    step: int
    """Steps done when it was raised."""
    alarm: str
    action: Policy
    """What was done, which is less than the policy where there was nothing to go back to."""
    since: int
    """The first step that showed it."""
    value: float
    threshold: float
    to_step: int | None
    """Of a rollback: the step of the checkpoint."""
    next_sample: int | None
    """Of a rollback: the sample of the run with which it goes on; those since the checkpoint are not read again."""
