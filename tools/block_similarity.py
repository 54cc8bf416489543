"""How alike the blocks of trained models are: `python tools/block_similarity.py runs/sweeps/regulariser_small/8x1*`.

For each run and kind of weight matrix the mean cosine between layers i and i + k, with the least and the largest
(Saunshi et al. 2025, section 4). Runs are trained or imported (tools/convert_checkpoint.py); a looped model has one
block, and nothing to compare. Prints a table and writes block_similarity.csv (a row for each pair of layers), .png and
.svg, in which runs that differ in the seed alone are one bar. In place of runs it takes such a .csv, and draws it anew.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import csv
import math
import re
import sys
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint.names import require_checkpoint
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser, positive
from pretrain.rows.provenance import RunName, counted, told_runs, without_seed
from pretrain.scaling.style import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, draw_grid_lines, new_figure

if TYPE_CHECKING:
    from pretrain.model.block_similarity import BlockSimilarity

HEADER = ("run", "group", "layer", "other_layer", "cosine")
COLOURS = (GREY, SKY, BLUE, GREEN, ORANGE, RED, PINK)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Compare the weights of the blocks of trained models.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of runs, or one .csv of them")
    default = "default: model.loop_regulariser.block_size of the run, or of the other runs"
    parser.add_argument("--block-size", type=positive, metavar="K", help=f"layers of a block; {default}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: folder of the first run")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace) -> None:
    is_table = [run.suffix == ".csv" for run in options.runs]
    if any(is_table):
        if len(options.runs) > 1 or options.block_size is not None:
            raise ValueError(f"{options.runs[is_table.index(True)]}: give it alone: it has its runs and block size")
        found, size = read_csv(options.runs[0])
        kinds: dict[str, Hashable] = {}
        names = ["png", "svg"]
    else:
        found, size, kinds = read_runs(list(dict.fromkeys(run.resolve() for run in options.runs)), options.block_size)
        names = ["csv", "png", "svg"]
    out = options.out or options.runs[0].resolve().parent
    out.mkdir(parents=True, exist_ok=True)
    files = {suffix: out / f"block_similarity.{suffix}" for suffix in names}
    if "csv" in files:
        write_csv(found, size, files["csv"])
    draw(pooled(found, kinds), size, note_of(found), [files["png"], files["svg"]])
    print(table(found, size))
    print(f"\n{', '.join(map(str, files.values()))}")


Found = dict[str, list["BlockSimilarity"]]
"""Cosines by name of the run."""


def read_runs(runs: Sequence[Path], block_size: int | None) -> tuple[Found, int, dict[str, Hashable]]:
    """The cosines between the blocks of runs, the layers of a block, and what `pooled` takes for kinds.

    Raises:
        ValueError: a run has no checkpoint, or no blocks to compare.
    """
    for run in runs:
        require_checkpoint(run)  # before torch is imported, which takes seconds
    from pretrain.checkpoint.run import open_checkpoint
    from pretrain.config.saved_model import SavedModel
    from pretrain.model.block_similarity import block_similarities
    from pretrain.rows.identity import RunIdentity

    opened = {run: open_checkpoint(run) for run in runs}
    models = {run: SavedModel.read(reader.meta).model for run, (reader, _) in opened.items()}
    sizes = {model.loop_regulariser.block_size for model in models.values()} - {0}
    if block_size is None and len(sizes) != 1:
        had = f"the runs have {', '.join(map(str, sorted(sizes)))}" if sizes else "no run has one in its configuration"
        raise ValueError(f"--block-size: give the layers of a block: {had}")
    size = block_size or sizes.pop()
    found: Found = {}
    kinds: dict[str, Hashable] = {}
    for run, (reader, problems) in opened.items():
        print_warnings(problems)
        try:
            found[name_of(run, runs)] = block_similarities(
                models[run], size, lambda name, reader=reader: reader.read_whole(f"weights/{name}")
            )
        except ValueError as error:
            raise ValueError(f"{run}: {error}") from None
        identity = RunIdentity.read(reader.meta)
        if identity.variant is not None:
            kinds[name_of(run, runs)] = identity.variant, identity.data, reader.step
    return found, size, kinds


def read_csv(path: Path) -> tuple[Found, int]:
    """What `write_csv` wrote: the cosines by run, and the layers of a block.

    Raises:
        ValueError: it is no such file.
    """
    from pretrain.model.block_similarity import BlockSimilarity

    cosines: dict[str, dict[Any, list[float]]] = {}
    sizes = set()
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                if not math.isfinite(value := float(row["cosine"])):
                    raise ValueError
                sizes.add(int(row["other_layer"]) - int(row["layer"]))
                cosines.setdefault(row["run"], {}).setdefault(row["group"], []).append(value)
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}:{number}: no row of block_similarity.csv: {','.join(HEADER)}") from None
    if len(sizes) != 1:
        raise ValueError(f"{path}: has pairs of {len(sizes)} distances, not of one: give a block_similarity.csv")
    found = {
        run: [BlockSimilarity(group, tuple(of)) for group, of in groups.items()] for run, groups in cosines.items()
    }
    return found, sizes.pop()


def note_of(found: Mapping[str, Sequence["BlockSimilarity"]]) -> str:
    """What the figure stands on."""
    pairs = {len(one.cosines) for similarities in found.values() for one in similarities}
    return f"{told_runs(map(RunName, found))}; {counted(pairs, 'pairs of layers')} of each run and kind"


def name_of(run: Path, runs: Sequence[Path]) -> str:
    """The folder's name, with that of the folder around it where two runs have the same."""
    several = sum(other.name == run.name for other in runs) > 1
    return f"{run.parent.name}/{run.name}" if several else run.name


