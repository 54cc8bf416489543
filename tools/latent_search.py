"""Analyse latent thoughts and how they search a graph: `python tools/latent_search.py --run runs/prosqa_coconut`.

Writes figures (PNG and SVG) and numbers to <run>/analysis/, after section 5 of the Coconut paper. For questions with a
graph (ProsQA in words or symbols, ProntoQA, and any task that says how it writes one):

    process      correct answers and classes of reasoning for each number of thoughts, and for other runs (--compare)
    parallelism  share of the value on the best one, two, three nodes, over the questions
    height       value of nodes that lead to the target and of those that do not, against their height
    tree         the graph of one question (--question), nodes shaded by their value

For questions of any data set, with the tokens that the thoughts about one of them (--question) decode to:

    thoughts     norm and direction of thoughts, and the tokens they decode to
    grid         accuracy for each number of thoughts and loops against FLOPs per answer

With a numbers.json in place of the run, what it has all numbers of (process, thoughts, grid) is drawn anew:
`--run configs/finetune/results/prosqa_hard_small_from_cot/numbers.json`.

Implementation: `finetune/search/search_report.py`; definitions: `finetune/search/search_tree.py`.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.run.best import answering_run
from finetune.run.options import add_options
from pretrain.checkpoint.names import require_checkpoint
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser, at_least
from pretrain.rows.jsonl import JsonLines

if TYPE_CHECKING:
    from finetune.search.search_report import SearchReport


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Look at latent thoughts: what they decode to, and their search in a graph.")
    add_options(parser)
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="DIR", help="other runs to classify too")
    parser.add_argument(
        "--question", type=at_least(0), default=0, metavar="N", help="the one that is looked at; default: 0"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: analysis/ of the run")
    return parser.parse_args(arguments)


def redraw(options: argparse.Namespace) -> None:
    from finetune.search.redraw import draw_numbers, read_numbers

    found, out = read_numbers(options.run), options.out or options.run.parent
    out.mkdir(parents=True, exist_ok=True)
    print(f"figures in {out}: {', '.join(draw_numbers(found, out))}")


def search(options: argparse.Namespace) -> None:
    require_checkpoint(answering_run(options.run, options.step), options.step)  # before torch, which takes seconds
    import torch

    from finetune.answers.evaluation import choose_cells, evaluate_cells, load_questions
    from finetune.run.finetuned_model import load_finetuned
    from finetune.search.search_report import Searcher, SearchReport, draw_report, write_numbers
    from pretrain.run.progress import Progress

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    finetuned = load_finetuned(options.run, device, step=options.step)
    others = [load_finetuned(run, device) for run in options.compare]
    questions = load_questions(finetuned, split=options.split, file=options.data, num_examples=options.num_examples)
    out = options.out or finetuned.run_dir / "analysis"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)  # before the work that is to be written there
    if options.question >= len(questions.examples):
        raise ValueError(f"--question {options.question}: there are {len(questions.examples)} questions, from 0")
    batch = options.batch or finetuned.config.validation.batch
    searcher = Searcher(finetuned, questions, batch)
    if others and not searcher.graphs:
        raise ValueError("--compare classifies paths in a graph, and these questions have none")
    cells = choose_cells(finetuned, "all" if options.latents is None else options.latents, options.num_loops)
    latents = list(dict.fromkeys(cell.num_thoughts for cell in cells))
    file = JsonLines(finetuned.run_dir / "eval" / "coconut.jsonl")
    grid = list(evaluate_cells(finetuned, questions, cells, file, batch=batch))
    print_warnings(file.problems)
    bar = Progress((2 * len(latents) if searcher.graphs else 0) + len(others))
    bars, values = [], {}
    for number, num_thoughts in enumerate(latents if searcher.graphs else ()):
        bars.append(searcher.judge(num_thoughts))
        bar.update(2 * number + 1, f"answers after {num_thoughts} thoughts")
        if num_thoughts:
            values[num_thoughts] = searcher.values(num_thoughts)
        bar.update(2 * number + 2, f"values after {num_thoughts} thoughts")
    for number, other in enumerate(others, start=1):
        bars.append(searcher.judge_other(other))
        bar.update(2 * len(latents) + number, f"answers of {other.config.run.name}")
    bar.close()
    report = SearchReport(
        run=finetuned.config.run.name,
        step=finetuned.trained.step,
        split=questions.split,
        num_examples=len(questions.examples),
        floor=questions.floor,
        num_loops=finetuned.config.train.num_loops or finetuned.trained.saved.model.num_loops,
        bars=bars,
        values=values,
        thoughts=searcher.thoughts(max(latents)),
        grid=grid,
    )
    files = write_numbers(report, options.question, out)
    names = draw_report(report, searcher, options.question, out)
    print("\n".join([summary(report), *searcher.case_study(report.thoughts, options.question, max(latents))]))
    print(f"figures in {out}: {', '.join(names)}; numbers: {', '.join(files)}")


def summary(report: "SearchReport") -> str:
    """The main numbers of the report, as text."""
    from finetune.search.search_tree import frontier_share, top_values

    examples = f"{report.num_examples} examples of {report.split}"
    lines = [f"{report.run}, step {report.step}, {examples}, loops: {report.num_loops}{report.floor.described}"]
    if not report.bars:
        for row in report.grid:
            right = f"{100 * row.accuracy:.1f} ± {100 * row.stderr:.1f} % right"
            lines.append(f"  thoughts: {row.num_thoughts}, loops: {row.num_loops}: {right}")
    for bar in report.bars:
        shares = ", ".join(f"{process.value} {100 * share:.1f}" for process, share in bar.shares.items() if share)
        lines.append(f"  {bar.label}: {100 * bar.accuracy:.1f} ± {100 * bar.stderr:.1f} % right; {shares}")
    for num_thoughts, values in report.values.items():
        means = ", ".join(f"{sum(curve) / len(curve):.2f}" for curve in top_values(values))
        best = f"value of the best 1, 2, 3 nodes together {means}"
        lines.append(f"  after {num_thoughts}: {best}; of the frontier {frontier_share(values):.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return run_command(partial(redraw if options.run.suffix == ".json" else search, options))


if __name__ == "__main__":
    sys.exit(main())
