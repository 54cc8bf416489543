"""A process with everything imported that forks a child for each command: `python -m tests.faults.server MODULE...`.

Standard input has a request a line, `{"module": ..., "arguments": [...], "environment": {...}, "output": file,
"errors": file, "limit_s": ..., "folder": ..., "search": ..., "forks": ...}`: folder and search are where it starts and
the first place of modules, and whether the commands that it starts are forks too. Standard output answers each with the
exit code, null for a command that hung, and the seconds of processor time that it took.
"""

import importlib
import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

from tests.support.forks import fork_commands, run_main


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # some libraries print when they are imported
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if "torch" in sys.modules:
        device = sys.modules["torch"].device("cpu")
        importlib.import_module("pretrain.device.hardware").peak_flops(device, sys.modules["torch"].float32)  # is kept
    print(json.dumps(None), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _run(request)
        print(json.dumps(_wait(child, request["limit_s"])), file=answers, flush=True)


def _run(request: dict[str, Any]) -> NoReturn:
    """Run a command in this process, which has its own session, and end."""
    os.setsid()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in enumerate(("output", "errors"), start=1):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if request["forks"]:
        fork_commands()
    os._exit(run_main(request["module"], request["arguments"], request["search"]))


def _wait(child: int, limit_s: float) -> tuple[int | None, float]:
    """The exit code of a child, None after the time limit with all that the child had started, and its time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, limit_s


if __name__ == "__main__":
    main()