def table(found: Mapping[str, Sequence["BlockSimilarity"]], block_size: int) -> str:
    """A line for each run, a column for each kind of matrix."""
    groups = [similarity.group for similarity in max(found.values(), key=len)]
    lines: list[tuple[str, ...]] = [("run", *groups, "mean")]
    for run, similarities in found.items():
        by_group = {similarity.group: similarity for similarity in similarities}
        cells = [_cell(by_group[group]) if group in by_group else "-" for group in groups]
        mean = sum(similarity.mean for similarity in similarities) / len(similarities)
        lines.append((run, *cells, f"{mean:.3f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    title = f"cosine of layers i and i + {block_size}: mean (least to largest) over the layers"
    return "\n".join([title, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])


def _cell(similarity: "BlockSimilarity") -> str:
    return f"{similarity.mean:.3f} ({min(similarity.cosines):.3f} to {max(similarity.cosines):.3f})"


def write_csv(found: Mapping[str, Sequence["BlockSimilarity"]], block_size: int, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for run, similarities in found.items():
            for group, cosines in similarities:
                writer.writerows((run, group, i, i + block_size, f"{value:.6f}") for i, value in enumerate(cosines))


def pooled(
    found: Mapping[str, Sequence["BlockSimilarity"]], kinds: Mapping[str, Hashable]
) -> dict[str, list["BlockSimilarity"]]:
    """Runs that differ in the seed alone together, by what they are called in the figure.

    Args:
        found: by name of the run.
        kinds: equal for runs that do; one that is not there, of before runs said their configuration, goes by its name.
    """
    pools: dict[Hashable, list[str]] = {}
    for run in found:
        pools.setdefault(kinds.get(run, without_seed(run)), []).append(run)
    short = {key: ", ".join(dict.fromkeys(map(without_seed, runs))) for key, runs in pools.items()}
    named: dict[str, list[BlockSimilarity]] = {}
    for key, runs in pools.items():
        is_clear = list(short.values()).count(short[key]) == 1
        name = re.sub(r"^(\d+)x(\d+)", "\\1⊗\\2", short[key] if is_clear else ", ".join(runs))
        seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        named[name + seeds] = [similarity for run in runs for similarity in found[run]]
    return named


def draw(pools: Mapping[str, Sequence["BlockSimilarity"]], block_size: int, note: str, files: Sequence[Path]) -> None:
    """A bar for each kind of matrix and configuration, with a line from the least to the largest cosine; below them the
    note."""
    groups = list(dict.fromkeys(one.group for similarities in pools.values() for one in similarities))
    width = 0.8 / len(pools)
    with new_figure(files, 8.0, 3.6, note) as figure:
        axes = figure.add_subplot()
        draw_grid_lines(axes)
        for number, (name, similarities) in enumerate(pools.items()):
            cosines = {
                group: [value for one in similarities if one.group == group for value in one.cosines]
                for group in groups
            }
            places = [place + (number - (len(pools) - 1) / 2) * width for place in range(len(groups))]
            kept = [(place, cosines[group]) for place, group in zip(places, groups, strict=True) if cosines[group]]
            means = [sum(values) / len(values) for _, values in kept]
            spread = [
                [mean - min(values) for mean, (_, values) in zip(means, kept, strict=True)],
                [max(values) - mean for mean, (_, values) in zip(means, kept, strict=True)],
            ]
            axes.bar(
                [place for place, _ in kept], means, 0.9 * width, label=name, color=COLOURS[number % len(COLOURS)],
                yerr=spread, error_kw={"linewidth": 1.0},
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(groups)), [group.replace("_", "\n") for group in groups])
        axes.set_ylabel(f"cosine of layers i and i + {block_size}")
        axes.set_title("Likeness of blocks after training (mean, least and largest)", fontsize=10)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(compare, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
