"""Put a finished sweep beside its configuration: `python tools/publish.py configs/sweeps/p_hop_small.yaml`.

Copies from runs/sweeps/<name>/ into configs/sweeps/results/<name>/ (a sweep over methods: configs/finetune/results/)
the rows of all its runs in one file, its figures (.svg) and fits, and writes commands.txt: the sweep's command, and the
commit and versions that its runs name. Rows of another configuration than the file's today are refused, so what is
published is what the command gives; a test holds what is committed to the same rule. A sweep over models is drawn anew
from the rows that are published: the figure in its folder may be of fewer.

A long sweep may be published in parts, from one machine after another: with --partial the rows of a run that is not
here, or not complete, stay as they were published, and commands.txt names the runs that are still to come.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finetune.kinds import kind_of
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser
from pretrain.config.read import read_config
from pretrain.config.sweep import SweepConfig, cells
from pretrain.rows.identity import RunIdentity, config_of
from pretrain.rows.jsonl import JsonLines
from pretrain.storage import is_there, parse_json, write_atomically

SWEEPS = Path("runs/sweeps")
FIGURES = ("*.svg", "*.csv", "numbers.json")
"""And the numbers that they are drawn from, where those are not rows."""
OF_MODELS = "scaling.svg", "law.svg"
"""Figures that are drawn where they have something to show."""
VERSIONS = ("git commit", "python", "torch", "deepspeed", "device")
"""Lines of a run's environment.txt that commands.txt repeats."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Copy rows and figures of a finished sweep beside its configuration.")
    parser.add_argument("sweep", type=Path, metavar="FILE", help="configs/sweeps/<name>.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/<name> beside the configurations")
    parser.add_argument("--partial", action="store_true", help="keep what is published of the runs that are not here")
    return parser.parse_args(arguments)


def configurations(sweep: SweepConfig) -> dict[str, str]:
    """`RunIdentity.config` of each run of a sweep, as its files are today, by the run's name."""
    schema = kind_of(sweep).schema
    return {
        cell.name: config_of(read_config(Path(sweep.config), schema, list(cell.overrides))) for cell in cells(sweep)
    }


def rows_file(sweep: SweepConfig) -> str:
    return kind_of(sweep).rows


def rows_of(path: Path, config: str) -> list[bytes]:
    """The lines of a run's rows.

    Raises:
        ValueError: there are none, or some are of another configuration, or do not say theirs.
    """
    rows = JsonLines(path)
    found = rows.read(RunIdentity)
    print_warnings([f"{problem}: passed over" for problem in rows.problems])
    if not found:
        raise ValueError(f"{rows.path}: no rows: end the sweep first, the same command continues it")
    if others := sum(row.config != config for row in found):
        raise ValueError(
            f"{rows.path}: {others} of {len(found)} rows are of another configuration than the sweep's today: "
            "run it anew"
        )
    return [line for line in lines_of(path) if is_row(line)]


def is_row(line: bytes) -> bool:
    """Whether it is not damaged."""
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def is_complete(run: Path) -> bool:
    """Whether a run is at its end: one that is not has rows of its validations too."""
    state = run / "state"
    return is_there(state) and state.read_text(encoding="utf-8").strip() == "complete"


def require_complete(run: Path) -> None:
    if is_there(run / "state") and not is_complete(run):
        raise ValueError(f"{run}: is not complete: end the sweep first, the same command continues it")


def published(path: Path) -> dict[str | None, list[bytes]]:
    """The lines of a file of results by the configuration that their rows say."""
    lines: dict[str | None, list[bytes]] = {}
    for row, line in zip(JsonLines(path).read(RunIdentity, strict=True), lines_of(path), strict=True):
        lines.setdefault(row.config, []).append(line)
    return lines


def lines_of(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines() if line.strip()]


def draw(sweep: SweepConfig, file: Path, root: Path) -> None:
    """Draw a sweep over models from a file of rows into the folder of its runs; what shows nothing is not there."""
    root.mkdir(parents=True, exist_ok=True)
    for figure in OF_MODELS:
        (root / figure).unlink(missing_ok=True)
    tool = Path(__file__).with_name("scaling_plot.py")
    plot = [sys.executable, tool, file, "--out", root, *sweep.plot_options]
    compare = [sys.executable, Path(__file__).with_name("compare.py"), file, *sweep.compare_options(root)]
    for command in (plot, compare) if sweep.grid else (plot,):
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if ended:
            raise OSError(f"{file}: the plot of its rows ended with exit code {ended}")


def publish(options: argparse.Namespace) -> None:
    sweep, root = read_config(options.sweep, SweepConfig), SWEEPS / options.sweep.stem
    folder = Path(kind_of(sweep).results) / "results" / options.sweep.stem
    out, file = options.out or folder, rows_file(sweep)
    kept = published(out / file) if options.partial and is_there(out / file) else {}
    lines, here, missing = list[bytes](), list[Path](), list[str]()
    for name, config in configurations(sweep).items():
        rows = root / name / "eval" / file
        if options.partial and not (is_complete(root / name) and is_there(rows)):
            lines += kept.get(config, [])
            missing += [] if config in kept else [name]
            continue
        require_complete(root / name)
        lines += rows_of(rows, config)
        here.append(root / name)
    if not lines:
        raise ValueError(f"{root}: no complete run of the sweep has rows: train one first")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / file, b"".join(line + b"\n" for line in lines))
    if sweep.kind == "models":
        draw(sweep, out / file, root)
    figures = sorted(path for pattern in FIGURES for path in root.glob(pattern))
    for path in figures:
        shutil.copyfile(path, out / path.name)
    for figure in () if sweep.kind != "models" else (name for name in OF_MODELS if not is_there(root / name)):
        (out / figure).unlink(missing_ok=True)  # of fewer rows, or of an older tool
    write_commands(out / "commands.txt", options, here, missing)
    told = f", without {len(missing)} runs that are still to come" if missing else ""
    print(f"{out}: {len(lines)} rows, {', '.join(path.name for path in figures) or 'no figure'}{told}")


def write_commands(path: Path, options: argparse.Namespace, here: Sequence[Path], missing: Sequence[str]) -> None:
    """What gave the results: commit and versions of the first run that is here, or as they were published, and the
    commands."""
    source = here[0] / "environment.txt" if here else path
    known = source.read_text(encoding="utf-8").splitlines() if is_there(source) else []
    versions = [line.removeprefix("# ") for line in known if here or line.startswith("# ")]
    said = [f"# {line}" for line in versions if line.startswith(VERSIONS)]
    said += [f"# still to come: {name}" for name in missing]
    flag = " --partial" * options.partial
    commands = [f"python tools/sweep.py {options.sweep}", f"python tools/publish.py {options.sweep}{flag}"]
    path.write_text("\n".join([*said, *commands, ""]), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(publish, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
