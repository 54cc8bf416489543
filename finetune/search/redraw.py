"""Figures of the latent search drawn anew from the numbers of a run that need not be there any more: those that
`numbers.json` has all of (process, thoughts, grid)."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from finetune.answers.results import CoconutRow
from finetune.search.figures import draw_grid, draw_process, draw_thoughts
from finetune.search.latent_search import ThoughtNumbers
from finetune.search.search_tree import ProcessBar
from pretrain.rows.provenance import RunName, counted, told_runs
from pretrain.schema.section import first_problem
from pretrain.storage import parse_json

SUFFIXES = (".png", ".svg")


@dataclass(frozen=True, kw_only=True)
class SearchNumbers:
    """What a file of numbers has for figures; what else is in it is passed over."""

    run: str
    split: str
    num_examples: int
    process: list[ProcessBar]
    thoughts: ThoughtNumbers | None
    grid: list[CoconutRow]


def read_numbers(path: Path) -> SearchNumbers:
    """The numbers of a file.

    Raises:
        ValueError: it is no numbers.json of tools/latent_search.py.
    """
    try:
        return TypeAdapter(SearchNumbers).validate_python(parse_json(path.read_bytes()))
    except ValidationError as error:
        problem = first_problem(error)
        raise ValueError(f"{path}: {problem}: name a run, or a numbers.json of tools/latent_search.py") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def note_of(run: str, split: str, num_examples: int, *others: str) -> str:
    """What a figure of the search stands on: the run, those beside it, and the questions."""
    return f"{told_runs(map(RunName, (run, *others)))}; {counted([num_examples], f'{split} questions')}"


def draw_numbers(found: SearchNumbers, folder: Path) -> list[str]:
    """Draw the figures that have numbers; returns their names."""
    names = []

    def files(name: str) -> list[Path]:
        names.append(name)
        return [folder / (name + suffix) for suffix in SUFFIXES]

    asked = found.run, found.split, found.num_examples
    if found.process:
        others = [bar.label for bar in found.process if bar.method]
        note = f"{note_of(*asked, *others)}; bars: ± standard error over questions"
        draw_process(found.process, note, files("process"))
    if found.thoughts is not None:
        note = f"{note_of(*asked)}; bars and band: ± standard deviation over questions, and over tokens"
        draw_thoughts(found.thoughts, note, files("thoughts"))
    draw_grid(found.grid, note_of(*asked), files("grid"))
    return names
