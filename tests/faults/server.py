"""A process with everything imported that forks a child for each command: `python -m tests.faults.server`.

Standard input has a request a line, `{"module": ..., "arguments": [...], "output": file}`; standard output answers each
with the exit code, null for a command that hung.
"""

import importlib
import inspect
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch

TIME_LIMIT_S = 60.0
MODULES = (
    "pretrain.train", "tests.faults.two_ranks", "pretrain.trainer", "pretrain.run.session", "pretrain.eval.evaluate",
    "pretrain.eval.groups", "pretrain.eval.harness", "pretrain.eval.scorer", "pretrain.run.trained_model",
    "pretrain.parallel.stage", "tools.eval_depth", "tools.prepare_data", "finetune.coconut", "finetune.trainer",
    "pyarrow.parquet", "pandas",
)  # fmt: skip
"""What the commands import; those at the end are imported by the libraries only when they are used."""


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # some libraries print when they are imported
    modules = {name: importlib.import_module(name) for name in MODULES}
    modules["pretrain.run.session"].peak_flops(torch.device("cpu"), torch.float32)  # takes a second, and is kept
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _run(modules[request["module"]].main, request)
        print(json.dumps(_wait(child)), file=answers, flush=True)


def _run(command: Callable[..., int], request: dict[str, Any]) -> NoReturn:
    """Run a command in this process, which has its own session, and end."""
    os.setsid()
    null, output = os.open(os.devnull, os.O_RDONLY), os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, source in enumerate((null, output, output)):
        os.dup2(source, descriptor)
    sys.argv = [request["module"], *request["arguments"]]
    try:
        code = command(request["arguments"]) if inspect.signature(command).parameters else command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int) -> int | None:
    """The exit code of a child; None after the time limit, with all that the child had started."""
    deadline = time.monotonic() + TIME_LIMIT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    main()
