"""Prepare shards: `python tools/prepare_data.py --input 'text/*.jsonl' --tokenizer FILE --output data/shards`.

Writes a source of WebDataset tars of token ids (or of text, with --keep-text). An interrupted command can be repeated
and resumes. On several machines: run it with `--part 1/16`, ..., `--part 16/16`, in any order, then with `--merge 16`,
as `slurm/prepare_data.sh` does; the result is byte-identical to that of one command. `--index DIR` instead makes a
source of a folder of existing WebDataset tars of text. Implementation: `pretrain/data/prepare/prepare.py`,
`foreign.py`.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser, add_input, at_least, positive
from pretrain.data.manifest import Header
from pretrain.data.prepare.claim import Part
from pretrain.data.prepare.cutting import Cut
from pretrain.data.prepare.prepare import PrepareSettings, merge_parts, prepare, prepare_part
from pretrain.data.prepare.progress import PrepareProgress

REUSED = "reused: nothing to do"


def part(text: str) -> Part:
    """Parse the value of --part, such as 3/16."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"needs a part and their number, as 3/16, got {text!r}")
    return Part(int(number), int(count))


def parse_arguments() -> argparse.Namespace:
    parser = OptionParser(description="Turn text files into shards for pretraining.")
    option, cores = parser.add_argument, os.cpu_count() or 1
    add_input(parser, required=False)
    option("--tokenizer", type=Path, metavar="FILE", help="as tools/train_tokenizer.py writes it")
    option("--output", type=Path, metavar="DIR", help="folder of the shards")
    option("--keep-text", action="store_true", help="write the text itself; the loader tokenises it")
    option("--workers", type=at_least(0), default=cores, metavar="N", help="processes; default: one per core")
    cut = "where a text is cut into documents; default: a file, line or row is one"
    option("--split-documents", choices=get_args(Cut), help=cut)
    option("--max-document-tokens", type=positive, metavar="N", help="cut longer documents; default: no limit")
    option("--shard-documents", type=positive, metavar="N", help="most documents of a shard; default: no limit")
    option("--shard-tokens", type=positive, metavar="N", help="most tokens of a shard; default: no limit")
    option("--strict", action="store_true", help="stop at the first bad input, with exit code 2")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--part", type=part, metavar="I/N", help="only part I of N, beside the others or on its own")
    share.add_argument("--merge", type=positive, metavar="N", help="make the source of N finished parts")
    option("--index", type=Path, metavar="DIR", help="index the foreign tars of text in DIR; goes with --strict only")
    arguments = parser.parse_args()
    if arguments.index is not None:
        others = ("input", "dataset", "split", "output", "tokenizer", "keep_text", "part", "merge")
        if any(getattr(arguments, name) for name in others):
            parser.error("--index works on a folder of tars in place and takes --strict only")
    elif not (arguments.input or arguments.dataset) or not arguments.output:
        parser.error("--input (or --dataset) and --output are needed (or --index)")
    elif (arguments.tokenizer is None) != arguments.keep_text:
        parser.error("either --tokenizer FILE or --keep-text is needed, and not both")
    return arguments


def describe(header: Header, num_texts: int | None = None) -> str:
    size = f"{header.num_tokens:,} tokens" if header.num_tokens is not None else "text"
    problems = ", ".join(f"{count} x {reason}" for reason, count in header.problems.items())
    not_used = f"; not used: {problems}" if problems else ""
    cut = "" if num_texts in (None, header.num_documents) else f" cut from {num_texts:,} text{'s'[: num_texts != 1]}"
    return f"{header.num_documents:,} documents{cut}, {size}, {header.num_shards:,} shards{not_used}"


def run(arguments: argparse.Namespace) -> str:
    """Prepare, merge or index; returns the line to print."""
    if arguments.index is not None:
        with PrepareProgress("index") as progress:
            # imports torch, which the worker processes do not need
            from pretrain.data.prepare.foreign import index_folder

            return f"{arguments.index}: {describe(index_folder(arguments.index, progress, strict=arguments.strict))}"
    settings = PrepareSettings(
        inputs=tuple(arguments.input), output=arguments.output, tokenizer=arguments.tokenizer,
        text_field=arguments.text_field, dataset=arguments.dataset, split=arguments.split,
        split_documents=arguments.split_documents, max_document_tokens=arguments.max_document_tokens,
        shard_documents=arguments.shard_documents, shard_tokens=arguments.shard_tokens,
        num_workers=arguments.workers, strict=arguments.strict,
    )  # fmt: skip
    if arguments.merge is not None:
        result = merge_parts(settings, arguments.merge)
        how = REUSED if result.reused else f"merged from {arguments.merge} parts"
        return f"{arguments.output}: {describe(result.header, result.num_texts)} ({how})"
    with PrepareProgress("prepare") as progress:
        if arguments.part is not None:
            done = prepare_part(settings, arguments.part, progress)
            counts = f"{done.num_units} units, {done.resumed_units} of them before"
            return f"{arguments.output}: part {arguments.part} is finished: {counts}"
        result = prepare(settings, progress)
    resumed = f" (continued: {result.resumed_units} units were done)" if result.resumed_units else ""
    return (
        f"{arguments.output}: {describe(result.header, result.num_texts)}{f' ({REUSED})' if result.reused else resumed}"
    )


def main() -> int:
    arguments = parse_arguments()
    interrupted = "interrupted; finished work is kept: the same command continues"
    return run_command(lambda: print(run(arguments)), interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
