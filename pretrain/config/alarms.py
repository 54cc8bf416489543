"""What is noticed in a run that goes wrong, and what is done about it, as configuration: `alarms`.

off
warn        a line, and a row of alarms.jsonl
stop        the state is saved, and the run ends as failed, with the exit code of a run that diverged
rollback    the run goes back to the newest good checkpoint from before it began, and on with the samples that come
            now in place of those that came then (Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, section 5.1)
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pretrain.schema.section import Section

if TYPE_CHECKING:
    from pretrain.config.run import RunConfig

Policy = Literal["off", "warn", "stop", "rollback"]
ACTING = ("stop", "rollback")
"""Policies that do more than say so, and so must not be idle without a word."""


class LossSpikeSection(Section):
    policy: Policy = "warn"
    """off, warn, stop or rollback, when the loss leaves what it was."""
    window: int = Field(default=128, ge=8)
    """Latest steps, not those of the spike, whose losses say what it was; half as many must be there."""
    deviations: float = Field(default=10.0, gt=0)
    """Above their median, in standard deviations estimated from the median of the deviations from it (1.4826 · MAD),
    each counted as at least 1% of the median; 0.01 nats at least."""
    steps: int = Field(default=1, gt=0)
    """Steps in a row above that."""


class StatesAlikeSection(Section):
    policy: Policy = "warn"
    """The same when the states of all tokens become one (Huginn's first failed run); needs train.hooks
    loop_diagnostics, whose numbers are looked at."""
    correlation: float = Field(default=0.99, gt=0, le=1)
    """Mean cosine between the states of two tokens after the last loop from which they count as alike."""


class LoopsUnusedSection(Section):
    policy: Policy = "warn"
    """The same when validation is no better with all loops than with one (Huginn's second failed run); needs 1 and more
    among validation.num_loops."""
    difference: float = Field(default=0.001, ge=0)
    """Nats per token below which all loops are no better than one."""
    validations: int = Field(default=3, gt=0)
    """Validations in a row."""


class AlarmsSection(Section):
    loss_spike: LossSpikeSection = LossSpikeSection()
    """Of the training loss."""
    states_alike: StatesAlikeSection = StatesAlikeSection()
    """Of the states."""
    loops_unused: LoopsUnusedSection = LoopsUnusedSection()
    """Of the validation losses."""
    max_rollbacks: int = Field(default=2, gt=0)
    """Of a whole run; at the next alarm it stops."""

    @property
    def _can_go_back(self) -> bool:
        return "rollback" in (self.loss_spike.policy, self.states_alike.policy, self.loops_unused.policy)

    def without_effect(self) -> dict[str, str]:
        return {} if self._can_go_back else {"max_rollbacks": f"loss_spike.policy={self.loss_spike.policy}"}

    def require_measured(self, config: "RunConfig") -> None:
        """Raise a ValueError where an alarm is to act on numbers that the run does not make."""
        hooks = [hook.name for hook in config.train.hooks]
        if self.states_alike.policy in ACTING and "loop_diagnostics" not in hooks:
            raise ValueError(
                f"alarms.states_alike.policy={self.states_alike.policy} looks at numbers of loop_diagnostics: it needs "
                "train.hooks=[loop_diagnostics]"
            )
        loops = config.validation_loops if config.validation.every else ()
        if self.loops_unused.policy in ACTING and (1 not in loops or max(loops) == 1):
            raise ValueError(
                f"alarms.loops_unused.policy={self.loops_unused.policy} compares validations with one and with all "
                "loops: it needs validation.every and 1 and more among validation.num_loops"
            )
        if self._can_go_back and not config.checkpoint.every:
            raise ValueError("alarms: a policy is rollback, to the newest good checkpoint: it needs checkpoint.every")
