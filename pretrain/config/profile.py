"""Which steps of a run are traced, as configuration: `profile`."""

import re

from pydantic import Field, field_validator

from pretrain.schema.section import Section

_STEPS = re.compile(r"([0-9]{1,15}):([0-9]{1,15})")


class ProfileSection(Section):
    steps: str | None = Field(default=None)
    """FIRST:LAST, such as 10:12: these steps are traced by torch.profiler, on rank 0; the trace is in profile/ of the
    run directory. Default: none."""

    @property
    def window(self) -> range:
        """The steps, which are counted from 1."""
        found = _STEPS.fullmatch(self.steps or "")
        return range(int(found[1]), int(found[2]) + 1) if found else range(0)

    def require_within(self, steps: int) -> None:
        """Raise a ValueError if a run of so many steps has none of these."""
        if self.window and self.window.start > steps:
            raise ValueError(f"profile.steps={self.steps} is beyond train.steps={steps}")

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: str | None) -> str | None:
        found = _STEPS.fullmatch(steps or "")
        if steps is not None and not (found and 0 < int(found[1]) <= int(found[2])):
            raise ValueError(f"{steps!r}: needs FIRST:LAST, steps from 1 on, such as 10:12")
        return steps
