"""Where a stream stands in a source: a few integers, all that a resumed run needs."""

from dataclasses import dataclass, fields
from typing import Literal

Split = Literal["train", "validation"]


@dataclass(slots=True)
class Cursor:
    """Where a walker stands; one row of the saved state."""

    epoch: int = 0
    unit: int = 0
    """Units of this epoch already visited."""
    document: int = 0
    """Place in the unit's permutation, or among the pieces of long documents that the stream is dealt."""
    offset: int = 0
    """Token in the framed document, or piece of one, where the next sample begins."""
    damaged: int = 0
    """Documents, or pieces of long ones, skipped as damaged since the start of the run."""
    samples: int = 0
    """Samples taken since the start of the run."""

    def row(self) -> tuple[int, ...]:
        """The fields in the order of FIELDS."""
        return self.epoch, self.unit, self.document, self.offset, self.damaged, self.samples


FIELDS = tuple(field.name for field in fields(Cursor))
"""Columns of the saved state."""
