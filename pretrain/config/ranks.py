"""What is noticed of the ranks of a run while it trains, as configuration: `ranks`."""

from pydantic import Field

from pretrain.schema.section import Section


class RanksSection(Section):
    hang_minutes: float | None = Field(default=10.0, gt=0)
    """Minutes without progress after which a rank counts as hung: the ranks say where they stand, in logs/hang of the
    run directory, and the job ends so that it is requeued. Three times as long until the first step is done; null =
    never."""
