"""Train and compare a family of models, methods of fine-tuning or a grid of settings: `python tools/sweep.py
configs/sweeps/p_hop_small.yaml --jobs 2`.

Models are trained, evaluated and plotted, a grid is listed in a table too; methods are trained, scored on their test
questions with every number of thoughts, and listed in a table. Runs go to runs/sweeps/<name of the file>/<model or
method, and seed>/, figures to the folder above. A repeated command resumes the sweep: runs resume from their
checkpoints, evaluated tasks are skipped.
--jobs N runs N of them side by side, the output of each in logs/ of that folder, and shares cores out among them.
--print only shows the commands; --dry-run plans the training runs; --slurm submits a job array for each stage, whose
tasks wait for those of the stage before, and a last job for the plot or table that waits for all.
`pretrain/config/sweep.py` documents the configuration; tools/publish.py puts rows and figures beside it.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune.kinds import kind_of
from pretrain.command.console import run_command
from pretrain.command.options import OptionParser, positive
from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.config.sweep import SweepCell, SweepConfig, cells
from pretrain.device.ranks import is_launched
from pretrain.run.side_by_side import NamedCommand, run_side_by_side

SWEEPS = Path("runs/sweeps")
JOB = "slurm/sweep_cell.sh"
CHECKOUT = Path(__file__).parents[1]
SUMMARIES = ("plot", "table")
"""Stages that are of all runs together."""
Command = list[str]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Train and compare models over depth, or methods of fine-tuning.")
    parser.add_argument("sweep", type=Path, metavar="FILE", help="configs/sweeps/<name>.yaml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--print", action="store_true", help="show the commands and run none")
    how.add_argument("--dry-run", action="store_true", help="print the plans of the training runs and run none")
    how.add_argument("--slurm", action="store_true", help="submit job arrays instead of running here")
    parts = ("train", "eval", *SUMMARIES)
    parser.add_argument("--stage", choices=parts, help="only this part of the sweep, as in a job array")
    parser.add_argument("--cell", type=int, metavar="N", help="only this run, numbered from 0")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs side by side; default: 1")
    return parser.parse_args(arguments)


def script(name: str) -> str:
    """A script of this project, as it is called from the folder in which the sweep was started."""
    return name if Path.cwd() == CHECKOUT else str(CHECKOUT / name)


def run_overrides(cell: SweepCell, root: Path) -> list[str]:
    return [*cell.overrides, f"run.root={root}", f"run.name={cell.name}"]


def entry_command(sweep: SweepConfig, cell: SweepCell, root: Path) -> Command:
    entry = kind_of(sweep).entry
    return [
        *([script(entry)] if entry.endswith(".py") else ["-m", entry]),
        "--config",
        sweep.config,
        *run_overrides(cell, root),
    ]


def train_command(sweep: SweepConfig, cell: SweepCell, root: Path) -> Command:
    launch = ["-m", "pretrain.launch", "--ranks", str(sweep.ranks)]
    if sweep.ranks == 1 or is_launched():
        launch = []
    return [sys.executable, *launch, *entry_command(sweep, cell, root)]


def plan_command(sweep: SweepConfig, cell: SweepCell, root: Path) -> Command:
    return [sys.executable, *entry_command(sweep, cell, root), "--dry-run", "--world-size", str(sweep.ranks)]


def check(sweep: SweepConfig, cell: SweepCell, root: Path) -> None:
    """Refuse what training would refuse."""
    kind = kind_of(sweep)
    kind.check_layout(read_config(Path(sweep.config), kind.schema, run_overrides(cell, root)), sweep.ranks)


def require_data(sweep: SweepConfig, family: Sequence[SweepCell], root: Path) -> None:
    """Refuse data that training would not find; runs that share theirs are asked once."""
    kind, configs = kind_of(sweep), dict[str, Any]()
    for cell in family:
        config = read_config(Path(sweep.config), kind.schema, run_overrides(cell, root))
        configs[f"{config.data!r} {getattr(config, 'model', None)!r}"] = config
    for config in configs.values():
        deque(kind.describe_data(config), maxlen=0)


def eval_command(sweep: SweepConfig, cell: SweepCell, root: Path) -> Command:
    evaluation = sweep.evaluation
    command = [sys.executable, script("tools/eval_depth.py"), "--run", str(root / cell.name)]
    command += ["--num-loops", str(cell.num_loops)] if cell.num_loops else []
    command += ["--tasks", ",".join(evaluation.tasks)] if evaluation.tasks else []
    command += ["--num-examples", str(evaluation.num_examples)] if evaluation.num_examples else []
    return command + (["--data-dir", evaluation.data_dir] if evaluation.data_dir else [])


def has_tasks(sweep: SweepConfig, family: Sequence[SweepCell]) -> bool:
    """Whether there are tasks to score; the validation loss of text is a result of training."""
    configs = [read_config(Path(sweep.config), RunConfig, list(cell.overrides)) for cell in family]
    return bool(sweep.evaluation.tasks) or any(source.task for config in configs for source in config.data.sources)


def stages(sweep: SweepConfig, family: Sequence[SweepCell], root: Path) -> dict[str, list[Command]]:
    """The commands of each stage of the sweep, in order."""
    train = [train_command(sweep, cell, root) for cell in family]
    if sweep.kind != "models":
        runs = [str(root / cell.name) for cell in family]
        score = [[sys.executable, script("tools/eval_coconut.py"), "--run", run, "--latents", "all"] for run in runs]
        tables = ["tools/coconut_table.py", *(["tools/reward_plot.py"] if sweep.policies else [])]
        return {"train": train, "eval": score, "table": [[sys.executable, script(tool), *runs] for tool in tables]}
    evaluate = [eval_command(sweep, cell, root) for cell in family] if has_tasks(sweep, family) else []
    rows = [root / cell.name / "eval" / "depth.jsonl" for cell in family]
    plot = [sys.executable, script("tools/scaling_plot.py"), *map(str, rows), "--out", str(root)]
    plot += sweep.plot_options
    varied = [key for key in sweep.grid if key != "run.seed"]
    compare = [[sys.executable, script("tools/compare.py"), str(root), *sweep.compare_options(root)]] if varied else []
    return {"train": train, **({"eval": evaluate} if evaluate else {}), "plot": [plot, *compare]}


def submissions(planned: Iterable[str], file: Path, count: int, ranks: int, root: Path) -> list[Command]:
    """The sbatch commands of the stages; "{job}" is the id of the job before, whose failure cancels the next."""
    jobs: list[Command] = []
    for stage in planned:
        is_array = stage not in SUMMARIES
        log = root / f"slurm-{stage}-{'%A_%a' if is_array else '%j'}.out"
        command = ["sbatch", "--parsable", f"--job-name={file.stem}-{stage}", f"--output={log}"]
        command += [f"--ntasks={ranks if stage == 'train' else 1}"]
        command += [f"--array=0-{count - 1}"] if is_array else []
        after = "aftercorr" if is_array else "afterok"
        command += [f"--dependency={after}:{{job}}", "--kill-on-invalid-dep=yes"] if jobs else []
        jobs.append([*command, JOB, str(file), stage])
    return jobs


def submit(commands: Sequence[Command], root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)  # Slurm does not create the folder of its logs
    job = ""
    for command in commands:
        words = [word.replace("{job}", job) for word in command]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ValueError("--slurm: sbatch not found; run without --slurm, or on a login node") from None
        if done.returncode:
            raise OSError(f"sbatch refused the job: {done.stderr.strip()}")
        job = done.stdout.strip().split(";")[0]
        print(f"submitted {job}: {shlex.join(command[-2:])}")


def work(options: argparse.Namespace) -> None:
    sweep = read_config(options.sweep, SweepConfig)
    family, root = cells(sweep), SWEEPS / options.sweep.stem
    planned = stages(sweep, family, root)
    if options.cell is not None and not 0 <= options.cell < len(family):
        raise ValueError(f"--cell {options.cell}: the sweep has {len(family)} runs, numbered from 0")
    if options.stage not in (None, *planned):
        raise ValueError(f"--stage {options.stage}: the stages of this sweep are {', '.join(planned)}")
    for cell in family:  # all of them before the first is trained, or joins a queue
        check(sweep, cell, root)
    jobs = submissions(planned, options.sweep, len(family), sweep.ranks, root)
    if options.slurm:
        require_data(sweep, family, root)
        submit(jobs, root)
        return
    if options.dry_run:
        planned = {"plan": [plan_command(sweep, cell, root) for cell in family]}
    for stage, commands in planned.items():
        if options.stage not in (None, stage) and not options.dry_run:
            continue
        chosen = commands if options.cell is None or stage in SUMMARIES else [commands[options.cell]]
        if options.jobs > 1 and len(chosen) > 1 and stage not in SUMMARIES and not (options.print or options.dry_run):
            names = [cell.name for cell in family]
            logs = [root / "logs" / f"{stage}-{name}.log" for name in names]
            run_side_by_side(list(map(NamedCommand, names, chosen, logs)), stage, options.jobs)
            continue
        for number, command in enumerate(chosen, start=1):
            if options.print:
                print(shlex.join(command))
                continue
            if is_launched() and len(chosen) == 1:  # replace this rank by its command, so that signals reach the latter
                os.execv(command[0], command)
            if not options.dry_run:
                print(f"== {stage} {number}/{len(chosen)}: {shlex.join(command[1:])}", file=sys.stderr, flush=True)
            ended = run_to_its_end(command)
            if ended:
                which = f"{stage} {number}/{len(chosen)}"
                raise OSError(f"{which} ended with exit code {ended}; the same command continues from here")
    if options.print:
        print("\n".join(["", "# with --slurm:", *map(" ".join, jobs)]))


def run_to_its_end(command: Command) -> int:
    """The exit code of a command. Ctrl-C reaches it too, and then it may take its time to save."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # subprocess.run would kill it after a quarter of a second
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(work, parse(arguments)), interrupted="interrupted; the same command continues from here")


if __name__ == "__main__":
    sys.exit(main())
