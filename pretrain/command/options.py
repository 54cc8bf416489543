"""Options that commands share, and the types of options: numbers with a least value, lists of numbers and of names."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pretrain.command.console import BAD_INPUT, print_line, printing

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

MOST_SHOWN = 60
"""Characters of a wrong value in an error."""


class OptionParser(argparse.ArgumentParser):
    """Options of a command. A wrong one is a line, without the usage before it, and the help goes to any terminal."""

    def error(self, message: str) -> NoReturn:
        print_line(f"error: {message.removeprefix('argument ')}; --help lists the options")
        sys.exit(BAD_INPUT)

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        with printing():
            super().print_help(file)


def add_run(parser: argparse.ArgumentParser, default: str = "the newest good one") -> None:
    """--run and --step: the run whose checkpoint is read; the checkpoint is found by `open_checkpoint`."""
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="directory of the run")
    parser.add_argument("--step", type=at_least(0), metavar="N", help=f"of the checkpoint; default: {default}")


def add_input(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """--input or --dataset, --split and --text-field: what `pretrain/data/prepare/documents.py` reads."""
    kinds = (
        "files, globs, URLs, braces such as {000..099}: .txt, .jsonl, WebDataset's .tar (plain or .gz .xz .zst), "
        ".parquet, .arrow; folders of save_to_disk; 'pipe:COMMAND', a shell command that writes a tar"
    )
    either = parser.add_mutually_exclusive_group(required=required)
    either.add_argument("--input", nargs="+", default=[], metavar="GLOB", help=kinds)
    name = "a data set of the Hugging Face Hub, read from there; goes with --split"
    either.add_argument("--dataset", metavar="NAME[:CONFIG]", help=name)
    parser.add_argument("--split", metavar="NAME", help="of --dataset, or of a folder that holds several data sets")
    field = "key of the text in .jsonl and .json, column in .parquet and .arrow; default: text"
    parser.add_argument("--text-field", default="text", metavar="NAME", help=field)


def at_least(minimum: int, maximum: int = sys.maxsize) -> Callable[[str], int]:
    """Type of an option: a whole number from the minimum to the maximum."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs a whole number, got {text[:MOST_SHOWN]}") from None
        if number < minimum:
            raise argparse.ArgumentTypeError(f"needs at least {minimum}, got {number}")
        if number > maximum:
            raise argparse.ArgumentTypeError(f"needs at most {maximum}, got {text[:MOST_SHOWN]}")
        return number

    return parse


positive = at_least(1)


def counts(minimum: int) -> Callable[[str], list[int]]:
    """Type of an option: whole numbers between commas, none below the minimum; each once, in their order."""

    def parse(text: str) -> list[int]:
        try:
            numbers = list(dict.fromkeys(int(part) for part in text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs whole numbers such as 1,2,4, got {text[:MOST_SHOWN]}") from None
        if min(numbers) < minimum or max(numbers) > sys.maxsize:
            raise argparse.ArgumentTypeError(f"needs numbers of at least {minimum}, got {text[:MOST_SHOWN]}")
        return numbers

    return parse


def named_list(text: str) -> tuple[str, list[str]]:
    """Type of an option: a name for a list of names."""
    name, _, members = text.partition("=")
    if not name or not names(members):
        raise argparse.ArgumentTypeError(f"needs a name and others such as all=a,b, got {text[:MOST_SHOWN]}")
    return name, names(members)


def names(text: str) -> list[str]:
    """Type of an option: names between commas."""
    return [name for name in text.split(",") if name]
