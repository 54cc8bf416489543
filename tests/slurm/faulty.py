"""Starts an entry point with a fault: `python faulty.py python -m MODULE ARGUMENTS`; the test's site.env puts it before
every rank.

$FAULT: slow (half a second more in every step), raise (rank 1 has a bug that shows in its step 25), abort (rank 1
crashes at once), kill_in_save (rank 1 is killed while the checkpoint of step 40 is written). $FAULTY_ATTEMPTS: how many
attempts of the job have it.
"""

import faulthandler
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    _python, *command = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    is_faulty = int(os.environ.get("SLURM_RESTART_COUNT", "0")) < int(os.environ["FAULTY_ATTEMPTS"])
    if is_faulty and "RANK" in os.environ:
        break_something(os.environ["FAULT"], int(os.environ["RANK"]), is_pretraining=command[0] == "-m")
    if command[0] == "-m":
        sys.argv[1:] = command[2:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = command
        runpy.run_path(command[0], run_name="__main__")


def break_something(fault: str, rank: int, *, is_pretraining: bool) -> None:
    if fault == "abort":
        if rank == 1:
            faulthandler.enable()
            os.abort()
        time.sleep(60)  # the others would wait for it much longer
    if fault == "kill_in_save":
        if rank == 1:
            die_in_save(40)
        return
    if is_pretraining:
        from pretrain.parallel.engine import Engine
    else:
        from finetune.engine.engine import FinetuneEngine as Engine

    train_step, calls = Engine.train_step, 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if fault == "slow":
            time.sleep(0.5)
        elif rank == 1 and calls == 25:
            raise RuntimeError("a bug of rank 1")
        return train_step(*args, **kwargs)

    Engine.train_step = step  # type: ignore[method-assign]


def die_in_save(step: int) -> None:
    """Kill this process once its part of the checkpoint of a step is written and before it is published."""
    from pretrain.checkpoint import commit

    write_tensors = commit.write_tensors

    def write(path: Path, *arguments: Any) -> Any:
        entry = write_tensors(path, *arguments)
        if path.parent.name.startswith(f"step-{step:08d}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return entry

    commit.write_tensors = write


if __name__ == "__main__":
    main()
