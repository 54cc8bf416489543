"""Options that the commands for a fine-tuned run share."""

import argparse
from pathlib import Path
from typing import Literal

from pretrain.command.options import add_run, counts, positive


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which run, at what thoughts and loops, and which questions."""
    add_run(parser, "the best of the last stage, or the newest")
    parser.add_argument(
        "--latents", type=_latents, metavar="0,1,2", help="numbers of thoughts, or all: 0 to those of the last stage"
    )
    parser.add_argument("--num-loops", type=counts(1), metavar="1,2,4", help="loop counts; default: that of training")
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="of the run's data; default: test"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="examples in a file, instead of a split")
    parser.add_argument("--num-examples", type=positive, metavar="N", help="first examples; default: all")
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="questions answered together; default: validation.batch of the run"
    )


def _latents(text: str) -> Literal["all"] | list[int]:
    return "all" if text == "all" else counts(0)(text)
