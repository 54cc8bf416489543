"""A run on one page, `<run>/report.html`: how it stands, its curves, results, samples, troubles and configuration.

One file, without scripts, that loads nothing: its own policy forbids it. What a run does not have is left out.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.report.chart import Chart, draw, number
from pretrain.report.reading import (
    RESULT_HEADER,
    diagnostic_charts,
    evaluation_charts,
    flat,
    results,
    step_charts,
    troubles,
)
from pretrain.run.status import RunStatus, read_queue, read_status, read_written_config
from pretrain.scaling.table import Table, table_html
from pretrain.storage import write_atomically

if TYPE_CHECKING:
    from pretrain.run.session import RunSession  # which needs torch

REPORT = "report.html"
MOST_SAMPLES, MOST_LETTERS = 4, 6000
"""Of files, and of a file."""

FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<style>
:root {{ --text: #222; --quiet: #666; --line: #e3e3e3; --back: #fff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e4e4e4; --quiet: #a3a3a3; --line: #3a3a3a; --back: #161616; }}
  svg .line, svg circle, svg .band, .legend i {{ filter: brightness(1.35); }}
}}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1300px; padding: 0 1rem;
  color: var(--text); background: var(--back); }}
h1 {{ font-size: 1.4rem; margin-bottom: .3rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .6rem; }}
.facts {{ display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 0; }}
.facts dt {{ color: var(--quiet); font-size: .85rem; }} .facts dd {{ margin: 0; font-weight: 600; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: 1rem 1.2rem; }}
figure {{ margin: 0; }} figcaption {{ font-weight: 600; font-size: .9rem; }}
svg {{ width: 100%; height: auto; display: block; }} svg text {{ font-size: 12px; fill: var(--quiet); }}
svg .grid {{ stroke: var(--line); }} svg .axis {{ stroke: var(--quiet); }}
svg .line {{ fill: none; stroke-width: 1.6; stroke-linejoin: round; }} svg .band {{ opacity: .22; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; padding-left: 3.2rem; }}
.legend i {{ display: inline-block; width: 1rem; height: .2rem; margin-right: .35rem; vertical-align: .22em; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ text-align: left; padding: .2rem 1.1rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }}
td:last-child {{ overflow-wrap: anywhere; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); padding-left: .8rem; }}
summary {{ cursor: pointer; font-weight: 600; font-size: 1.1rem; margin-top: 1.5rem; }}
li {{ overflow-wrap: anywhere; }} .note {{ color: var(--quiet); }}
</style></head><body>
{body}
</body></html>
"""


def write_report(run: Path) -> Path:
    """Write the page of a run into its directory; returns the file.

    Raises:
        OSError: a file cannot be read or written.
    """
    status = read_status(run, run.resolve().name, read_queue())
    parts = [f"<h1>{html.escape(status.name)}</h1>", _facts(status)]
    parts += _charts("Training", step_charts(run))
    parts += _charts("Validation and tasks", evaluation_charts(run))
    parts += _charts("Diagnostics", diagnostic_charts(run))
    if rows := results(run):
        parts.append(table_html(Table(title="Results, the newest of each", header=RESULT_HEADER, rows=rows)))
    parts += _samples(run)
    if lines := troubles(run):
        parts += ["<h2>Warnings and restarts</h2><ul>", *(f"<li>{html.escape(line)}</li>" for line in lines), "</ul>"]
    config, problem = read_written_config(run / "config.yaml")
    notes = [problem] if problem else []
    parts.append(_folded(Table(title="Configuration", header=("key", "value"), rows=flat(config), notes=notes)))
    file = run / "environment.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    cells = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    parts.append(_folded(Table(title="Environment", header=("what", "which"), rows=cells)))
    page = FRAME.format(title=html.escape(status.name), body="\n".join(parts))
    write_atomically(run / REPORT, page.encode())
    return run / REPORT


def write_last_report(session: "RunSession") -> None:
    """The page at the end of a run, on rank 0. It never ends a run otherwise than well."""
    if session.rank == 0:
        try:
            write_report(session.directory)
        except Exception as error:
            session.say(f"warning: {session.directory / REPORT}: {error}; tools/report.py writes it")


def _facts(status: RunStatus) -> str:
    steps = f"{status.step}" + (f" of {status.num_steps}" if status.num_steps else "")
    facts = {
        "state": status.state,
        "steps": steps,
        "training loss": "" if status.loss is None else f"{status.loss:.4f}",
        "tokens per second": "" if status.tokens_per_s is None else number(status.tokens_per_s),
        "newest checkpoint": "" if status.checkpoint_step is None else f"step {status.checkpoint_step}",
        "last error": status.error,
    }
    cells = [f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items() if value]
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _charts(title: str, charts: Sequence[Chart]) -> list[str]:
    return [f"<h2>{title}</h2>", '<div class="charts">', *map(draw, charts), "</div>"] if charts else []


def _samples(run: Path) -> list[str]:
    parts = []
    for file in sorted(run.glob("sample*.txt"))[:MOST_SAMPLES]:
        text = file.read_text(encoding="utf-8", errors="replace")
        cut = text[:MOST_LETTERS] + (" ..." if len(text) > MOST_LETTERS else "")
        parts.append(f"<h2>{html.escape(file.name)}</h2><pre>{html.escape(cut)}</pre>")
    return parts


def _folded(table: Table) -> str:
    """A table behind its title."""
    if not (table.rows or table.notes):
        return ""
    title, _, rest = table_html(table).partition("\n")
    return f"<details><summary>{title.removeprefix('<h2>').removesuffix('</h2>')}</summary>\n{rest}</details>"
