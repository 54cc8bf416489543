"""Train a tokenizer: `python tools/train_tokenizer.py --input 'text/*.jsonl' --vocab-size 32000 --output FILE`.

Reads the same inputs as tools/prepare_data.py, holds out every tenth document (up to 4 MiB) and prints the bytes per
token on these. Implementation: `pretrain/data/tokenizers/train.py`.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pretrain.command.console import interruptible, run_command
from pretrain.command.options import OptionParser, add_input, positive
from pretrain.data.prepare.documents import find_inputs, read_documents, split_file
from pretrain.data.prepare.inputs import InputFile
from pretrain.data.prepare.progress import PrepareProgress
from pretrain.data.prepare.records import Document, Problem
from pretrain.data.prepare.units import Advance, Report, Started, without_interrupts
from pretrain.data.tokenizers.train import HELD_OUT_EVERY, train_tokenizer
from pretrain.storage import write_atomically


def parse_arguments() -> argparse.Namespace:
    parser = OptionParser(description="Train a SentencePiece tokenizer on text files.")
    add_input(parser, required=True)
    parser.add_argument("--vocab-size", type=positive, required=True, metavar="N", help="pieces, special ones included")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.model", help="tokenizer to write")
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe", help="default: bpe")
    sentences = "lines sampled to train on; default: 1000000"
    parser.add_argument("--max-sentences", type=positive, default=1_000_000, metavar="N", help=sentences)
    return parser.parse_args()


def read_texts(files: list[InputFile], text_field: str, report: Report) -> Iterator[str]:
    """Iterate over the texts of all documents, reporting progress."""
    report(Started(sum(file.size for file in files), 0))
    for file in files:
        (piece,) = split_file(file, max(file.size, 1))
        consumed = 0
        for item in read_documents(piece, text_field):
            if isinstance(item, Problem):
                report(item)
            elif isinstance(item, Document):
                report(Advance(item.consumed - consumed, 1))
                consumed = item.consumed
                yield item.text
        report(Advance(piece.size - consumed, 0))


def train(arguments: argparse.Namespace) -> None:
    with PrepareProgress("read") as progress:
        files = find_inputs(arguments.input, progress, dataset=arguments.dataset, split=arguments.split)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        texts = read_texts(files, arguments.text_field, progress)
        model, report = train_tokenizer(
            texts, vocab_size=arguments.vocab_size, model_type=arguments.model_type,
            max_sentences=arguments.max_sentences,
        )  # fmt: skip
    write_atomically(arguments.output, model)
    held_out = f"{report.held_out_documents} held-out documents ({report.held_out_bytes / 1e6:.2f} MB)"
    if report.bytes_per_token is None:
        measure = f"bytes per token unknown: fewer than {HELD_OUT_EVERY} documents, none held out"
    else:
        measure = f"{report.bytes_per_token:.3f} bytes per token on {held_out}"
    print(f"{arguments.output}: {report.vocab_size} pieces from {report.documents} documents; {measure}")


def child(arguments: argparse.Namespace) -> None:
    sys.exit(run_command(partial(train, arguments)))


def main() -> int:
    # SentencePiece cannot be interrupted: in a separate process Ctrl-C can end it
    process = multiprocessing.get_context("spawn").Process(target=child, args=(parse_arguments(),), daemon=True)
    with without_interrupts():
        process.start()
    try:
        with interruptible():
            process.join()
    except KeyboardInterrupt:
        process.terminate()
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    assert process.exitcode is not None
    if process.exitcode < 0:
        how = f"killed by signal {-process.exitcode} (out of memory?)"
        print(f"error: training was {how}; lower --max-sentences", file=sys.stderr)
        return 1
    return process.exitcode


if __name__ == "__main__":
    sys.exit(main())
