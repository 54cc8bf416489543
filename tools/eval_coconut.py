"""Evaluate a fine-tuned run: `python tools/eval_coconut.py --run runs/prosqa_coconut --latents all --num-loops 1`.

Prints a row for every number of latent thoughts (or pauses) and of loops: accuracy by exact match, and new tokens,
seconds and FLOPs per example. Each finished row is appended to <run>/eval/coconut.jsonl; a repeated command resumes.
Uses the best checkpoint of the last stage if there is one. Implementation: `finetune/answers/evaluation.py`.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from finetune.run.best import answering_run
from finetune.run.options import add_options
from pretrain.checkpoint.names import require_checkpoint
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser, counts
from pretrain.rows.jsonl import JsonLines

if TYPE_CHECKING:
    from finetune.answers.results import CoconutRow

HEADER = ["method", "thoughts", "loops", "accuracy %", "new tokens", "s/example", "GFLOP/example"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Evaluate a fine-tuned run at several numbers of thoughts and loops.")
    add_options(parser)
    parser.add_argument(
        "--soft-thoughts", type=counts(0), metavar="0,4,8",
        help="for a model that reasons in text: at most so many mixtures of tokens (Soft Thinking) in place of its "
        "chain; 0: the chain",
    )  # fmt: skip
    parser.add_argument(
        "--soft-beta", type=float, metavar="B", help="weight of the likeliest token (Mixture of Inputs)"
    )
    parser.add_argument(
        "--soft-stop", type=float, default=0.0, metavar="NATS", help="end them at this entropy, three times; default: 0"
    )
    options = parser.parse_args(arguments)
    if options.soft_thoughts and options.latents:
        parser.error("--latents and --soft-thoughts: give one of the two")
    return options


def evaluate(options: argparse.Namespace) -> None:
    require_checkpoint(answering_run(options.run, options.step), options.step)  # before torch, which takes seconds
    import torch

    from finetune.answers.evaluation import choose_cells, evaluate_cells, load_questions, soft_thinking
    from finetune.run.finetuned_model import load_finetuned

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    finetuned = load_finetuned(options.run, device, step=options.step)
    print_warnings(finetuned.trained.problems)
    questions = load_questions(finetuned, split=options.split, file=options.data, num_examples=options.num_examples)
    soft = None
    if options.soft_thoughts is not None:
        soft = soft_thinking(finetuned, questions, beta=options.soft_beta, threshold=options.soft_stop)
    thoughts = options.latents if soft is None else options.soft_thoughts
    cells = choose_cells(finetuned, thoughts, options.num_loops, are_soft=soft is not None)
    file = JsonLines(finetuned.run_dir / "eval" / "coconut.jsonl")
    batch = options.batch or finetuned.config.validation.batch
    rows = list(evaluate_cells(finetuned, questions, cells, file, batch=batch, soft=soft))
    asked = f"{len(questions.examples)} examples of {questions.split}{questions.floor.described}"
    print(f"{options.run}, step {finetuned.trained.step}, {asked}")
    print(table(rows))
    print_warnings(file.problems)
    print(f"rows: {file.path}")


def table(rows: Sequence["CoconutRow"]) -> str:
    cells = [HEADER]
    for row in rows:
        accuracy = f"{100 * row.accuracy:.1f} ± {100 * row.stderr:.1f}"
        cost = [f"{row.new_tokens:.1f}", f"{row.seconds_per_example:.4f}", f"{row.flops_per_example / 1e9:.4g}"]
        cells.append([row.method, str(row.num_thoughts), str(row.num_loops), accuracy, *cost])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    interrupted = "interrupted; finished rows are kept: the same command continues"
    return run_command(partial(evaluate, parse(arguments)), interrupted=interrupted)


if __name__ == "__main__":
    sys.exit(main())
