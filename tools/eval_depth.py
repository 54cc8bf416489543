"""Evaluate a run at several loop counts: `python tools/eval_depth.py --run runs/p_hop_small --num-loops 1,2,4,8`.

One pass scores all loop counts; answers are generated for each. Tasks are those of the paper by group (closed_book
open_book math_word_problems primitives), the generators of pretrain/tasks, and any task of the evaluation harness.
Parameters behind a generator ask another difficulty than the run was trained at: p_hop:num_hops=4. --data-dir replaces
the network by local files, and a generator by a file of its name (prosqa/prosqa_test.json.gz), if there is one.
--include-path has tasks of your own in the harness's format; my_module:Parity is one in Python (pretrain/EXTENDING.md).
The rows of each finished task are appended to <run>/eval/depth.jsonl; a repeated command resumes. Under
pretrain.launch, --tensor and --pipeline split the model, and the remaining factor of ranks splits the examples.

`--num-loops auto:0.02` lets each token stop on its own and prints score, mean loops a token and tokens/s beside those
of fixed loop counts, all token by token; no rows are written. It works in one process.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint.names import require_checkpoint
from pretrain.command.console import print_warnings, run_command
from pretrain.command.entry import require_one_process
from pretrain.command.options import OptionParser, add_run, counts, names, positive
from pretrain.model.loop.exit_rules import HELP, ExitRule, exit_rule, is_auto
from pretrain.rows.jsonl import JsonLines
from pretrain.run.progress import tracked

if TYPE_CHECKING:
    from pretrain.checkpoint.reader import CheckpointReader
    from pretrain.eval.groups import ResolvedTask, SkippedTask
    from pretrain.eval.scorer import Scorer
    from pretrain.model.gpt import LoopedGPT
    from pretrain.rows.evaluation import ScoredModel


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Evaluate a run on tasks at several loop counts.")
    add_run(parser)
    option = parser.add_argument
    option("--tasks", type=names, default=[], metavar="A,B", help="tasks, groups; default: what the run trained on")
    option(
        "--num-loops", type=loops_or_rule, metavar="1,2,4|auto[:RULE][:THRESHOLD]",
        help="loop counts; default: model.num_loops of the run. auto: each token stops where the rule says. Rules "
        f"(thresholds): {HELP}. Default: gate if the model has one, else kl",
    )  # fmt: skip
    option("--keys", choices=["share", "compute"], default="share", help="with auto: as of tools/generate.py")
    option("--data-dir", type=Path, metavar="DIR", help="folder of evaluation data, for tasks without the network")
    option("--include-path", type=Path, metavar="DIR", help="folder of your tasks: YAML of lm-eval, with its Python")
    option("--offline", action="store_true", help="never use the network: tasks without local files are skipped")
    option("--num-examples", type=positive, metavar="N", help="first examples of each task; default: all")
    option("--batch", type=positive, default=8, metavar="N", help="sequences run together, any number; default: 8")
    option(
        "--bos", action=argparse.BooleanOptionalAction,
        help="texts begin with the begin-of-sequence token; default: as the tokenizer says, like lm-eval's hf",
    )  # fmt: skip
    option("--tensor", type=positive, default=1, metavar="N", help="ranks that split each matrix; default: 1")
    option("--pipeline", type=positive, default=1, metavar="N", help="pipeline stages; default: 1")
    option("--out", type=Path, metavar="FILE", help="rows; default: eval/depth.jsonl of the run")
    return parser.parse_args(arguments)


def loops_or_rule(text: str) -> list[int] | str:
    """Type of --num-loops."""
    return text if is_auto(text) else counts(1)(text)


def evaluate(options: argparse.Namespace) -> None:
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # those of downloads
    require_checkpoint(options.run, options.step)  # before torch is imported, which takes seconds
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise ValueError(f"--data-dir {options.data_dir}: no such folder")
    if isinstance(options.num_loops, str):
        require_one_process(f"--num-loops {options.num_loops}, by which tokens stop on their own,")
    import torch.distributed as dist

    from pretrain.checkpoint.run import open_checkpoint
    from pretrain.config.run import ParallelSection
    from pretrain.config.saved_model import SavedModel
    from pretrain.device.ranks import world_from_environment
    from pretrain.eval.scorer import Scorer
    from pretrain.parallel.contact import contact
    from pretrain.parallel.groups import make_groups, start_world
    from pretrain.parallel.stage import load_stage
    from pretrain.schema.section import require_divides

    reader, problems = open_checkpoint(options.run, options.step)
    saved = SavedModel.read(reader.meta)
    parallel = ParallelSection(tensor=options.tensor, pipeline=options.pipeline)
    saved.model.require_split(("--tensor", options.tensor), ("--pipeline", options.pipeline))
    loops, rule = options.num_loops or [saved.model.num_loops], None
    if isinstance(loops, str):
        loops, rule = [saved.model.num_loops], exit_rule(loops, saved.model)
    saved.model.require_loops("--num-loops", loops)
    split = ("--tensor · --pipeline", options.tensor * options.pipeline)
    require_divides("number of ranks", world_from_environment().size, *split)
    with contact(options.run):
        device = start_world()
        try:
            groups = make_groups(parallel, device)
            model = load_stage(saved, parallel, groups, reader)
            if rule is not None:
                print_warnings(problems)
                score_exits(options, reader, model, rule)
                return
            scorer = Scorer(model, groups, batch_size=options.batch, track=progress)
            if dist.get_rank():
                scorer.serve()
                return
            try:
                print_warnings(problems)
                score(options, reader, scorer, loops)
            finally:
                scorer.close()
        finally:
            dist.destroy_process_group()


def progress(windows: Sequence[object]) -> Iterable[object]:
    """The batches of one request of the harness, with progress if they take long."""
    # sys.stderr is redirected while the harness runs
    return tracked(windows, len(windows), "scoring", unit="part", stream=sys.__stderr__)


def load_tasks(
    options: argparse.Namespace, subject: "ScoredModel"
) -> tuple[list["ResolvedTask"], dict[str, list[Any]], list["SkippedTask"], list["SkippedTask"]]:
    """All that is asked for, loaded before the first task is scored: tasks, their objects by name, those that are
    skipped and those that could not be loaded, each of which is said.

    Raises:
        ValueError: a name is unknown.
    """
    from pretrain.eval.evaluate import prepare_harness
    from pretrain.eval.groups import ResolvedTask, SkippedTask, tasks_of
    from pretrain.eval.loading import load_all

    resolved = tasks_of(
        subject.saved, options.tasks, options.data_dir, allow_network=not options.offline,
        include_path=options.include_path,
    )  # fmt: skip
    skipped = [task for task in resolved if isinstance(task, SkippedTask)]
    wanted = [task for task in resolved if isinstance(task, ResolvedTask)]
    prepare_harness()
    say = partial(print, file=sys.stderr, flush=True)
    loaded, failed = load_all(wanted, options.data_dir, num_examples=options.num_examples, say=say)
    for task in [*skipped, *failed]:
        print(f"skipped {task.name}: {task.reason}", file=sys.stderr)
    return [task for task in wanted if task.name in loaded], loaded, skipped, failed


def require_evaluated(
    wanted: Sequence["ResolvedTask"], skipped: Sequence["SkippedTask"], failed: Sequence["SkippedTask"]
) -> None:
    """Raise an OSError that names what was not evaluated, if nothing was or a task could not be loaded."""
    if failed or not wanted:
        names = ", ".join(task.name for task in [*skipped, *failed])
        raise OSError(f"not evaluated: {names}; the reasons are above")


def score_exits(options: argparse.Namespace, reader: "CheckpointReader", model: "LoopedGPT", rule: ExitRule) -> None:
    """Tokens that stop on their own, beside fixed loop counts: the model's own, and the next ones below and above the
    mean."""
    from pretrain.eval import evaluate as evaluation
    from pretrain.eval.exits import ExitScorer
    from pretrain.eval.harness import LoopedLM
    from pretrain.rows.evaluation import ScoredModel
    from pretrain.run.trained_model import load_tokenizer, tokenizer_file

    subject = ScoredModel.of(reader.meta, reader.step, reader.sha256)
    tokenizer = load_tokenizer(tokenizer_file(options.run, subject.saved), reader)
    most = subject.saved.model.num_loops

    wanted, loaded, skipped, failed = load_tasks(options, subject)
    for task in wanted:
        print(f"{task.name} ({task.group}{about_source(task)})")
        ways: list[tuple[ExitRule | None, int]] = [(rule, most), (None, most)]
        about_cut = ""
        for way, loops in ways:
            for num_examples in (1, options.num_examples):  # one first: what happens once is no part of tokens/s
                scorer = ExitScorer(model, way, options.keys, options.batch)
                lm = LoopedLM(scorer, tokenizer, [loops], max_length=subject.saved.seq_len, add_bos=options.bos)
                rows = evaluation.rows_of(lm, subject, task, loaded[task.name], num_examples)
                about_cut = lm.about_cut
            cost = f"{scorer.mean_loops:.2f} loops a token, {scorer.tokens_per_s:,.0f} tokens/s"
            for row in (row for row in rows if row.is_main):
                print(f"  {way or f'{loops} loops'}: {row.metric} {row.value:.4f} ({row.num_examples}), {cost}")
            if way is not None:
                beside = {max(1, math.floor(scorer.mean_loops)), math.ceil(scorer.mean_loops)} - {most}
                ways += [(None, loops) for loops in sorted(beside)]
        print_warnings([f"{task.name}: {about_cut}"] if about_cut else [])
    require_evaluated(wanted, skipped, failed)


def score(options: argparse.Namespace, reader: "CheckpointReader", scorer: "Scorer", loops: list[int]) -> None:
    """Evaluate on rank 0, while the other ranks serve the scorer."""
    from pretrain.eval import evaluate as evaluation
    from pretrain.eval.harness import LoopedLM
    from pretrain.rows.evaluation import ScoredModel
    from pretrain.run.trained_model import load_tokenizer, tokenizer_file

    subject = ScoredModel.of(reader.meta, reader.step, reader.sha256)
    tokenizer = load_tokenizer(tokenizer_file(options.run, subject.saved), reader)
    file = JsonLines(options.out or options.run / "eval" / "depth.jsonl")
    wanted, loaded, skipped, failed = load_tasks(options, subject)
    lm = LoopedLM(scorer, tokenizer, loops, max_length=subject.saved.seq_len, add_bos=options.bos)
    results = evaluation.evaluate(
        lm, subject, wanted, lambda task: loaded[task.name], num_examples=options.num_examples, file=file
    )
    num_reused = 0
    for number, (task, rows) in enumerate(results, start=1):
        if not rows:
            num_reused += 1
            print(f"{file.path} has {task.name} already", file=sys.stderr)
            continue
        file.append(rows)
        print(f"[{number}/{len(wanted)}] {task.name} ({task.group}{about_source(task)})")
        for row in rows:
            error = f" ± {row.stderr:.4f}" if row.stderr is not None else ""
            print(
                f"  {row.num_loops:3d} loops, depth {row.effective_depth:3d}: "
                f"{row.metric} {row.value:.4f}{error} ({row.num_examples})",
                flush=True,
            )
    print_warnings(file.problems)
    counted = f"{len(wanted) - num_reused} tasks evaluated, {num_reused} already done"
    print(f"{file.path}: {counted}, {len(skipped) + len(failed)} skipped")
    require_evaluated(wanted, skipped, failed)


def about_source(task: "ResolvedTask") -> str:
    """Of a generator's task: the file that was read, or that none was and what the task's best shortcut and chance get;
    nothing for a task of the harness."""
    if task.generator is None:
        return ""
    if task.file is not None:
        return f"; {task.file}"
    from pretrain.tasks.shortcuts import best_shortcut, floor_of

    best, chance = best_shortcut(task.generator, task.parameters), floor_of(task.generator, task.parameters).chance
    return f"; generated; best shortcut: {best.name}, {100 * best.accuracy:.1f} %; chance {100 * (chance or 0):.1f} %"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return run_command(
        partial(evaluate, options), interrupted="interrupted; finished tasks are kept: the same command continues"
    )


if __name__ == "__main__":
    sys.exit(main())
