"""The report of a conversion, with one line per tensor."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple


class Fate(NamedTuple):
    """What became of one tensor."""

    what: Literal["mapped", "made", "dropped"]
    target: str
    """Name of the written tensor; empty if dropped."""
    source: str
    """Name of the source tensor, or how a tensor without a source was made."""
    detail: str
    """Shape and type, or the reason for dropping."""

    def __str__(self) -> str:
        arrow = f"{self.target} <- {self.source}" if self.target else self.source
        return f"{self.what:8}{arrow}  {self.detail}"


def describe(shape: tuple[int, ...], dtype: object) -> str:
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


def write_report(folder: Path, title: str, fates: list[Fate], said: Sequence[str] = ()) -> str:
    """Write `conversion.txt` into a folder, with what else is to be said; returns the line with the totals."""
    counts = Counter(fate.what for fate in fates)
    totals = ", ".join(f"{counts[what]} tensors {what}" for what in ("mapped", "made", "dropped") if counts[what])
    lines = [title, totals, *said, "", *map(str, fates)]
    (folder / "conversion.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return totals
