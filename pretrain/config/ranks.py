"""What is noticed of the ranks of a run while it trains, as configuration: `ranks`."""

from pydantic import Field

from pretrain.schema.section import Section


class RanksSection(Section):
    hang_minutes: float | None = Field(default=10.0, gt=0)
    """Minutes without progress after which a rank counts as hung: the ranks say where they stand, in logs/hang of the
    run directory, and the job ends so that it is requeued. Three times as long until the first step is done; null =
    never."""
    check_weights_every: int = Field(default=100, ge=0)
    """Steps between comparisons of what data-parallel ranks hold alike, bit by bit; before each checkpoint too. A
    difference ends the run so that it is requeued, before the update. 0 = never."""
    slow_factor: float = Field(default=1.2, gt=1)
    """A replica is named as slow whose own work in a step, waits left out, takes this times as long as the median's, in
    the mean of 20 steps."""
