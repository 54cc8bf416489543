"""A table as text for the terminal and as HTML for a page."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table with notes below it; `rows` may be empty."""

    title: str
    header: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def render(table: Table) -> str:
    """Format a table as text: title, aligned columns, notes."""
    lines = [table.title]
    if table.rows:
        cells = [table.header, *table.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join([*lines, *(f"  {note}" for note in table.notes)])


def table_html(table: Table) -> str:
    """Format a table for a page: heading, rows, notes."""

    def row(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    lines = [f"<h2>{html.escape(table.title)}</h2>"]
    if table.rows:
        lines += ["<table>", row(table.header, "th"), *(row(cells, "td") for cells in table.rows), "</table>"]
    return "\n".join([*lines, *(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)])
