"""Options that the commands on a fine-tuned run share."""

import argparse
from collections.abc import Callable
from pathlib import Path

from pretrain.run.console import positive


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which run, and which questions: --run, --step, --latents, --num-loops, --split, --data, --num-examples,
    --batch."""
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="directory of the run")
    parser.add_argument(
        "--step",
        type=positive,
        metavar="N",
        help="of the checkpoint; default: the best of the last stage, or the newest",
    )
    parser.add_argument(
        "--latents", type=counts(0), metavar="0,1,2", help="numbers of thoughts; default: that of the last stage"
    )
    parser.add_argument("--num-loops", type=counts(1), metavar="1,2,4", help="loop counts; default: that of training")
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="of the run's data; default: test"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="examples in a file, instead of a split")
    parser.add_argument("--num-examples", type=positive, metavar="N", help="first examples; default: all")
    parser.add_argument(
        "--batch", type=positive, default=64, metavar="N", help="questions answered together; default: 64"
    )


def counts(minimum: int) -> Callable[[str], list[int]]:
    """Type of an option: whole numbers between commas, none below the minimum; each once, in their order."""

    def parse(text: str) -> list[int]:
        try:
            found = list(dict.fromkeys(int(part) for part in text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs whole numbers such as 1,2,4, got {text}") from None
        if min(found) < minimum:
            raise argparse.ArgumentTypeError(f"needs numbers of at least {minimum}, got {text}")
        return found

    return parse
