"""Clean web archives into shards: `python tools/clean_web.py --input 'crawl/*.warc.wet.gz' --output ...`.

Extracts text from HTML, keeps one language, applies quality filters, removes near duplicates and writes shards; then
prints a table of what was dropped and why, also in `report.txt` of the output folder. An interrupted command can be
repeated and resumes. With --slurm the stages are jobs. Implementation: `pretrain/data/web`.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from pretrain.command.console import run_command
from pretrain.command.options import OptionParser, positive

MOST_TASKS = 1000
"""Most tasks without --tasks; Slurm's usual limit on arrays."""


def parse_arguments() -> argparse.Namespace:
    parser = OptionParser(description="Clean web archives (WARC or WET) into shards for pretraining.")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="GLOB", help="files, globs or URLs: .warc or .wet, plain or .gz"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for shards, report, logs and more")
    parser.add_argument("--language", default="en", metavar="CODE", help="the language to keep; default: en")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--language-model", type=Path, metavar="FILE", help="fastText's lid.176.bin or .ftz, from its site, not fetched"
    )
    model.add_argument("--no-language-filter", action="store_true", help="keep all languages")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--tokenizer", type=Path, metavar="FILE", help="as tools/train_tokenizer.py writes it")
    target.add_argument("--keep-text", action="store_true", help="shards of text; the loader tokenises it")
    tasks = f"tasks to divide the files into; default: one per file, at most {MOST_TASKS}"
    parser.add_argument("--tasks", type=positive, metavar="N", help=tasks)
    where = parser.add_mutually_exclusive_group()
    cores = os.cpu_count() or 1
    where.add_argument("--workers", type=positive, default=cores, metavar="N", help="default: one per core")
    where.add_argument("--slurm", metavar="PARTITION", help="submit jobs; their options by SBATCH_ACCOUNT and so on")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    # datatrove takes seconds to import: not before --help and errors of options
    from pretrain.data.prepare.inputs import find_files
    from pretrain.data.web.runs import run_here, submit
    from pretrain.data.web.stages import REPORT_NAME, CleanSettings

    inputs = tuple(file.path for file in find_files(arguments.input, partial(print, file=sys.stderr)))
    settings = CleanSettings(
        inputs=inputs,
        output=arguments.output,
        language=arguments.language,
        language_model=arguments.language_model,
        tokenizer=arguments.tokenizer,
        num_tasks=arguments.tasks or min(len(inputs), MOST_TASKS),
    )
    report = settings.output / REPORT_NAME
    if arguments.slurm:
        job = submit(settings, arguments.slurm)
        print(report.read_text().rstrip() if job is None else f"submitted; when job {job} has ended: {report}")
    else:
        print(run_here(settings, arguments.workers, partial(print, file=sys.stderr, flush=True)))


def main() -> int:
    arguments = parse_arguments()
    return run_command(
        partial(run, arguments), interrupted="interrupted; finished tasks are kept: the same command continues"
    )


if __name__ == "__main__":
    sys.exit(main())
