"""Put a finished sweep beside its configuration: `python tools/publish.py configs/sweeps/p_hop_small.yaml`.

Copies from runs/sweeps/<name>/ into configs/sweeps/results/<name>/ (a sweep over methods: configs/finetune/results/)
the rows of all its runs in one file, its figures (.svg) and fits, and writes commands.txt: the sweep's command, and the
commit and versions that its runs name. Rows of another configuration than the file's today are refused, so what is
published is what the command gives; a test holds what is committed to the same rule.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepConfig, cells
from pretrain.rows.identity import RunIdentity, config_of
from pretrain.rows.jsonl import JsonLines
from pretrain.storage import is_there

SWEEPS = Path("runs/sweeps")
FIGURES = ("*.svg", "*.csv")
VERSIONS = ("git commit", "python", "torch", "deepspeed", "device")
"""Lines of a run's environment.txt that commands.txt repeats."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Copy rows and figures of a finished sweep beside its configuration.")
    parser.add_argument("sweep", type=Path, metavar="FILE", help="configs/sweeps/<name>.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/<name> beside the configurations")
    return parser.parse_args(arguments)


def configurations(sweep: SweepConfig) -> dict[str, str]:
    """`RunIdentity.config` of each run of a sweep, as its files are today, by the run's name."""
    schema: Any = FinetuneConfig if sweep.methods else RunConfig
    return {
        cell.name: config_of(read_config(Path(sweep.config), schema, list(cell.overrides))) for cell in cells(sweep)
    }


def rows_file(sweep: SweepConfig) -> str:
    return "coconut.jsonl" if sweep.methods else "depth.jsonl"


def rows_of(run: Path, file: str, config: str) -> list[bytes]:
    """The lines of a run's rows.

    Raises:
        ValueError: there are none, or some are of another configuration, or do not say theirs.
    """
    rows = JsonLines(run / "eval" / file)
    found = rows.read(RunIdentity)
    print_warnings([f"{problem}: passed over" for problem in rows.problems])
    if not found:
        raise ValueError(f"{rows.path}: no rows: end the sweep first, the same command continues it")
    if others := sum(row.config != config for row in found):
        raise ValueError(
            f"{rows.path}: {others} of {len(found)} rows are of another configuration than the sweep's today: "
            "run it anew"
        )
    return [line for line in rows.path.read_bytes().splitlines() if line.strip()]


def publish(options: argparse.Namespace) -> None:
    sweep, root = read_config(options.sweep, SweepConfig), SWEEPS / options.sweep.stem
    folder = Path("configs/finetune" if sweep.methods else "configs/sweeps") / "results" / options.sweep.stem
    out, file = options.out or folder, rows_file(sweep)
    wanted = configurations(sweep)
    lines = [line for name, config in wanted.items() for line in rows_of(root / name, file, config)]
    out.mkdir(parents=True, exist_ok=True)
    (out / file).write_bytes(b"".join(line + b"\n" for line in lines))
    figures = sorted(path for pattern in FIGURES for path in root.glob(pattern))
    for path in figures:
        shutil.copyfile(path, out / path.name)
    environment = root / next(iter(wanted)) / "environment.txt"
    known = environment.read_text(encoding="utf-8").splitlines() if is_there(environment) else []
    said = [f"# {line}" for line in known if line.startswith(VERSIONS)]
    text = "\n".join([*said, f"python tools/sweep.py {options.sweep}", f"python tools/publish.py {options.sweep}"])
    (out / "commands.txt").write_text(f"{text}\n", encoding="utf-8")
    print(f"{out}: {len(lines)} rows of {len(wanted)} runs, {', '.join(path.name for path in figures) or 'no figure'}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(publish, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
