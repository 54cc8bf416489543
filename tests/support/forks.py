"""Commands that start commands, at the price of their own work: what such a process starts as `python -m MODULE ...` or
`python FILE ...` of this project is a fork of it, which has torch and the rest imported, and not a new interpreter.

All else is as `subprocess` does it: a child of its own with its process id, session, signals, output and open files.

    python -m tests.support.forks -m pretrain.launch --ranks 2 -m pretrain.train ...
"""

import importlib
import inspect
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Run a command whose commands are forks."""
    fork_commands()
    return run_main(*resolve(arguments, Path.cwd()))


def fork_commands() -> None:
    """From now on, in this process and its forks."""
    subprocess.Popen = _Forking  # type: ignore[misc]


def resolve(words: Sequence[str | Path], folder: Path) -> tuple[str, list[str], Path]:
    """What `python WORDS` would run in a folder: the module, its arguments, and where modules are looked for first."""
    first, *arguments = map(str, words)
    if first == "-m":
        module, *arguments = arguments
        return module, arguments, folder
    script = (folder / first).resolve()
    return ".".join(script.relative_to(ROOT).with_suffix("").parts), arguments, script.parent


def run_main(module: str, arguments: Sequence[str], search: Path | str) -> int:
    """Run the `main` of a module as a program; returns its exit code."""
    sys.path[0] = str(search)
    try:
        command = importlib.import_module(module).main
        sys.argv = [module, *arguments]
        code = command(list(arguments)) if inspect.signature(command).parameters else command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class _Forking(subprocess.Popen):
    """A process that is a fork if it is to be Python with a command of this project that is imported already."""

    def __init__(self, words: Any, *, env: Mapping[str, str] | None = None, **options: Any) -> None:
        if not isinstance(words, str) and words[0] == sys.executable and words[1] != "-c":
            command = resolve(words[1:], Path(options.get("cwd") or "."))
            if hasattr(sys.modules.get(command[0]), "main"):
                options["preexec_fn"] = partial(_become, command, env, options.get("pass_fds", ()))
                sys.stdout.flush()
                sys.stderr.flush()
        super().__init__(words, env=env, **options)


def _become(command: tuple[str, list[str], Path], variables: Mapping[str, str] | None, kept: Sequence[int]) -> NoReturn:
    """Called between fork and exec, where output, folder and session are those of the child: be the command."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first = 3
    for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, descriptor)  # the parent waits for the end of one of them, which says that exec succeeded
        first = descriptor + 1
    if variables is not None:
        os.environ.clear()
        os.environ.update(variables)
    os._exit(run_main(*command))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
